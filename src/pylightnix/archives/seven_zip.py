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

_LZMA2, _LZMA, _PPMD = b"\x21", b"\3\1\1", b"\3\4\1"
_MEMORY_BYTES: Final = 1 << 30
"""Four times what 7-Zip takes at its strongest level."""
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
            _check_memory(archive, unpacking)
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


def _check_memory(archive: Any, unpacking: Unpacking) -> None:
    """Refuse what takes more memory to decompress than was ever asked for by someone who meant well."""
    streams = getattr(archive.header, "main_streams", None)
    for folder in streams.unpackinfo.folders if streams is not None else ():
        for coder in folder.coders:
            needed = _memory_bytes(coder["method"], coder["properties"] or b"")
            if needed > _MEMORY_BYTES:
                raise unpacking.failed(f"it takes {needed} bytes of memory to unpack, more than {_MEMORY_BYTES}", "pack it with less")


def _memory_bytes(method: bytes, properties: bytes) -> int:
    """Return how much a coder looks back on; see ``7zFormat.txt`` and ``Methods.txt`` of 7-Zip."""
    if method == _LZMA2 and properties:
        return (2 | properties[0] & 1) << (min(properties[0], 40) // 2 + 11)
    return int.from_bytes(properties[1:5], "little") if method in (_LZMA, _PPMD) else 0


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
