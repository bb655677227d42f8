"""Making the entries of a new tree by directory file descriptors: what is made must be new, and no link is followed.

For whoever takes a tree from strangers. Must not know in what form it came.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["NAME_BYTES", "TARGET_BYTES", "enter_folder", "make_folder", "make_link", "new_file", "problem_with_name", "write_all"]

NAME_BYTES: Final = 255
"""How long the name of an entry may be."""
TARGET_BYTES: Final = 4095
"""How long the target of a link may be."""
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def problem_with_name(name: bytes) -> str | None:
    """Return why `name` cannot be that of an entry, or None if it can."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        return "names no entry of a folder"
    return f"has more than {NAME_BYTES} bytes" if len(name) > NAME_BYTES else None


def enter_folder(parent_fd: int, name: bytes) -> int:
    """Open a folder, which must be none by a link. The descriptor is the caller's to close."""
    return os.open(name, _FOLDER_FLAGS, dir_fd=parent_fd)


def make_folder(parent_fd: int, name: bytes) -> int:
    """Make a folder, 0755 less the umask, and open it. The descriptor is the caller's to close."""
    os.mkdir(name, 0o755, dir_fd=parent_fd)
    return enter_folder(parent_fd, name)


def make_link(parent_fd: int, name: bytes, target: bytes) -> None:
    """Make a symbolic link."""
    os.symlink(target, name, dir_fd=parent_fd)


@contextmanager
def new_file(parent_fd: int, name: bytes, *, executable: bool) -> Iterator[int]:
    """Make a file, 0644 less the umask or 0755, and yield a descriptor that writes it."""
    fd = os.open(name, _NEW_FILE_FLAGS, 0o755 if executable else 0o644, dir_fd=parent_fd)
    try:
        yield fd
        if executable:
            os.fchmod(fd, 0o755)  # whatever the umask: the bit is part of the tree
    finally:
        os.close(fd)


def write_all(fd: int, content: bytes | memoryview) -> None:
    """Write all of `content`."""
    block = memoryview(content)
    while block:
        block = block[os.write(fd, block) :]
