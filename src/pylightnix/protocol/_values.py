"""The kinds of values that fields hold, each with what makes it valid. Must not know any message."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

from msgspec import Meta

from pylightnix.protocol.limits import (
    BLOB_BYTES_MAX,
    BLOB_PIECE_BYTES_MAX,
    CONFIG_BYTES_MAX,
    DERIVATIONS_PER_MESSAGE_MAX,
    PICKLED_BYTES_MAX,
    ROWS_PER_MESSAGE_MAX,
)

# The patterns of `refs`, anchored: msgspec searches, and a dollar sign would let a newline pass.
_HEX: Final = "[0-9a-f]{32}"
_NAME: Final = "[a-zA-Z0-9_-]{1,211}"
_DREF: Final = f"dref:{_HEX}-{_NAME}"
_RREF: Final = f"rref:{_HEX}-{_HEX}-{_NAME}"
_ID: Final = "[a-zA-Z0-9_-]{1,64}"
_TEXT_MAX: Final = 65_536

DRefText: TypeAlias = Annotated[str, Meta(pattern=rf"\A{_DREF}\Z", title="dref")]
RRefText: TypeAlias = Annotated[str, Meta(pattern=rf"\A{_RREF}\Z", title="rref")]
Id: TypeAlias = Annotated[str, Meta(pattern=rf"\A{_ID}\Z", title="id")]
"""Names an operation, a build, a claim or a match. Opaque to whoever did not make it."""
Subject: TypeAlias = Annotated[str, Meta(pattern=rf"\A({_DREF}|{_RREF}|{_ID})\Z", title="dref, rref or id")]
Sha256: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z", title="sha256")]
BlobKey: TypeAlias = Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z", title="sha256 or empty")]

# What is written down or shown must be UTF-8. Only what the system itself takes as bytes may be anything else.
_UTF8: Final = r"[^\ud800-\udfff]"
Word: TypeAlias = Annotated[str, Meta(pattern=rf"\A{_UTF8}+\Z", min_length=1, max_length=64, title="word")]
Label: TypeAlias = Annotated[str, Meta(pattern=rf"\A{_UTF8}*\Z", max_length=256, title="label")]
Text: TypeAlias = Annotated[str, Meta(pattern=rf"\A{_UTF8}*\Z", max_length=_TEXT_MAX, title="text")]
PathText: TypeAlias = Annotated[str, Meta(pattern=r"\A/[^\x00]*\Z", max_length=4096, title="path")]
ImportPath: TypeAlias = Annotated[str, Meta(pattern=r"\A[^\x00]*\Z", max_length=4096, title="path entry")]
FolderName: TypeAlias = Annotated[str, Meta(pattern=r"\A(?!\.{1,2}\Z)[^/\x00]{1,255}\Z", title="folder name")]
TagName: TypeAlias = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9_]{0,63}\Z", title="tag")]
VariableName: TypeAlias = Annotated[str, Meta(pattern=r"\A[^=\x00]+\Z", max_length=4096, title="variable name")]
VariableValue: TypeAlias = Annotated[str, Meta(pattern=r"\A[^\x00]*\Z", max_length=131_072, title="variable value")]

Canonical: TypeAlias = Annotated[bytes, Meta(min_length=2, max_length=CONFIG_BYTES_MAX, title="canonical JSON")]
Piece: TypeAlias = Annotated[bytes, Meta(max_length=BLOB_PIECE_BYTES_MAX, title="piece")]
Pickled: TypeAlias = Annotated[bytes, Meta(max_length=PICKLED_BYTES_MAX, title="pickled exception")]
Callable: TypeAlias = Annotated[bytes, Meta(max_length=BLOB_BYTES_MAX, title="callable")]

Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53, title="count")]
Positive: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1, title="positive")]
Priority: TypeAlias = Annotated[int, Meta(ge=-1000, le=1000, title="priority")]
PageSize: TypeAlias = Annotated[int, Meta(ge=1, le=ROWS_PER_MESSAGE_MAX, title="page size")]
PieceSize: TypeAlias = Annotated[int, Meta(ge=1, le=BLOB_PIECE_BYTES_MAX, title="piece size")]
BlobSize: TypeAlias = Annotated[int, Meta(ge=0, le=BLOB_BYTES_MAX, title="blob size")]
Pid: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1, title="pid")]
Uid: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1, title="uid")]
Umask: TypeAlias = Annotated[int, Meta(ge=0, le=0o777, title="umask")]
Status: TypeAlias = Annotated[int, Meta(ge=-255, le=255, title="exit status")]
# Bounded above so that neither an infinity nor a NaN gets into anyone's arithmetic.
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=1e12, title="seconds")]

DRefs: TypeAlias = list[DRefText]
RRefs: TypeAlias = list[RRefText]
Configs: TypeAlias = Annotated[list[Canonical], Meta(max_length=DERIVATIONS_PER_MESSAGE_MAX)]
Tags: TypeAlias = dict[TagName, Positive]
Devices: TypeAlias = dict[TagName, list[Count]]
JSONFields: TypeAlias = dict[str, Any]
"""Names to any JSON values: what an error carries, which differs from class to class."""
