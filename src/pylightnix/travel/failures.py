"""Errors on their way from the process where they were raised to the program that wants to know.

A dumped error is a map of plain values: ``code``, ``message``, ``exit_status``, ``fields`` (facts for
machines); ``type`` and ``traceback`` of what a user's code raised, which for a failed build is what is
inside the error; and ``pickled``, the error itself where that survives the journey. Whoever loads it says
whether it may be unpickled, which runs code of the sender's. Must not know how a map is sent.
"""

from __future__ import annotations

import copy
import os
import pickle
import traceback
from collections.abc import Mapping
from typing import Any, Final, Optional

from pylightnix import errors
from pylightnix.errors import BuildError, PylightnixException, RemoteFailure
from pylightnix.types import DRef, Output, Path

__all__ = ["CodeChanged", "RemoteFailure", "RemoteTraceback", "dump_exception", "load_exception"]

_PICKLED_BYTES: Final = 1 << 20
_TEXT_CHARACTERS: Final = 60_000
"""Somewhat less than a text in a message may have."""
_FIELD_CHARACTERS: Final = 1 << 12
_FIELD_ITEMS: Final = 100
_OWN_FOLDER: Final = os.path.dirname(os.path.abspath(errors.__file__)) + os.sep


class RemoteTraceback(Exception):
    """The traceback of another process, as text; stands as the cause of an error that came from there."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        return f"\n{self.text.rstrip()}"


class CodeChanged(PylightnixException):
    """The code of a realizer changed after its build was asked for."""

    code = "code-changed"
    retryable = True

    def __init__(self, dref: DRef, expected: str, found: str, what: str = "") -> None:
        self.dref, self.expected, self.found, self.what = dref, expected, found, what
        said = what or f"expected code {expected[:12]}…, found {found[:12]}…"
        super().__init__(f"the code of {dref} changed after its build was asked for: {said}\nstart the program again")


# --- sending ------------------------------------------------------------------------------------------


def dump_exception(error: BaseException) -> dict[str, Any]:
    """Return what there is to send of an error. Never fails, whatever the error's own methods do."""
    cause = _cause(error)
    return {
        "code": _code(error),
        "message": _message(error),
        "exit_status": error.exit_status if isinstance(error, PylightnixException) else PylightnixException.exit_status,
        "type": _cut(_type_name(cause), 1000),
        "traceback": _traceback_text(cause),
        "pickled": _pickled(error),
        "fields": _fields(error),
    }


def _cause(error: BaseException) -> BaseException:
    """Return what a user's code raised: of a failed build, what failed it."""
    found = error.exception if isinstance(error, BuildError) else error
    return found if isinstance(found, BaseException) else error


def _code(error: BaseException) -> str:
    return str(error.code)[:64] if isinstance(error, PylightnixException) else RemoteFailure.code


def _type_name(error: BaseException) -> str:
    if isinstance(error, RemoteFailure):
        return error.type_name
    cls = type(error)
    return cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"


def _message(error: BaseException) -> str:
    if isinstance(error, RemoteFailure):
        return error.text
    try:
        text = str(error)
    except Exception as worse:  # noqa: BLE001  # a user's class
        text = f"(its text cannot be had: {type(worse).__name__})"
    return _cut(text)


def _cut(text: str, characters: int = _TEXT_CHARACTERS) -> str:
    # Surrogates stand for bytes that are no UTF-8; no peer in another language would take them.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) <= characters:
        return text
    return f"{text[: characters // 2]}\n[… {len(text) - characters} characters left out …]\n{text[-characters // 2 :]}"


def _traceback_text(error: BaseException) -> str:
    if isinstance(error, RemoteFailure):
        return error.traceback
    try:
        whole = traceback.TracebackException.from_exception(error, compact=True)
        remote = error.__cause__
        if isinstance(remote, RemoteTraceback) and all(_is_own(frame.filename) for frame in whole.stack):
            return remote.text  # it was only passed on here
        if any(not _is_own(frame.filename) for frame in whole.stack):
            _trim(whole)
        return _cut("".join(whole.format()))
    except Exception:  # noqa: BLE001  # formatting calls methods of users' objects
        return f"{_type_name(error)}: {_message(error)}\n"


def _is_own(filename: str) -> bool:
    return filename.startswith(_OWN_FOLDER)


def _trim(part: Optional[traceback.TracebackException]) -> None:
    """Leave this package's own frames out, which tell users nothing."""
    while part is not None:
        kept = [frame for frame in part.stack if not _is_own(frame.filename)]
        part.stack = traceback.StackSummary.from_list(kept or list(part.stack))
        part = part.__cause__ or part.__context__


def _pickled(error: BaseException) -> Optional[bytes]:
    if not isinstance(error, Exception):
        return None  # see `load_exception`
    blob = _sound_pickle(error)
    if blob is None and isinstance(error, BuildError):
        inner = dump_exception(_cause(error))
        stand_in = copy.copy(error)
        stand_in.exception = RemoteFailure(inner["type"], inner["message"], inner["traceback"])
        blob = _sound_pickle(stand_in)
    return blob


def _sound_pickle(error: Exception) -> Optional[bytes]:
    """Return a pickle that was seen to come back as the same class; None if there is none, or it is too large."""
    from pylightnix.travel.packing import dumps, dumps_error

    # The plain way first: a class may count on its constructor. Many constructors take something else than the text, though.
    for dumped in (dumps, dumps_error):
        try:
            blob = dumped(error)
            back = pickle.loads(blob) if len(blob) <= _PICKLED_BYTES else None
            if type(back) is type(error) and str(back) == str(error):
                return blob
        except Exception:  # noqa: BLE001  # methods of users' classes
            continue
    return None


def _fields(error: BaseException) -> dict[str, Any]:
    if not isinstance(error, PylightnixException):
        return {}
    fields = {name: value for name, value in vars(error).items() if _is_plain(value) and _is_plain(name) and name != "code"}
    if isinstance(error, BuildError):
        fields["exception"] = {"type": _type_name(_cause(error)), "text": _message(_cause(error))[:_FIELD_CHARACTERS]}
    return fields


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _FIELD_CHARACTERS and value.isprintable()
    if isinstance(value, list):
        return len(value) <= _FIELD_ITEMS and all(isinstance(item, str) and _is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 1 << 63)


# --- receiving ----------------------------------------------------------------------------------------


def load_exception(dumped: Mapping[str, Any], trusted: bool) -> BaseException:
    """Return the error that a map of `dump_exception` tells of, fit to be raised.

    Args:
        dumped: the map. Keys that are missing or of other types are let pass.
        trusted: whether it may be unpickled, which runs what its sender put there: only if that was the
            same user. Else, and where unpickling fails, errors of this package come back in their own
            class with their text, and all others as `RemoteFailure`. So does a `SystemExit`, which raised again
            would end another program, perhaps as if all were well; a `KeyboardInterrupt` is one here, too.

    Returns:
        The error, its remote traceback attached as a `RemoteTraceback` where Python shows causes.
    """
    error: Optional[BaseException] = _unpickled(dumped.get("pickled")) if trusted else None
    if error is None:
        error = _stand_in(dumped)
    text = _text(dumped, "traceback")
    cause: BaseException = error
    if isinstance(error, BuildError) and isinstance(error.exception, BaseException):
        cause = error.__cause__ = error.exception  # as when it is raised here
    if text:
        cause.__cause__ = RemoteTraceback(text)
    return error


def _unpickled(blob: object) -> Optional[Exception]:
    if not isinstance(blob, bytes):
        return None
    try:
        error = pickle.loads(blob)
    except Exception:  # noqa: BLE001  # a class may not be importable here; any error may come of it
        return None
    return error if isinstance(error, Exception) else None


def _text(dumped: Mapping[str, Any], key: str) -> str:
    value = dumped.get(key)
    return value if isinstance(value, str) else ""


_OWN_CLASSES: Final = {
    cls.code: cls for cls in [*(getattr(errors, name) for name in errors.__all__), CodeChanged] if issubclass(cls, PylightnixException)
}


def _stand_in(dumped: Mapping[str, Any]) -> BaseException:
    type_name, traceback_text = _text(dumped, "type") or "Exception", _text(dumped, "traceback")
    found = dumped.get("fields")
    fields = {name: value for name, value in found.items() if isinstance(name, str)} if isinstance(found, Mapping) else {}
    own = _OWN_CLASSES.get(_text(dumped, "code"))
    if own is None or own is RemoteFailure:
        if type_name == KeyboardInterrupt.__name__:
            return KeyboardInterrupt(*filter(None, [_text(dumped, "message")]))
        return RemoteFailure(type_name, _text(dumped, "message"), traceback_text)
    if own is BuildError:
        inner = fields.get("exception")
        text = _text(inner, "text") if isinstance(inner, Mapping) else ""
        listed = fields.get("outpaths")
        outpaths = [Path(item) for item in listed if isinstance(item, str)] if isinstance(listed, list) else []
        cause = RemoteFailure(type_name, text, traceback_text)
        return BuildError(None, DRef(_text(fields, "dref")), Output(outpaths), cause, _text(fields, "msg"))
    # Not by the constructor, which takes facts that may not have come along.
    error: PylightnixException = own.__new__(own)
    error.args = (_text(dumped, "message"),)
    error.__dict__.update({name: value for name, value in fields.items() if name[:1] != "_" and not hasattr(own, name)})
    return error
