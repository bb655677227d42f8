"""A tree in the making, of entries that come in any order and from anyone.

Rules:

- Entries are made by directory file descriptors, and lie in folders that were made here: a link is never gone through.
- A folder may be named again. Else an entry takes the place of one of the same name, as for tar: the last one counts. Only a folder
  that holds something stays.
- A link stays in the tree: its target is relative, and leads out neither by itself nor over other links.
- What has no place in a tree is refused; nothing is renamed or repaired.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from pylightnix.archives.limits import Unpacking, shown_name
from pylightnix.archives.links import Parts, TooCrooked, is_straight, leads_out, parts_of, plain_name
from pylightnix.nar import MAX_LEVELS
from pylightnix.tree_writer import TARGET_BYTES, enter_folder, make_folder, make_link, new_file, problem_with_name, write_all
from pylightnix.walking import OpenFolders

__all__ = ["TreeDraft"]

_MAX_PARTS: Final = MAX_LEVELS - 2
"""A tree may come to lie in a folder of an output folder."""
_BLOCK_BYTES: Final = 1 << 20
_CROOKED_STEPS: Final = 1_000_000
_READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class TreeDraft:
    """Makes a tree in the folder open at `top_fd`, which nobody else writes to. `close` it.

    Attributes:
        tops: the names at the top.
        file_bytes: the contents of all files, holes included.
        replaced: how many entries another one took the place of.

    Its methods raise:
        UnpackFailed: there can be no such entry.
        OSError: the system does not take it.
    """

    def __init__(self, top_fd: int, unpacking: Unpacking) -> None:
        self.tops: set[bytes] = set()
        self.file_bytes = 0
        self.replaced = 0
        self._unpacking = unpacking
        self._top_fd = top_fd
        self._entered: list[bytes] = []
        """The folders that the last entry lies in. Entries come folder by folder, mostly."""
        self._way = OpenFolders(top_fd)
        self._links: dict[Parts, Parts] = {}
        self._targets: dict[Parts, bytes] = {}

    def close(self) -> None:
        """Close the folders that are open."""
        self._way.close()
        self._entered.clear()

    def check_name(self, path: bytes) -> bytes:
        """Return the name that something other than a folder has in the tree, without what stays where it is. Makes nothing."""
        self._parts_of_entry(path)
        return plain_name(path)

    def folder(self, path: bytes) -> None:
        """Make a folder, unless it is there."""
        parts = self._parts(path)
        if parts:
            self._make_room_for_folder(parts)
        self._enter(parts)

    def link(self, path: bytes, target: bytes) -> None:
        """Make a symbolic link."""
        parts = self._parts_of_entry(path)
        if not target or b"\0" in target or len(target) > TARGET_BYTES:
            raise self._unpacking.failed(f"the link has no target that a link can have ({len(target)} bytes)")
        onward = parts_of(target)
        if target.startswith(b"/") or (is_straight(onward) and onward[: len(parts)].count(b"..") >= len(parts)):
            raise self._leads_out(target)
        with self._new(parts) as folder_fd:
            try:
                make_link(folder_fd, parts[-1], target)
            except FileExistsError:
                self._replace(folder_fd, parts)
                make_link(folder_fd, parts[-1], target)
        self._links[parts], self._targets[parts] = onward, target

    @contextmanager
    def file(self, path: bytes, *, executable: bool, size: int) -> Iterator[int]:
        """Make a file, and yield a descriptor that writes it. The bytes are counted by the caller."""
        parts = self._parts_of_entry(path)
        with self._new(parts) as folder_fd, ExitStack() as stack:
            try:
                fd = stack.enter_context(new_file(folder_fd, parts[-1], executable=executable))
            except FileExistsError:
                self._replace(folder_fd, parts)
                fd = stack.enter_context(new_file(folder_fd, parts[-1], executable=executable))
            yield fd
        self.file_bytes += size

    def copy(self, path: bytes, original: bytes) -> None:
        """Make another file, or link, like one that was made before: what a hard link becomes."""
        known = self._parts(original)
        if known in self._targets:
            self.link(path, self._targets[known])
            return
        source_fd = self._open_made(known, original)
        try:
            info = os.fstat(source_fd)
            with self.file(path, executable=bool(info.st_mode & 0o100), size=info.st_size) as fd:
                self._unpacking.count_bytes(info.st_size)
                while block := os.read(source_fd, _BLOCK_BYTES):
                    write_all(fd, block)
        finally:
            os.close(source_fd)

    def finish(self) -> None:
        """Check what can be told only when all is there: links that go up again after a name."""
        steps = _CROOKED_STEPS
        for parts, onward in self._links.items():
            if is_straight(onward):
                continue
            self._unpacking.entry = b"/".join(parts)
            try:
                out, steps = leads_out(parts[:-1], onward, self._links, steps)
            except TooCrooked as error:
                raise self._unpacking.failed("its links lead over each other in too many ways to be checked") from error
            if out:
                raise self._leads_out(self._targets[parts])

    # --- paths ------------------------------------------------------------------------------------

    def _parts(self, path: bytes) -> Parts:
        failed = self._unpacking.failed
        if path.startswith(b"/"):
            raise failed(f"the name {shown_name(path)!r} is absolute; expected one below the folder", _PACK_AGAIN)
        parts = parts_of(path)
        for part in parts:
            if part == b"..":
                raise failed(f"the name {shown_name(path)!r} leads out of its folder by '..'", _PACK_AGAIN)
            if (problem := problem_with_name(part)) is not None:
                raise failed(f"the name {shown_name(part[:300])!r} {problem}", _PACK_AGAIN)
        if len(parts) > _MAX_PARTS:
            raise failed(f"it is nested deeper than {_MAX_PARTS} levels", _PACK_AGAIN)
        return parts

    def _parts_of_entry(self, path: bytes) -> Parts:
        parts = self._parts(path)
        if not parts:
            raise self._unpacking.failed("it has no name, and is no folder", _PACK_AGAIN)
        return parts

    def _leads_out(self, target: bytes) -> Exception:
        return self._unpacking.failed(f"it is a link that leads out of the archive's folder, to {shown_name(target[:300])!r}", _PACK_AGAIN)

    # --- folders ----------------------------------------------------------------------------------

    @contextmanager
    def _new(self, parts: Parts) -> Iterator[int]:
        """Yield the folder that a new entry is to lie in."""
        folder_fd = self._enter(parts[:-1])
        self._unpacking.count_entry()
        self.tops.add(parts[0])
        yield folder_fd

    def _make_room_for_folder(self, parts: Parts) -> None:
        """Remove a file or link that has the name of a folder."""
        folder_fd = self._enter(parts[:-1])
        try:
            info = os.stat(parts[-1], dir_fd=folder_fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(info.st_mode):
            self._replace(folder_fd, parts)

    def _replace(self, folder_fd: int, parts: Parts) -> None:
        """Remove the file, link or empty folder that has the name of a new entry."""
        info = os.stat(parts[-1], dir_fd=folder_fd, follow_symlinks=False)
        self.replaced += 1
        if stat.S_ISDIR(info.st_mode):
            try:
                os.rmdir(parts[-1], dir_fd=folder_fd)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise self._unpacking.failed("it stands twice in the archive, as a folder as well", _PACK_AGAIN) from error
            return
        os.unlink(parts[-1], dir_fd=folder_fd)
        if self._targets.pop(parts, None) is None:
            self.file_bytes -= info.st_size
        self._links.pop(parts, None)

    def _enter(self, parts: Parts) -> int:
        """Return the descriptor of a folder, which is made with its parents as far as they are not there."""
        shared = 0
        while shared < min(len(parts), len(self._entered)) and self._entered[shared] == parts[shared]:
            shared += 1
        while len(self._entered) > shared:
            self._entered.pop()
            self._way.leave()
        for part in parts[shared:]:
            self._way.enter(self._enter_or_make(self._way.fd, part))
            self._entered.append(part)
        self.tops.update(parts[:1])
        return self._way.fd

    def _enter_or_make(self, parent_fd: int, name: bytes) -> int:
        try:
            return enter_folder(parent_fd, name)
        except FileNotFoundError:
            self._unpacking.count_entry()
            return make_folder(parent_fd, name)
        except OSError as error:
            raise self._not_a_folder(error, name) from error

    def _not_a_folder(self, error: OSError, name: bytes) -> Exception:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            return error
        return self._unpacking.failed(f"{shown_name(name)!r} on its way is a link or a file, not a folder", _PACK_AGAIN)

    def _open_made(self, parts: Parts, path: bytes) -> int:
        """Open a file that was made."""
        folder_fd = os.dup(self._top_fd)
        try:
            for part in parts[:-1]:
                inner = enter_folder(folder_fd, part)
                os.close(folder_fd)
                folder_fd = inner
            if parts:
                fd = os.open(parts[-1], _READ_FLAGS, dir_fd=folder_fd)
                if not os.path.isdir(fd):
                    return fd
                os.close(fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
        finally:
            os.close(folder_fd)
        raise self._unpacking.failed(f"it is a hard link to {shown_name(path[:300])!r}, which is no file that came before it", _PACK_AGAIN)


_PACK_AGAIN: Final = "pack it again, with names and links that stay below one folder, or unpack it by hand"
