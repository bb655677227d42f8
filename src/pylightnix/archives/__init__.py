"""Unpacking what others packed: tar, zip, 7z and single compressed files.

Every byte of an archive is a stranger's. What is made lies in the one folder that was named, whatever the archive
says; what cannot be made so is refused, and named. Must not know where archives come from.
"""

from __future__ import annotations

from pylightnix.archives.limits import UnpackLimits
from pylightnix.archives.unpacking import Unpacked, opened_archive, unpack_archive, unpack_file

__all__ = ["UnpackLimits", "Unpacked", "opened_archive", "unpack_archive", "unpack_file"]
