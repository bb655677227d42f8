"""Errors as maps: what a client may see of an exception, and the exception that it becomes there.

An exception of this package keeps its class (by its `code`) and those of its attributes that are JSON.
Any other is a bug of the daemon: the client is told an incident's name, under which the log has the rest.
Nothing is pickled here, and nothing of a map is trusted beyond names and plain values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sized
from math import isfinite
from typing import Any, Final, Optional, cast

import msgspec

from pylightnix import errors as package_errors
from pylightnix.errors import BuildError, PylightnixException, RemoteFailure
from pylightnix.protocol import _values as v
from pylightnix.protocol import errors as protocol_errors
from pylightnix.protocol._operations import FailedRow
from pylightnix.protocol.errors import InternalError, LocalProtocolError, RemoteProtocolError, UnknownError
from pylightnix.protocol.vocabulary import Message
from pylightnix.sanitize import escaped
from pylightnix.system_errors import is_refusal, refusal
from pylightnix.travel.failures import CodeChanged
from pylightnix.types import DRef, Output, Path

__all__ = [
    "ERROR_CLASSES",
    "FAILURE_CLASSES",
    "WireError",
    "error_from_failed_row",
    "error_from_wire",
    "error_to_wire",
    "failed_row_from_dump",
    "json_fields",
]

_FIELDS_BYTES_MAX: Final = 256 * 1024
"""Most bytes of JSON that the fields of one error take. A field that would exceed them is left out."""
_FIELDS_DEPTH_MAX: Final = 16
_FIELDS_ITEMS_MAX: Final = 10_000
_MESSAGE_CHARACTERS_MAX: Final = 32_768


class WireError(Message, frozen=True, kw_only=True):
    """The error of a response."""

    code: v.Word
    message: v.Text
    field: Optional[v.Text] = None
    retry_after: Optional[v.Seconds] = None
    fields: v.JSONFields = msgspec.field(default_factory=dict)


def _error_classes() -> dict[str, type[PylightnixException]]:
    found: dict[str, type[PylightnixException]] = {}
    # A broken stream is told as an invalid message; whoever is told so has sent that message.
    local = (RemoteProtocolError, LocalProtocolError, RemoteFailure, UnknownError)
    for module in (package_errors, protocol_errors):
        for name in module.__all__:
            cls = getattr(module, name)
            if cls in local or "code" not in vars(cls):
                continue
            if found.setdefault(cls.code, cls) is not cls:
                raise AssertionError(f"BUG: {cls.__name__} and {found[cls.code].__name__} have the same code {cls.code!r}")
    return found


ERROR_CLASSES: Final = _error_classes()
"""Every code that an error response can have, with its exception class."""

FAILURE_CLASSES: Final[Mapping[str, type[PylightnixException]]] = {cls.code: cls for cls in (CodeChanged, RemoteFailure)}
"""The codes that only the failure of a derivation can have, with their exception classes."""


_OWN_PLACE: Final = frozenset({"field", "retry_after", "request_id"})
"""Attributes that an error response holds beside its fields, or that mean nothing elsewhere."""


def error_to_wire(error: BaseException, incident: str) -> WireError:
    """Return what a client may see of `error`.

    `incident` is a name that the caller makes up for each error. If the code of the result is ``internal``, the
    caller must log `error` under it. An exception group counts as the one error in it that has no word here, if any, else as the
    first. What the system refuses is named as such, never as a bug.
    """
    leaves = _leaves(error)
    error = next((leaf for leaf in leaves if _wire_code(leaf) is None and not is_refusal(leaf)), leaves[0])
    if isinstance(error, OSError) and is_refusal(error):
        error = refusal(error, "doing what was asked", "the daemon")
    code = _wire_code(error)
    if code is None:
        error = InternalError(incident)
        code = error.code
    field, retry_after = getattr(error, "field", None), getattr(error, "retry_after", None)
    return WireError(
        code=code,
        message=_sendable(str(error))[:_MESSAGE_CHARACTERS_MAX],
        field=_sendable(field)[:_MESSAGE_CHARACTERS_MAX] if isinstance(field, str) else None,
        retry_after=float(retry_after) if isinstance(retry_after, (int, float)) else None,
        fields=json_fields(error),
    )


def _leaves(error: BaseException) -> list[BaseException]:
    """Return the errors in an exception group, or this one."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]


def _wire_code(error: BaseException) -> Optional[str]:
    """Return the code of the closest class that the other end knows; None if the error is none of its business."""
    if isinstance(error, RemoteProtocolError):
        return error.code
    if isinstance(error, LocalProtocolError):
        return None  # ours, so a bug
    for cls in type(error).__mro__:
        code = vars(cls).get("code")
        if isinstance(code, str) and ERROR_CLASSES.get(code) is cls:
            return code
    return None


def json_fields(error: BaseException) -> dict[str, Any]:
    """Return the public attributes of an exception that JSON can express, up to a size.

    Those of a `BuildError` hold the name and the text of what the realizer raised, not that itself.
    """
    found: dict[str, Any] = {}
    budget = _FIELDS_BYTES_MAX
    for name, value in vars(error).items():
        if name.startswith("_") or name in _OWN_PLACE:
            continue
        if isinstance(value, BaseException):
            value = {"type": type(value).__name__, "text": str(value)[:_MESSAGE_CHARACTERS_MAX]}
        try:
            plain = _plain(value, 0)
        except TypeError:
            continue
        size = len(json.dumps(plain))
        if size <= budget:
            budget -= size
            found[name] = plain
    return found


def _sendable(text: str) -> str:
    """Return `text` with lone surrogates, such as undecodable bytes of a path, spelt out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _as_path(text: str) -> str:
    """Return `text` as it is if it may be a path, undecodable bytes included; other lone surrogates are spelt out."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return _sendable(text)
    return text


def _plain(value: object, depth: int) -> Any:
    """Return a JSON value as the wire has it; raise TypeError for anything else, or too much."""
    if isinstance(value, str):
        return _as_path(value)
    if value is None or isinstance(value, bool):
        return value
    if (type(value) is int and abs(value) < 2**63) or (type(value) is float and isfinite(value)):
        return value
    # Not of subclasses: a named tuple would come back as what it is not.
    if depth < _FIELDS_DEPTH_MAX and type(value) in (list, tuple, dict) and len(cast("Sized", value)) <= _FIELDS_ITEMS_MAX:
        if isinstance(value, dict):
            return {_key(key): _plain(item, depth + 1) for key, item in value.items()}
        return [_plain(item, depth + 1) for item in cast("Iterable[object]", value)]
    raise TypeError(type(value).__name__)


def _key(key: object) -> str:
    if isinstance(key, str):
        return _sendable(key)
    raise TypeError(type(key).__name__)


def error_from_wire(wire: WireError) -> PylightnixException:
    """Return the exception that stands for an error response: of the same class if this version knows its code.

    An attribute that was not sent is absent, but for those that have a default.
    """
    return _stand_in(ERROR_CLASSES.get(wire.code), wire)


def _stand_in(cls: Optional[type[PylightnixException]], wire: WireError) -> PylightnixException:
    if cls is None:
        error: PylightnixException = UnknownError(escaped(wire.code), escaped(wire.message))
    elif issubclass(cls, BuildError):
        return _build_error(wire)
    else:
        # Not by the constructor: it takes other arguments in each class, and the message is made already.
        error = cls.__new__(cls)
        error.args = (escaped(wire.message),)  # it may quote others: names of files, command lines
    kind = type(error)
    facts = {name: value for name, value in wire.fields.items() if name.isidentifier() and name[0] != "_" and not hasattr(kind, name)}
    error.__dict__.update(facts)
    for name in ("field", "retry_after"):
        if getattr(wire, name) is not None:
            error.__dict__[name] = getattr(wire, name)
    return error


def error_from_failed_row(row: FailedRow) -> PylightnixException:
    """Return the exception that stands for a failed derivation. What was pickled in it is not opened."""
    if row.code == RemoteFailure.code:
        return RemoteFailure(row.type or "Exception", row.message, row.traceback)
    cls = ERROR_CLASSES.get(row.code) or FAILURE_CLASSES.get(row.code)
    error = _stand_in(cls, WireError(code=row.code, message=row.message, fields=row.fields))
    if isinstance(error, BuildError) and isinstance(error.exception, RemoteFailure):
        error.dref = DRef(row.dref or error.dref)
        error.exception = RemoteFailure(row.type or error.exception.type_name, error.exception.text, row.traceback)
    return error


def failed_row_from_dump(dumped: Mapping[str, Any], dref: DRef, **fields: Any) -> FailedRow:
    """Return what `pylightnix.travel.dump_exception` gave as the failure of a derivation. What is malformed is left out.

    `fields` are added to those of the dump.
    """
    found = dumped.get("fields")
    known = {"code": "build-failed", "message": "", **dumped, "dref": str(dref)}
    known.pop("uid", None)  # that is for the daemon to say
    known["fields"] = {**(found if isinstance(found, dict) else {}), **fields}
    try:
        return msgspec.convert(known, FailedRow, builtin_types=(bytes,))
    except msgspec.ValidationError as problem:
        return FailedRow(dref=str(dref), code="build-failed", message=f"the build failed, and its report is malformed ({problem})")


def _build_error(wire: WireError) -> BuildError:
    # It makes its text from its attributes whenever it is asked, so each must be what it is to be.
    def text(name: str) -> str:
        value = wire.fields.get(name)
        return value if isinstance(value, str) else ""

    raised, outpaths = wire.fields.get("exception"), wire.fields.get("outpaths")
    type_name, message = "Exception", wire.message
    if isinstance(raised, dict):
        type_name, message = str(raised.get("type", type_name)), str(raised.get("text", message))
    kept = Output([Path(path) for path in outpaths if isinstance(path, str)]) if isinstance(outpaths, list) else None
    return BuildError(None, DRef(text("dref")), kept, RemoteFailure(type_name, message), text("msg"))
