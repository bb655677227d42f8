"""What a build child says of itself on its status pipe, and how failures are kept until a client asks.

The report comes from user code: it is parsed as any hostile message would be.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final, Optional

import msgpack  # type: ignore[import-untyped]  # it ships no type information
import msgspec

from pylightnix.errors import PylightnixException
from pylightnix.protocol.errors_on_wire import error_to_wire, failed_row_from_dump
from pylightnix.protocol.messages import FailedRow
from pylightnix.protocol.worker_messages import BuildReport
from pylightnix.system_errors import is_refusal, refusal
from pylightnix.types import DRef

__all__ = ["FailedBuild", "failed_row", "parse_report", "pointing_to"]

_log = logging.getLogger("pylightnixd")

REPORT_BYTES_MAX: Final = 8 << 20


class FailedBuild(Exception):
    """A build failed; `row` is what clients are told."""

    def __init__(self, row: FailedRow) -> None:
        self.row = row
        super().__init__(f"{row.code}: {row.message}")

    def of_user(self, uid: int) -> FailedBuild:
        """Return it with the user whose code may have made what is pickled in it."""
        return FailedBuild(msgspec.structs.replace(self.row, uid=uid))


def parse_report(data: bytes) -> Optional[BuildReport]:
    """Return the report, or None if the child was gone before it had made one."""
    try:
        return msgspec.msgpack.decode(data, type=BuildReport)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    try:  # msgspec takes UTF-8 only, which the name of a folder need not be
        said = msgpack.unpackb(data, unicode_errors="surrogateescape")
        return msgspec.convert(said, BuildReport, strict=True, builtin_types=(bytes,))
    except (ValueError, TypeError, msgpack.UnpackException, msgspec.MsgspecError):
        return None


def failed_row(dref: DRef, error: BaseException | Mapping[str, Any], **fields: Any) -> FailedRow:
    """Return what clients are told of a failure: of ours, or one that a build child dumped."""
    if isinstance(error, FailedBuild):
        return msgspec.structs.replace(error.row, dref=str(dref))
    if isinstance(error, BaseException):
        if isinstance(error, OSError) and is_refusal(error):
            error = refusal(error, f"building {dref}", "the daemon")
        incident = secrets.token_hex(6)
        wire = error_to_wire(error, incident)
        if wire.code == "internal":
            _log.error("BUG: incident %s in building %s", incident, dref, exc_info=error)
        return FailedRow(
            dref=str(dref),
            code=wire.code,
            message=wire.message,
            type=type(error).__name__,
            exit_status=error.exit_status if isinstance(error, PylightnixException) else 1,
            fields={**wire.fields, **fields},
        )
    return failed_row_from_dump(error, dref, **fields)


def pointing_to(row: FailedRow, folder: str, kept: Sequence[str]) -> FailedRow:
    """Return a failure whose message, made while `folder` was the build folder, says where what was left in that is kept."""
    return msgspec.structs.replace(row, message=row.message.replace(folder, os.path.dirname(kept[0]))) if kept else row
