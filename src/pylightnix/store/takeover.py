"""Taking over an output folder from the build that left it: checked, owned, read-only, hashed, in one pass.

For builds of the same user as the store's owner: the inodes stay, and a rename into the store follows.
Must not know where the folder goes, nor what a context or an index is.

What may not enter the store: special files, set-id programs, others' files, and hard links, because
changing a mode (or later writing) through one name would reach whoever has the other name. Files are
sealed before they are read, so that what was hashed is what is sealed. A file that somebody keeps open for writing
(a descriptor that was passed on, a shared mapping) is replaced by a copy before that.

Everything gets one time, `STORE_TIME`. Times are not part of the hash, so nothing that is built on a realization may
depend on them: with the times of writing, `make` takes files that came with an archive for out of date.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import stat
from collections.abc import Callable
from typing import Final, Optional

from pylightnix.context import parse_context
from pylightnix.errors import InvalidOutput, InvalidTree, Misuse, PylightnixException
from pylightnix.nar import OPEN_FLAGS, EntryKind, TreeDigest, hash_folder
from pylightnix.store.layout import CONTEXT_FILE, METADATA_NAMES
from pylightnix.store.removal import reopen_unlocked
from pylightnix.store.writers import has_writers, note_cannot_tell
from pylightnix.system_errors import refusal
from pylightnix.types import DRef

__all__ = ["STORE_TIME", "seal_file", "seal_folder", "take_over"]

_log = logging.getLogger("pylightnix")

STORE_TIME: Final = 315_619_200
"""The modification time of every file, folder and link of a realization: 1980-01-02T00:00:00Z. Zip knows none before 1980."""

_FILE_MODE: Final = 0o444
_PROGRAM_MODE: Final = 0o555
_FOLDER_MODE: Final = 0o555
_TOP_MODE: Final = 0o755
_TIMES_NS: Final = (STORE_TIME * 1_000_000_000,) * 2
_COPY_BYTES: Final = 1 << 26
_CONTEXT_BYTES: Final = 1 << 26
_CHANGED: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_LEAVE_PLAIN: Final = "leave only regular files, folders and symbolic links, and let whatever writes them end first"


def take_over(parent_fd: int, name: str, *, dref: DRef, shown: str) -> TreeDigest:
    """Seal and hash the output folder `name` in the folder open at `parent_fd`.

    Afterwards files are 0444 or 0555, folders 0555, and all are the caller's. The top is left 0755:
    its owner could not move it to another folder otherwise; seal it after the rename. The reserved names
    at the top are sealed too, and are not part of the digest. Doing it again gives the same.

    Args:
        parent_fd: The build folder.
        name: A single path component.
        dref: What was built, for errors.
        shown: The path of the output folder to show in errors.

    Raises:
        InvalidOutput: The folder holds something that may not enter the store, or is none.
        StoreFull: No room for the copy that replaces a hard link.
        StoreIOError: The system refused something else.
            After any of these the tree may be sealed in part; ``remove_tree`` can remove it.
    """
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        problem = f"is named {name!r}, not by one path component"
        raise InvalidOutput(dref, shown, problem, "return folders made in the build folder")
    try:
        sealing = _Sealing(dref)
        fd = sealing.open_top(parent_fd, os.fsencode(name), shown)
        try:
            return hash_folder(fd, where=shown, exclude_top=METADATA_NAMES, access=sealing)
        finally:
            os.close(fd)
    except InvalidTree as error:
        raise InvalidOutput(dref, error.where, error.problem, _LEAVE_PLAIN) from error
    except OSError as error:
        raise _translated(error, dref, shown) from error


def _translated(error: OSError, dref: DRef, shown: str) -> PylightnixException:
    # The walk says where it was; outside of it `filename` is a bare name, or missing.
    where = error.filename if isinstance(error.filename, str) and error.filename.startswith(shown) else shown
    if error.errno in _CHANGED:
        return InvalidOutput(dref, where, f"changed while it was taken over ({error.strerror})", _LEAVE_PLAIN)
    return refusal(error, f"taking over an output of {dref}", where)


class _Sealing:
    """How the walk gets at an output: by making everything it opens the caller's own and read-only."""

    def __init__(self, dref: DRef, ask: Callable[[int, os.stat_result], bool] = has_writers) -> None:
        self._dref, self._has_writers = dref, ask
        self.written: Optional[str] = None
        """The first file that somebody had open for writing."""
        self._uid, self._gid = os.geteuid(), os.getegid()

    def open_top(self, parent_fd: int, name: bytes, shown: str) -> int:
        where = os.fsencode(shown)
        try:
            fd = self._open(parent_fd, name, os.O_DIRECTORY, where)
        except FileNotFoundError as error:
            raise InvalidOutput(self._dref, shown, "does not exist", "make the folder before returning it") from error
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise InvalidOutput(self._dref, shown, "is not a folder", "return folders, not files or links") from error
        try:
            info = os.fstat(fd)
            self._own(fd, info, where)
            _set_mode(fd, info, _TOP_MODE)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def open_entry(self, parent_fd: int, name: bytes, where: bytes) -> tuple[int, os.stat_result]:
        fd = self._open(parent_fd, name, 0, where)
        try:
            info = os.fstat(fd)
            if stat.S_ISREG(info.st_mode):
                if info.st_mode & (stat.S_ISUID | stat.S_ISGID):
                    raise self._refused(where, "is a set-id program", "clear these mode bits (chmod ug-s)")
                if info.st_nlink > 1:
                    fd, info = self._replace(parent_fd, name, fd, info, where)
                self._own(fd, info, where)
                _set_mode(fd, info, _sealed_mode(info))
                # Sealed first: nobody opens it for writing after the question any more.
                if self._has_writers(fd, info):
                    fd, info = self._replace_written(parent_fd, name, fd, info, where)
            elif stat.S_ISDIR(info.st_mode):
                self._own(fd, info, where)
                if info.st_mode & stat.S_IRWXU != stat.S_IRWXU:
                    os.fchmod(fd, stat.S_IRWXU)  # to go into it, and to replace hard links in it
        except BaseException:
            os.close(fd)
            raise
        return fd, info

    def skip_entry(self, parent_fd: int, name: bytes, kind: EntryKind, where: bytes) -> None:
        rename = "it is kept for metadata, choose another"
        if name == os.fsencode(CONTEXT_FILE):
            if kind is not EntryKind.FILE or not self._is_context(parent_fd, name, where):
                raise self._refused(where, "has a reserved name", rename)
            os.unlink(name, dir_fd=parent_fd)  # it came with a copy of another realization
            return
        if kind is not EntryKind.FILE:
            raise self._refused(where, f"has a reserved name and is a {kind.value}", rename)
        fd, info = self.open_entry(parent_fd, name, where)
        try:
            if not stat.S_ISREG(info.st_mode):
                raise self._refused(where, "changed while it was taken over", _LEAVE_PLAIN)
            self.leave_file(fd)
        finally:
            os.close(fd)

    def _is_context(self, parent_fd: int, name: bytes, where: bytes) -> bool:
        fd = self._open(parent_fd, name, 0, where)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return False
            try:
                parse_context(json.loads(file.read(_CONTEXT_BYTES)))
            except (ValueError, RecursionError, Misuse):
                return False
        return True

    def leave_file(self, fd: int) -> None:
        os.utime(fd, ns=_TIMES_NS)

    def leave_link(self, parent_fd: int, name: bytes) -> None:
        os.utime(name, ns=_TIMES_NS, dir_fd=parent_fd, follow_symlinks=False)

    def leave_folder(self, fd: int, where: bytes) -> None:
        seal_folder(fd)

    def _open(self, parent_fd: int, name: bytes, flags: int, where: bytes) -> int:
        try:
            return os.open(name, OPEN_FLAGS | flags, dir_fd=parent_fd)
        except PermissionError:
            pass
        path_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=parent_fd)
        try:
            info = os.fstat(path_fd)
            if info.st_uid != self._uid:
                raise self._foreign(info, where)
            if not stat.S_ISDIR(info.st_mode) and info.st_nlink > 1:
                # Its mode is that of the other name too, and is not ours to change even for a moment.
                raise self._refused(where, "is a hard link to a file that may not be read", "leave a copy instead")
            return reopen_unlocked(path_fd, OPEN_FLAGS | flags)
        finally:
            os.close(path_fd)

    def _own(self, fd: int, info: os.stat_result, where: bytes) -> None:
        if info.st_uid == self._uid:
            return
        try:
            os.fchown(fd, self._uid, self._gid)  # root may: an archive unpacked as root leaves others' files
        except PermissionError as error:
            raise self._foreign(info, where) from error

    def _replace_written(self, parent_fd: int, name: bytes, fd: int, info: os.stat_result, where: bytes) -> tuple[int, os.stat_result]:
        """Replace a file that somebody can write to by a copy, and return that."""
        fd, info = self._replace(parent_fd, name, fd, info, where)
        if self._has_writers(fd, info):
            note_cannot_tell(info)  # nobody else has this copy: the file system says so of all files
        elif not self.written:
            self.written = where.decode("utf-8", "backslashreplace")
            _log.warning("%s: still open for writing after the build; what is written to it from now on is not stored", self.written)
        return fd, info

    def _replace(self, parent_fd: int, name: bytes, fd: int, info: os.stat_result, where: bytes) -> tuple[int, os.stat_result]:
        """Put a sealed copy in the place of a file, close that, and return the copy opened for reading."""
        temporary = f".copied-{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        copy_fd = os.open(temporary, flags, 0o600, dir_fd=parent_fd)
        read_fd = -1
        try:
            read_fd = os.open(temporary, OPEN_FLAGS, dir_fd=parent_fd)
            copied_bytes = 0
            while count := os.sendfile(copy_fd, fd, copied_bytes, _COPY_BYTES):
                copied_bytes += count
            if copied_bytes != info.st_size:
                raise self._refused(where, "changed its size while it was copied", _LEAVE_PLAIN)
            os.fchmod(copy_fd, _sealed_mode(info))
            os.rename(temporary, name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
        except BaseException:
            if read_fd >= 0:
                os.close(read_fd)
            os.unlink(temporary, dir_fd=parent_fd)
            raise
        finally:
            os.close(copy_fd)
        os.close(fd)
        return read_fd, os.fstat(read_fd)

    def _foreign(self, info: os.stat_result, where: bytes) -> InvalidOutput:
        return self._refused(where, f"belongs to another user (uid {info.st_uid})", "leave a copy of your own instead")

    def _refused(self, where: bytes, problem: str, advice: str) -> InvalidOutput:
        return InvalidOutput(self._dref, where.decode("utf-8", "backslashreplace"), problem, advice)


def seal_file(fd: int) -> None:
    """Make a file that was written here read-only, with the store's time."""
    os.fchmod(fd, _FILE_MODE)
    os.utime(fd, ns=_TIMES_NS)


def seal_folder(fd: int) -> None:
    """Make a folder whose entries are sealed read-only, with the store's time."""
    os.fchmod(fd, _FOLDER_MODE)  # drops a set-group-ID bit, which folders commonly inherit
    os.utime(fd, ns=_TIMES_NS)


def _sealed_mode(info: os.stat_result) -> int:
    return _PROGRAM_MODE if info.st_mode & stat.S_IXUSR else _FILE_MODE


def _set_mode(fd: int, info: os.stat_result, mode: int) -> None:
    if stat.S_IMODE(info.st_mode) != mode:
        os.fchmod(fd, mode)
