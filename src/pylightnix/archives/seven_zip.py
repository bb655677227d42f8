"""Unpacking 7z archives, by py7zr, which is installed only where it is asked for.

What the archive declares is checked before anything is expanded. Where one coder's output is another's input, little becomes much at
once, so only one of them may expand.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from collections.abc import Iterable
from contextlib import ExitStack
from typing import IO, Any, Final, cast

from pylightnix.archives.draft import TreeDraft
from pylightnix.archives.limits import Unpacking, shown_name
from pylightnix.archives.links import plain_name
from pylightnix.archives.seven_zip_steps import BLOCK_BYTES, SIP_BYTES, Sips, Stepwise
from pylightnix.errors import UnpackFailed
from pylightnix.tree_writer import TARGET_BYTES, write_all

__all__ = ["unpack_7z"]

_LZMA2, _LZMA, _PPMD = b"\x21", b"\3\1\1", b"\3\4\1"
_BZIP2, _DEFLATE, _DEFLATE64, _ZSTD = b"\4\2\2", b"\4\1\x08", b"\4\1\x09", b"\4\xf7\x11\1"
_AT_ONCE: Final = {_DEFLATE, _DEFLATE64, _ZSTD}
"""Coders that expand at once all that they get."""
_EXPANDING: Final = {_LZMA2, _LZMA, _PPMD, _BZIP2, *_AT_ONCE}
_ONE_FOR_ONE: Final = {
    # copy, delta; those for the code of x86, PowerPC, Itanium, ARM, ARM Thumb, SPARC; AES, which is refused elsewhere
    *(b"\0", b"\3", b"\3\3\1\3", b"\3\3\2\5", b"\3\3\4\1", b"\3\3\5\1", b"\3\3\7\1", b"\3\3\x08\5", b"\6\xf1\7\1"),
}
_SIGNATURE_BYTES: Final = 32
_HEADER_BYTES: Final = 1 << 28
"""What py7zr takes of a header that is packed, too."""
_ENCODED: Final = b"\x17"
"""How a header begins that is packed itself."""
_DRIVE: Final = re.compile("[A-Za-z]:")
_HOW_TO_GET: Final = "install it with: pip install 'pylightnix[archives]'"


def unpack_7z(file: IO[bytes], draft: TreeDraft, unpacking: Unpacking, folder: str, own_name: str) -> None:
    """Unpack an archive into a draft.

    Args:
        file: the archive, at its start.
        draft: where to.
        unpacking: counts.
        folder: where the draft is: py7zr compares names with it, and makes nothing there.
        own_name: the archive's name, after which an entry is called that has none.

    Raises:
        UnpackFailed: it is damaged, encrypted, or holds what has no place in a tree; or py7zr is not there.
        OSError: it cannot be read, or the tree not written.
    """
    try:
        import py7zr
    except ImportError as error:
        raise unpacking.failed("it is a 7z archive, for which the package py7zr is needed", _HOW_TO_GET) from error
    try:
        header, header_at = _header(file, unpacking)
        if header.startswith(_ENCODED):
            from py7zr.archiveinfo import HeaderStreamsInfo

            _check_coders(HeaderStreamsInfo.retrieve(io.BytesIO(header[1:])), unpacking)
        sips = Sips(file, own_name, header_at)
        with py7zr.SevenZipFile(cast(IO[bytes], sips)) as archive:
            if archive.password_protected:
                raise unpacking.failed("it is encrypted", "decrypt it first, or pack it again without a password")
            methods = _check_coders(getattr(archive.header, "main_streams", None), unpacking)
            sips.size = SIP_BYTES if methods & _AT_ONCE else BLOCK_BYTES
            members = _members(archive.files, draft, unpacking)
            unpacking.entry = None
            archive.extractall(folder, factory=_Factory(members, draft, unpacking, folder, sips))
    except (UnpackFailed, MemoryError):
        raise
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # of seeking to where no file reaches
            raise
        raise unpacking.failed(f"its 7z data are damaged ({error})") from error
    except Exception as error:  # on damaged headers py7zr raises what its code comes upon, assertions too
        raise unpacking.failed(f"its 7z data are damaged ({type(error).__name__}: {error})") from error
    unpacking.entry = None


def _members(files: Iterable[Any], draft: TreeDraft, unpacking: Unpacking) -> dict[bytes, Any]:
    """Return the files and links of an archive by their names in the tree, when all that they declare was checked. Makes the folders."""
    members: dict[bytes, Any] = {}
    folders: set[bytes] = set()
    declared_bytes = 0
    for member in files:
        unpacking.entry = name = _name(member.filename)
        _check(member, unpacking)
        if member.is_directory:
            draft.folder(name)
            folders.add(plain_name(name))
        elif (plain := draft.check_name(name)) in members:
            raise unpacking.failed("it stands twice in the archive", "pack it again")
        else:
            members[plain] = member
            declared_bytes += member.uncompressed
            unpacking.expect_bytes(declared_bytes)
    for plain in folders & members.keys():
        # Of such names py7zr makes others.
        unpacking.entry = plain
        raise unpacking.failed("it stands twice in the archive, as a folder as well", "pack it again")
    return members


def _header(file: IO[bytes], unpacking: Unpacking) -> tuple[bytes, int]:
    """Return an archive's header as it lies there, and where; `file` is at its start before and after."""
    signature = file.read(_SIGNATURE_BYTES)
    at = _SIGNATURE_BYTES + int.from_bytes(signature[12:20], "little")
    size = min(int.from_bytes(signature[20:28], "little"), os.fstat(file.fileno()).st_size)
    if size > _HEADER_BYTES:
        raise unpacking.failed(f"its header has {size} bytes, more than {_HEADER_BYTES}")
    file.seek(at)
    header = file.read(size)
    file.seek(0)
    return header, at


def _check_coders(streams: Any, unpacking: Unpacking) -> set[bytes]:
    """Refuse what takes more memory to expand than was ever asked for by someone who meant well. Return the coders."""
    found: set[bytes] = set()
    for folder in streams.unpackinfo.folders if streams is not None else ():
        methods = [coder["method"] for coder in folder.coders]
        unknown = [method.hex() for method in methods if method not in _EXPANDING | _ONE_FOR_ONE]
        if unknown:
            problem = f"it is compressed in a way that is not known here (the method {unknown[0]} of 7z)"
            raise unpacking.failed(problem, "pack it again with LZMA2, as 7z does by default")
        if sum(method in _EXPANDING for method in methods) > 1:
            raise unpacking.failed("it is compressed twice over", "pack it again with LZMA2, as 7z does by default")
        for coder in folder.coders:
            needed = _memory_bytes(coder["method"], coder["properties"] or b"")
            unpacking.expect_memory(needed, "memory_bytes")
        found.update(methods)
    return found


def _memory_bytes(method: bytes, properties: bytes) -> int:
    """Return how much a coder looks back on; see ``7zFormat.txt`` and ``Methods.txt`` of 7-Zip."""
    if method == _LZMA2 and properties:
        return (2 | properties[0] & 1) << (min(properties[0], 40) // 2 + 11)
    return int.from_bytes(properties[1:5], "little") if method in (_LZMA, _PPMD) else 0


def _name(filename: str) -> bytes:
    """Return an entry's name. Names are UTF-16; 7-Zip writes a byte that is no UTF-8 as a character from U+EF80 on."""
    return os.fsencode("".join(chr(ord(char) - 0xEF00 + 0xDC00) if "\uef80" <= char <= "\uefff" else char for char in filename))


def _check(member: Any, unpacking: Unpacking) -> None:
    if _DRIVE.match(member.filename):
        raise unpacking.failed("its name begins as with a drive of DOS, which py7zr refuses", "pack it again under another name")
    if member.is_directory or member.is_symlink:
        return
    if member.is_socket or (member.st_fmt or stat.S_IFREG) != stat.S_IFREG:
        raise unpacking.failed("it is a special file; expected a file, a folder or a link", "leave it out when packing")


class _Factory:
    """Gives py7zr something to write each file to. What it calls them are plain forms of the entries' names, below `folder`."""

    def __init__(self, members: dict[bytes, Any], draft: TreeDraft, unpacking: Unpacking, folder: str, sips: Sips) -> None:
        self._members, self._draft, self._unpacking, self._folder, self._sips = members, draft, unpacking, folder, sips
        self._stream: Any = None
        """What py7zr calls a folder: the stream that the last file was in."""

    def create(self, filename: str) -> _Sink:
        name = _name(os.path.relpath(filename, self._folder))
        member = self._members.get(name)
        if member is None:
            # py7zr brought it into a form of its own.
            raise self._unpacking.failed(f"it has a name that py7zr takes for {shown_name(name)!r}", "pack it again")
        self._unpacking.entry = _name(member.filename)
        if member.folder is not None and member.folder is not self._stream:
            if self._stream is not None:
                self._stream.decompressor = None
            self._stream = member.folder
            self._stream.decompressor = Stepwise(self._stream.get_decompressor(member.compressed), self._sips)
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
            write_all(self._fd, memoryview(block))
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
