"""Unpacking zip archives. What the list at the end of the archive names counts; checksums are compared.

`zipfile` expands stored and deflated entries in bounded steps. Of the others it expands at once all that it reads, so that their
packed bytes only are taken from it.
"""

from __future__ import annotations

import copy
import errno
import stat
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Final

from pylightnix.archives.draft import TreeDraft
from pylightnix.archives.limits import Unpacking, shown_name
from pylightnix.archives.streams import ByteStream, opened_lzma, opened_stream
from pylightnix.tree_writer import TARGET_BYTES, write_all

__all__ = ["unpack_zip"]

_DOS: Final = 0
_UNIXES: Final = (3, 19)
"""Unix and macOS: where modes and names are those of Unix."""
_ENCRYPTED: Final = 0x1
_UTF8: Final = 0x800
_UNICODE_PATH: Final = 0x7075
_BLOCK_BYTES: Final = 1 << 16
_STREAMS: Final = {9: "deflate64", zipfile.ZIP_BZIP2: "bzip2", 93: "zstd"}
"""Methods that are streams of their own. Only newer releases of `zipfile` know that of zstd."""


def unpack_zip(file: IO[bytes], draft: TreeDraft, unpacking: Unpacking) -> None:
    """Unpack an archive into a draft.

    Raises:
        UnpackFailed: it is damaged, encrypted, or holds what has no place in a tree.
        OSError: it cannot be read, or the tree not written.
    """
    import lzma
    import struct

    damages = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, OverflowError, IndexError, struct.error)
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                _unpack(archive, info, draft, unpacking)
    except NotImplementedError as error:  # what zipfile raises for a compression that it does not know
        raise unpacking.failed(f"it is compressed in a way that is not known here ({error})", "pack it again with plain zip") from error
    except UnicodeDecodeError as error:
        raise unpacking.failed(f"one of its names is marked as UTF-8, and is none: {shown_name(error.object)!r:.400}") from error
    except damages as error:
        if "span multiple disks" in str(error):
            raise unpacking.failed("it is one volume of an archive in several", "join the volumes first: zip -s 0") from error
        raise unpacking.failed(f"its zip data are damaged ({error})") from error
    unpacking.entry = None


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, draft: TreeDraft, unpacking: Unpacking) -> None:
    name = _name(info)
    name = name.lstrip(b"/") or name  # as all programs do
    unpacking.entry = name
    mode = info.external_attr >> 16 if info.create_system in _UNIXES else 0
    if info.flag_bits & _ENCRYPTED:
        raise unpacking.failed("it is encrypted", "decrypt the archive first, or pack it again without a password")
    if name.endswith(b"/") or stat.S_ISDIR(mode):
        draft.folder(name)
    elif stat.S_ISLNK(mode):
        target = b""
        for block in _contents(archive, info, unpacking):
            target += block
            if len(target) > TARGET_BYTES:
                break
        draft.link(name, target)
    elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise unpacking.failed("it is a special file; expected a file, a folder or a link", "leave it out when packing")
    else:
        executable = bool(mode & stat.S_IXUSR)
        with draft.file(name, executable=executable, size=info.file_size) as fd:
            for block in _contents(archive, info, unpacking):
                write_all(fd, block)


def _contents(archive: zipfile.ZipFile, info: zipfile.ZipInfo, unpacking: Unpacking) -> Iterator[bytes]:
    """Yield the contents of an entry, which are counted; in the end their size and checksum have been compared."""
    left, crc = info.file_size, 0
    too_little = "its zip data are damaged (there is less of it than the archive says)"
    if info.compress_type not in _STREAMS and info.compress_type != zipfile.ZIP_LZMA:
        with _opened(archive, info, unpacking) as content:
            while block := content.read(_BLOCK_BYTES):
                left -= len(block)
                unpacking.count_bytes(len(block))
                yield block
        if left:
            raise unpacking.failed(too_little)
        return
    with _opened(archive, _as_stored(info), unpacking) as packed:
        stream = _expanded(packed, info, unpacking)
        while left:
            if not (block := stream.read(min(left, _BLOCK_BYTES))):
                raise unpacking.failed(too_little)
            left -= len(block)
            crc = zlib.crc32(block, crc)
            yield block
        if info.compress_type in _STREAMS and stream.read(1):
            raise unpacking.failed("its zip data are damaged (there is more of it than the archive says)")
        if crc != info.CRC:
            raise unpacking.failed("its zip data are damaged (the checksum is another one)")


def _as_stored(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """Return what `zipfile` gives the packed bytes of an entry for."""
    stored = copy.copy(info)
    stored.compress_type, stored.file_size = zipfile.ZIP_STORED, info.compress_size
    del stored.CRC  # that of the contents; without one none is compared
    return stored


def _expanded(packed: IO[bytes], info: zipfile.ZipInfo, unpacking: Unpacking) -> ByteStream:
    if info.compress_type in _STREAMS:
        return opened_stream(packed, _STREAMS[info.compress_type], unpacking)
    # The version of the packer's library, how many bytes of properties there are, and these; APPNOTE 5.8.8.
    header = packed.read(4)
    return opened_lzma(packed, packed.read(int.from_bytes(header[2:], "little")), unpacking)


def _opened(archive: zipfile.ZipFile, info: zipfile.ZipInfo, unpacking: Unpacking) -> IO[bytes]:
    try:
        return archive.open(info)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise unpacking.failed("its zip data are damaged (it is said to lie before the archive)") from error


def _name(info: zipfile.ZipInfo) -> bytes:
    r"""Return an entry's name: in UTF-8 if it is marked so, or given so in an extra field beside it.

    Else it is as Unix had it, whatever its encoding is, or in the code page of DOS, where some programs wrote ``\`` for ``/``.
    """
    name = info.orig_filename
    if info.flag_bits & _UTF8:
        return _with_slashes(name.encode("utf-8"), info)
    raw = name.encode("cp437")  # which zipfile has decoded it from, and which knows all bytes
    given = _unicode_path(info.extra, raw)
    if given is not None or info.create_system in _UNIXES:
        return raw if given is None else given
    return _with_slashes(name.encode("utf-8"), info)


def _with_slashes(name: bytes, info: zipfile.ZipInfo) -> bytes:
    return name.replace(b"\\", b"/") if info.create_system == _DOS and b"/" not in name else name


def _unicode_path(extra: bytes, name: bytes) -> bytes | None:
    while len(extra) >= 4:
        kind, size = int.from_bytes(extra[:2], "little"), int.from_bytes(extra[2:4], "little")
        content, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and content[:1] == b"\1" and content[1:5] == zlib.crc32(name).to_bytes(4, "little"):
            return content[5:]
    return None
