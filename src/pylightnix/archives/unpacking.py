"""`unpack_archive`: what an archive is, and where what it holds is placed.

An archive is unpacked in a folder of its own, beside where it is to be, and placed when it is whole. So an error leaves
nothing. What it is is told by its first bytes; its name is asked only where these say too little.
"""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass
from io import BufferedReader
from typing import IO, Final, Optional

from pylightnix.archives.draft import TreeDraft
from pylightnix.archives.limits import Unpacking, UnpackLimits
from pylightnix.archives.streams import ByteStream, compression_of, opened_stream
from pylightnix.archives.tar_headers import BLOCK_BYTES, looks_like_tar
from pylightnix.errors import ArchiveIOError
from pylightnix.store.layout import METADATA_NAMES
from pylightnix.tree_writer import enter_folder, problem_with_name, write_all

__all__ = ["Unpacked", "opened_archive", "unpack_archive", "unpack_file"]

_USUAL: Final = UnpackLimits()
_COPY_BYTES: Final = 1 << 20
_ZIP: Final = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")
_7Z: Final = b"7z\xbc\xaf\x27\x1c"
_TAR_SUFFIXES: Final = (".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst")
_COMPRESSION_SUFFIXES: Final = (".gz", ".bz2", ".xz", ".zst")
_ZIP_SUFFIXES: Final = (".zip", ".7z", ".whl", ".jar")
_KNOWN: Final = "known are tar (also with gzip, bzip2, xz or zstd), zip, 7z, and single files compressed with gzip, bzip2, xz or zstd"


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out of an archive."""

    top: str
    """The one name that it has in the folder."""
    entries: int
    """How many files, folders and links there are in it."""
    file_bytes: int
    """Contents of all files, holes included."""


def unpack_archive(
    path: str | os.PathLike[str], folder: str | os.PathLike[str], *, limits: UnpackLimits = _USUAL, name: Optional[str] = None
) -> Unpacked:
    """Unpack an archive into a folder.

    Taken are tar, plain or compressed with gzip, bzip2, xz or zstd; zip; 7z, if the package py7zr is installed; and
    single files compressed with one of these. Executable bits and symbolic links are kept; hard links become copies;
    owners, times and other modes do not count. Absolute names lose their slash; of files of one name the last one counts.

    If all of the archive is below one name at its top, that stands in the folder afterwards. Otherwise it stands
    in a folder named after the archive, ``data`` for ``data.tar.gz``; so it does where the one name is reserved in outputs.
    A compressed file stands there under its name without the suffix.

    Args:
        path: the archive.
        folder: where to unpack it. Nothing outside of it is touched, and no link is followed in it.
        limits: how large it may become.
        name: the archive's file name, if `path` has another.

    Raises:
        UnpackFailed: it is damaged, cut short, none, too large, or holds what must not be made: names that have ``..``,
            links that lead out, devices. The folder is as before.
        ArchiveIOError: it cannot be read, or the folder not be written.
    """
    where = os.fspath(path)
    with opened_archive(where) as file:
        return unpack_file(file, folder, where=where, limits=limits, name=name)


def opened_archive(where: str) -> BufferedReader:
    """Open an archive for reading, at its start.

    Raises:
        ArchiveIOError: that cannot be done, or it is no regular file.
    """
    try:
        fd = os.open(where, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # nobody waits for the other end of a FIFO
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ArchiveIOError(where, "opening an archive", "it is no regular file")
        return open(fd, "rb")
    except OSError as error:
        raise ArchiveIOError(where, "opening an archive", error.strerror or str(error)) from error


def unpack_file(
    file: IO[bytes],
    folder: str | os.PathLike[str],
    *,
    where: str,
    limits: Optional[UnpackLimits] = None,
    name: Optional[str] = None,
    way_out: Optional[str] = None,
) -> Unpacked:
    """Do as `unpack_archive`, with an archive that is open, at its start.

    `where` names it in errors, and these add to their advice what else the caller can do, the `way_out`.
    """
    from pylightnix.store.removal import remove_tree

    unpacking = Unpacking(where, os.fstat(file.fileno()).st_size, limits or _USUAL, way_out)
    own_name = os.path.basename(where if name is None else name)
    drafted = os.path.join(folder, f".unpack-{secrets.token_hex(6)}")
    try:
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.mkdir(drafted, 0o755)
            try:
                draft = _fill(file, drafted, own_name, unpacking)
                top = _place(folder_fd, os.path.basename(drafted), draft.tops, own_name, unpacking)
            finally:
                remove_tree(drafted)  # what is placed is there no more
        finally:
            os.close(folder_fd)
    except MemoryError as error:
        raise unpacking.failed("it takes more memory to unpack than this process has", "unpack it where there is more") from error
    except OSError as error:
        raise ArchiveIOError(where, f"unpacking it into {os.fspath(folder)}", error.strerror or str(error)) from error
    return Unpacked(top, unpacking.entries - draft.replaced, draft.file_bytes)


def _fill(file: IO[bytes], drafted: str, own_name: str, unpacking: Unpacking) -> TreeDraft:
    """Unpack into the empty folder `drafted`."""
    fd = os.open(drafted, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    draft = TreeDraft(fd, unpacking)
    try:
        begin = file.read(BLOCK_BYTES)
        file.seek(0)
        if _is_zip(file, begin, own_name):
            from pylightnix.archives.zip import unpack_zip

            unpack_zip(file, draft, unpacking)
        elif begin.startswith(_7Z):
            from pylightnix.archives.seven_zip import unpack_7z

            unpack_7z(file, draft, unpacking, os.path.abspath(drafted), own_name)
        else:
            _unpack_stream(file, compression_of(begin), draft, own_name, unpacking)
        draft.finish()
    finally:
        draft.close()
        os.close(fd)
    return draft


def _is_zip(file: IO[bytes], begin: bytes, own_name: str) -> bool:
    """Tell whether a file is a zip archive. One may begin with a program that unpacks it: its directory is at the end."""
    if begin.startswith((*_ZIP, _7Z)) or compression_of(begin) is not None or looks_like_tar(begin):
        return begin.startswith(_ZIP)
    import zipfile

    found = zipfile.is_zipfile(file) or own_name.lower().endswith(".zip")
    file.seek(0)
    return found


def _is_empty_tar(stream: ByteStream) -> bool:
    """Tell whether there are blocks of zeros and nothing else, and read them. An image of a disk begins with zeros, too."""
    size = 0
    while block := stream.read(_COPY_BYTES):
        if block.strip(b"\0"):
            return False
        size += len(block)
    return size >= BLOCK_BYTES and size % BLOCK_BYTES == 0


def _unpack_stream(file: IO[bytes], compression: Optional[str], draft: TreeDraft, own_name: str, unpacking: Unpacking) -> None:
    stream = opened_stream(file, compression, unpacking)
    begin = stream.peek(BLOCK_BYTES)
    if compression is None and not begin:
        raise unpacking.failed("it has no bytes at all", _KNOWN)
    inner = own_name.lower().removesuffix(_suffix(own_name, _COMPRESSION_SUFFIXES).lower())
    if looks_like_tar(begin) or inner.endswith(_TAR_SUFFIXES):
        from pylightnix.archives.tar import unpack_tar

        unpack_tar(stream, draft, unpacking)
    elif compression is None:
        if begin and not begin.strip(b"\0") and _is_empty_tar(stream):
            return
        raise unpacking.failed(f"it begins with {begin[:8]!r}, which no archive that is known here does", _KNOWN)
    elif own_name.lower().endswith(_ZIP_SUFFIXES):
        raise unpacking.failed(f"it has the name of an archive of files, and is one file compressed with {compression}", _KNOWN)
    else:
        unpacking.entry = own = os.fsencode(_stem(own_name))
        with draft.file(own, executable=False, size=0) as fd:
            while block := stream.read(_COPY_BYTES):
                draft.file_bytes += len(block)
                write_all(fd, block)
        unpacking.entry = None


# --- names --------------------------------------------------------------------------------------------


def _suffix(name: str, suffixes: tuple[str, ...]) -> str:
    found = next((suffix for suffix in suffixes if name.lower().endswith(suffix)), "")
    return name[len(name) - len(found) :]


def _stem(name: str) -> str:
    """Return an archive's name without what tells that it is one; all of it if nothing would be left."""
    stem = name.removesuffix(_suffix(name, _COMPRESSION_SUFFIXES))
    stem = stem.removesuffix(_suffix(stem, _TAR_SUFFIXES + _ZIP_SUFFIXES))
    fits = problem_with_name(os.fsencode(stem)) is None and stem not in METADATA_NAMES
    return stem if fits else name


def _place(folder_fd: int, drafted: str, tops: set[bytes], own_name: str, unpacking: Unpacking) -> str:
    """Move what was unpacked to where it belongs, and return its name there."""
    if len(tops) == 1 and not tops & {os.fsencode(reserved) for reserved in METADATA_NAMES}:
        [top] = tops
        draft_fd = enter_folder(folder_fd, os.fsencode(drafted))
        try:
            _move(draft_fd, top, folder_fd, top, unpacking)
        finally:
            os.close(draft_fd)
    else:
        top = os.fsencode(_stem(own_name))
        _move(folder_fd, os.fsencode(drafted), folder_fd, top, unpacking)
    return os.fsdecode(top)


def _move(from_fd: int, source: bytes, to_fd: int, target: bytes, unpacking: Unpacking) -> None:
    try:
        os.stat(target, dir_fd=to_fd, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(source, target, src_dir_fd=from_fd, dst_dir_fd=to_fd)
    else:
        advice = "unpack it into an empty folder, or give name=… for the name of the archive"
        raise unpacking.failed(f"{os.fsdecode(target)!r} is to be made, and is in the folder already", advice)
