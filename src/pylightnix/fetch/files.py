"""What a fetch gives: a file whose checksum is right, and where prefetch keeps one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from dataclasses import dataclass
from typing import Optional

from pylightnix.fetch.checksums import Checksum
from pylightnix.fetch.parts import KEPT_FOLDER, disk_errors

__all__ = ["FetchedFile", "keep_file", "kept_path"]


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A whole file, its checksums those that were asked for. It is shared: read it, never write it."""

    path: str
    """Where it lies as long as it is lent."""
    size: int
    checksums: tuple[Checksum, ...]
    is_alone: bool = False
    """Whether no other process uses it, and none will while it is lent: it may be moved away."""

    def place(self, target: str) -> None:
        """Put the file at `target`, which is not there yet; a link where that will do, else a copy. Blocks."""
        with disk_errors(target, "placing a fetched file"):
            if os.stat(self.path).st_nlink == 1:
                try:
                    os.link(self.path, target)
                except OSError as error:
                    if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                        raise
                else:
                    os.chmod(target, 0o644)
                    return
            shutil.copyfile(self.path, target)


def kept_path(folder: str, checksum: Checksum) -> str:
    """Return where prefetch keeps the file with this checksum."""
    return os.path.join(folder, KEPT_FOLDER, f"{checksum.algorithm}-{checksum.hex}")


def keep_file(folder: str, file: FetchedFile) -> Optional[str]:
    """Keep a lent file under its checksums, for builds to come; return the first name it has then. What has that name is replaced."""
    names = [kept_path(folder, checksum) for checksum in file.checksums]
    with disk_errors(folder, "keeping a fetched file"):
        for name in names:
            # Not only if there is none: a power cut may have spoilt that.
            temporary = f"{name}.{secrets.token_hex(4)}"
            os.link(file.path, temporary)
            os.rename(temporary, name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)  # renaming does nothing if both are the same file already
    return names[0] if names else None
