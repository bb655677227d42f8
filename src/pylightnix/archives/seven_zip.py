"""Unpacking 7z archives, by py7zr, which is installed only where it is asked for."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from typing import IO, Any, Final

from pylightnix.archives.draft import TreeDraft
from pylightnix.archives.limits import Unpacking
from pylightnix.errors import UnpackFailed
from pylightnix.tree_writer import TARGET_BYTES, write_all

__all__ = ["unpack_7z"]

_HOW_TO_GET: Final = "install it with: pip install 'pylightnix[archives]'"


def unpack_7z(file: IO[bytes], draft: TreeDraft, unpacking: Unpacking, folder: str) -> None:
    """Unpack an archive into a draft. `folder` is where that is: py7zr compares names with it, and makes nothing there.

    Raises:
        UnpackFailed: it is damaged, encrypted, or holds what has no place in a tree; or py7zr is not there.
        OSError: it cannot be read, or the tree not written.
    """
    try:
        import py7zr
    except ImportError as error:
        raise unpacking.failed("it is a 7z archive, for which the package py7zr is needed", _HOW_TO_GET) from error
    try:
        with py7zr.SevenZipFile(file) as archive:
            if archive.password_protected:
                raise unpacking.failed("it is encrypted", "decrypt it first, or pack it again without a password")
            members = {}
            for member in archive.files:
                unpacking.entry = name = _name(member.filename)
                _check(member, unpacking)
                if member.is_directory:
                    draft.folder(name)
                elif member.filename in members:
                    raise unpacking.failed("it stands twice in the archive", "pack it again")
                else:
                    members[member.filename] = member
            archive.extractall(folder, factory=_Factory(members, draft, unpacking, folder))
    except (UnpackFailed, MemoryError):
        raise
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # of seeking to where no file reaches
            raise
        raise unpacking.failed(f"its 7z data are damaged ({error})") from error
    except Exception as error:  # on damaged headers py7zr raises what its code comes upon, assertions too
        raise unpacking.failed(f"its 7z data are damaged ({type(error).__name__}: {error})") from error
    unpacking.entry = None


def _name(filename: str) -> bytes:
    """Return an entry's name. Names are UTF-16; 7-Zip writes a byte that is no UTF-8 as a character from U+EF80 on."""
    return os.fsencode("".join(chr(ord(char) - 0xEF00 + 0xDC00) if "\uef80" <= char <= "\uefff" else char for char in filename))


def _check(member: Any, unpacking: Unpacking) -> None:
    if member.is_directory or member.is_symlink:
        return
    if member.is_socket or (member.st_fmt or stat.S_IFREG) != stat.S_IFREG:
        raise unpacking.failed("it is a special file; expected a file, a folder or a link", "leave it out when packing")
    if (member.posix_mode or 0) & (stat.S_ISUID | stat.S_ISGID):
        raise unpacking.failed("it has a set-user-id or set-group-id bit", "pack it again without (chmod ug-s)")


class _Factory:
    """Gives py7zr something to write each file to. Their names are those of the entries, below `folder`."""

    def __init__(self, members: dict[str, Any], draft: TreeDraft, unpacking: Unpacking, folder: str) -> None:
        self._members, self._draft, self._unpacking, self._folder = members, draft, unpacking, folder

    def create(self, filename: str) -> _Sink:
        name = os.path.relpath(filename, self._folder)
        member = self._members.get(name)
        if member is None:
            # py7zr brought it into another form, as it does with names that are not plain.
            raise self._unpacking.failed(f"the archive has a name that is not plain, found where {name!r} was to be made", "pack it again")
        self._unpacking.entry = _name(name)
        return _Sink(member, self._draft, self._unpacking)


class _Sink:
    """Takes the content of one entry. py7zr calls `close` when that is whole, and `seek` before."""

    def __init__(self, member: Any, draft: TreeDraft, unpacking: Unpacking) -> None:
        self._draft, self._unpacking = draft, unpacking
        self._name = _name(member.filename)
        self._target = bytearray() if member.is_symlink else None
        self._stack = ExitStack()
        if self._target is None:
            executable = bool((member.posix_mode or 0) & stat.S_IXUSR)
            size = 0 if member.emptystream else member.uncompressed
            self._fd = self._stack.enter_context(draft.file(self._name, executable=executable, size=size))

    def write(self, block: bytes | bytearray) -> int:
        self._unpacking.count_bytes(len(block))
        if self._target is None:
            write_all(self._fd, bytes(block))
        elif len(self._target) <= TARGET_BYTES:
            self._target += block
        return len(block)

    def close(self) -> None:
        self._stack.close()
        if self._target is not None:
            self._draft.link(self._name, bytes(self._target))

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def flush(self) -> None:
        pass

    def size(self) -> int:
        return 0
