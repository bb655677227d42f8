"""The settings file of `--config`: TOML, its keys named after the options.

Every fault of a file is reported, with the key, what was expected and what was found. Must not know what the
settings do, nor which of them the command line overrides.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Optional, TypeVar

import msgspec
from msgspec import Meta

from pylightnix.errors import Misuse, PylightnixException, shown

__all__ = [
    "FetchTable",
    "InvalidSettings",
    "KeepFailedTable",
    "KeepLogs",
    "SettingsFile",
    "UnreadableSettings",
    "parse_bytes",
    "parse_patience",
    "parse_seconds",
    "parse_tag",
    "read_settings",
]

S = TypeVar("S", bound=msgspec.Struct)

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
BYTES_MAX: Final = 1 << 62
SECONDS_EXPECTED: Final = "a number of seconds, 0 or more"
PATIENCE_SECONDS_MAX: Final = 86_400
PATIENCE_EXPECTED: Final = "a number of seconds, 1 to 86400"
MIRRORS_EXPECTED: Final = "a list of URLs of http or https"
TAG_NUMBER_MAX: Final = 10_000
TAG_EXPECTED: Final = f'a lower-case name and a whole number up to {TAG_NUMBER_MAX}, like "gpu=2"'
TAGS_EXPECTED: Final = "a table of lower-case names with whole numbers up to 10000, like { gpu = 2 }"
BYTES_EXPECTED: Final = 'a number of bytes, 0 or more, or a text like "64K", "256M" or "1.5G"'


class InvalidSettings(Misuse):
    """A settings file is not TOML, or says what cannot be. Nothing was started, or a daemon that runs goes on as before."""

    code = "invalid-settings"

    def __init__(self, path: str, faults: list[str]) -> None:
        self.path, self.faults = path, faults
        super().__init__("\n".join(f"{path}: {fault}" for fault in faults))


class UnreadableSettings(PylightnixException):
    """There is no settings file where one was said to be, or it cannot be read."""

    code = "unreadable-settings"
    exit_status = 66

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(
            f"cannot read the settings file {path}: {problem}; correct --config, or write --config=-{path} if it may be absent"
        )


class Seconds(float):
    """A time that is a number, and not negative."""


class PositiveSeconds(Seconds):
    """A time of a second or more."""


class Bytes(int):
    """A size."""


def parse_seconds(value: object) -> Seconds:
    """Return a time. Raises ValueError if `value` is no number (or its text), or negative, or not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(SECONDS_EXPECTED)
    try:
        seconds = Seconds(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(SECONDS_EXPECTED) from error
    if not seconds >= 0:  # which not-a-number is not either
        raise ValueError(SECONDS_EXPECTED)
    return seconds


def parse_patience(value: object) -> PositiveSeconds:
    """Return a time that has an end. Raises ValueError if `value` is no such number (or its text)."""
    try:
        seconds = parse_seconds(value)
    except ValueError as error:
        raise ValueError(PATIENCE_EXPECTED) from error
    if not 1 <= seconds <= PATIENCE_SECONDS_MAX:
        raise ValueError(PATIENCE_EXPECTED)
    return PositiveSeconds(seconds)


def parse_bytes(value: object) -> Bytes:
    """Return a size: a whole number, or a text with one of the suffixes K, M and G, which are powers of 1024.

    Raises:
        ValueError: it is neither, or negative, or beyond all files.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= BYTES_MAX:
        return Bytes(value)
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?) ?([KMG]?)", value, re.ASCII | re.IGNORECASE) if isinstance(value, str) else None
    if found is None or ("." in found[1] and not found[2]):
        raise ValueError(BYTES_EXPECTED)
    size = float(found[1]) * _UNITS[found[2].upper()] if "." in found[1] else int(found[1]) * _UNITS[found[2].upper()]
    if size > BYTES_MAX:
        raise ValueError(BYTES_EXPECTED)
    return Bytes(size)


def parse_tag(value: object) -> tuple[str, int]:
    """Return name and number of a text like ``gpu=2``. Raises ValueError if it is no such thing."""
    found = re.fullmatch(r"([a-z][a-z0-9_]{0,63})=(\d{1,5})", value, re.ASCII) if isinstance(value, str) else None
    if found is None or int(found[2]) > TAG_NUMBER_MAX:
        raise ValueError(TAG_EXPECTED)
    return found[1], int(found[2])


Time = Annotated[Seconds, Meta(description=SECONDS_EXPECTED)]
Patience = Annotated[PositiveSeconds, Meta(description=PATIENCE_EXPECTED)]
Size = Annotated[Bytes, Meta(description=BYTES_EXPECTED)]
PathText = Annotated[str, Meta(min_length=1, pattern=r"\A[^\0]*\Z", description="the path of a file or folder, as a text")]


Count = Annotated[int, Meta(ge=0, le=BYTES_MAX, description="a whole number, 0 or more")]


TagName = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9_]{0,63}\Z")]
TagNumber = Annotated[int, Meta(ge=0, le=TAG_NUMBER_MAX)]
TransferNumber = Annotated[int, Meta(ge=1, le=1000, description="a whole number, 1 to 1000")]
MirrorText = Annotated[str, Meta(pattern=r"\Ahttps?://[^\s/]+[^\s]*\Z")]
Tags = Annotated[dict[TagName, TagNumber], Meta(description=TAGS_EXPECTED)]


class KeepLogs(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """How long logs of builds are kept, and how many. What is beyond any of these goes, the oldest first; None for no end."""

    days: Optional[Annotated[float, Meta(ge=0, description="a number of days, 0 or more")]] = None
    size: Optional[Size] = None
    count: Optional[Count] = None


class KeepFailedTable(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """How many folders of failed builds are kept. What is beyond either goes, the oldest first; None for the usual bound."""

    count: Optional[Count] = None
    size: Optional[Size] = None


class FetchTable(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """How files are fetched."""

    transfers: Optional[TransferNumber] = None
    transfers_per_host: Optional[TransferNumber] = None
    parts_days: Optional[Annotated[float, Meta(ge=0, description="a number of days, 0 or more")]] = None
    parts_size: Optional[Size] = None
    hashed_mirrors: Optional[Annotated[list[MirrorText], Meta(description=MIRRORS_EXPECTED)]] = None


class SettingsFile(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What a settings file says; None for what it does not say. Paths are absolute."""

    store: Optional[PathText] = None
    state: Optional[PathText] = None
    socket: Optional[PathText] = None
    jobs: Optional[Annotated[int, Meta(ge=1, le=10_000, description="a whole number, 1 to 10000")]] = None
    exit_when_idle: Optional[Time] = None
    drain: Optional[Time] = None
    timeout: Optional[Time] = None
    silent_timeout: Optional[Time] = None
    timeout_max: Optional[Time] = None
    silent_timeout_max: Optional[Time] = None
    matcher_timeout: Optional[Time] = None
    worker_timeout: Optional[Patience] = None
    memory: Optional[Size] = None
    tags: Optional[Tags] = None
    log_size: Optional[Size] = None
    keep_logs: Optional[Annotated[KeepLogs, Meta(description="a table with some of days, size and count")]] = None
    keep_failed: Optional[Annotated[KeepFailedTable, Meta(description="a table with count, size or both")]] = None
    reserve: Optional[Size] = None
    fetch: Optional[Annotated[FetchTable, Meta(description="a table, like { transfers = 8 }")]] = None


_PATHS: Final = ("store", "state", "socket")


def read_settings(path: str, *, may_be_absent: bool = False) -> SettingsFile:
    """Return what the settings file at `path` says.

    Relative paths in it are relative to the folder it lies in; ``~`` is the home folder.

    Raises:
        UnreadableSettings: it is not there, unless it may be absent, or cannot be read.
        InvalidSettings: it is not TOML, or something in it is not what it may be. All faults are told.
    """
    import tomllib

    try:
        with open(path, "rb") as file:
            said = tomllib.load(file)
    except FileNotFoundError as error:
        if may_be_absent:
            return SettingsFile()
        raise UnreadableSettings(path, "there is no such file") from error
    except OSError as error:
        raise UnreadableSettings(path, error.strerror or str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidSettings(path, [f"expected TOML, found what is not: {error}"]) from error
    faults: list[str] = []
    settings = _checked(SettingsFile, said, "", faults)
    if faults:
        raise InvalidSettings(path, faults)
    folder = os.path.dirname(os.path.abspath(path))
    changes = {name: os.path.join(folder, os.path.expanduser(found)) for name in _PATHS if (found := getattr(settings, name)) is not None}
    return msgspec.structs.replace(settings, **changes)


def _checked(kind: type[S], said: Mapping[str, Any], prefix: str, faults: list[str]) -> S:
    """Return `said` as `kind`; what is wrong is added to `faults` and left out."""
    known = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in said.items():
        where = prefix + key
        field = known.get(key)
        if field is None:
            faults.append(f"{where}: there is no such key{_suggestion(key, known, prefix)}")
            continue
        described = msgspec.inspect.type_info(field.type)
        nested = _table_of(described)
        if nested is not None and isinstance(value, dict):
            values[field.name] = _checked(nested, value, f"{where}.", faults)
            continue
        try:
            values[field.name] = msgspec.convert(value, field.type, dec_hook=_decode)
        except msgspec.ValidationError:
            faults.append(f"{where}: expected {_expected(described)}, found {shown(value)}")
    return kind(**values)


def _suggestion(key: str, known: Mapping[str, object], prefix: str) -> str:
    import difflib

    close = difflib.get_close_matches(key.replace("_", "-").lower(), known, n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else f"; the keys are {', '.join(prefix + name for name in known)}"


def _decode(kind: type, value: object) -> object:
    if issubclass(kind, Seconds) and isinstance(value, str):
        raise ValueError(SECONDS_EXPECTED)  # as a text it is the command line's
    return {Seconds: parse_seconds, PositiveSeconds: parse_patience, Bytes: parse_bytes}[kind](value)


def _members(kind: msgspec.inspect.Type) -> list[msgspec.inspect.Type]:
    """Return a type and those that it is made of, outermost first."""
    if isinstance(kind, msgspec.inspect.Metadata):
        return [kind, *_members(kind.type)]
    if isinstance(kind, msgspec.inspect.UnionType):
        return [kind, *(member for part in kind.types for member in _members(part))]
    return [kind]


def _expected(kind: msgspec.inspect.Type) -> str:
    found = [
        (member.extra_json_schema or {}).get("description") for member in _members(kind) if isinstance(member, msgspec.inspect.Metadata)
    ]
    return str(found[0])


def _table_of(kind: msgspec.inspect.Type) -> Optional[type[msgspec.Struct]]:
    for member in _members(kind):
        if isinstance(member, msgspec.inspect.StructType):
            return member.cls
    return None
