"""What a language between two ends consists of: its methods and notifications, and their checked types.

`messages` and `worker_messages` each define one. Must not know any method by name, but for `hello`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, Optional, TypeVar, get_args

import msgspec

from pylightnix.protocol import _values as v
from pylightnix.protocol.errors import MessageInvalid

__all__ = ["HELLO", "Hello", "Message", "Method", "NotificationType", "Side", "Vocabulary", "Welcome", "in_words", "parse_message"]

HELLO: Final = "hello"
"""The method that must come first, in every vocabulary."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all params and results: one map on the wire.

    A field that this version does not know is ignored, so that a newer peer can send more; a field with a
    default may be absent, so that an older peer can send less. Both are how the protocol grows.
    """


class Hello(Message, frozen=True, kw_only=True):
    """What the params of every `hello` have."""

    versions: list[int]
    features: list[str] = msgspec.field(default_factory=list)


class Welcome(Message, frozen=True, kw_only=True):
    """What the result of every `hello` has. The connection fills these in, from both ends' offers."""

    version: int = 0
    features: list[str] = msgspec.field(default_factory=list)


class Side(Enum):
    """Who may say something."""

    client = "client"
    """Who connects and says hello."""
    server = "server"
    """Who answers."""


@dataclass(frozen=True, slots=True)
class Method:
    """What a client may ask."""

    params: type[Message]
    result: type[Message]
    read_only: bool = False
    """It changes nothing, is answered without queueing and also while the daemon drains."""


@dataclass(frozen=True, slots=True)
class NotificationType:
    """What is told without being asked."""

    params: type[Message]
    sender: Side


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One language: every method and every notification of either side, and the versions it comes in."""

    methods: Mapping[str, Method]
    notifications: Mapping[str, NotificationType]
    versions: tuple[int, ...] = (1,)

    @classmethod
    def of(cls, methods: dict[str, Method], notifications: dict[str, NotificationType]) -> Vocabulary:
        """Make a vocabulary that nobody changes by accident."""
        return cls(MappingProxyType(methods), MappingProxyType(notifications))


M = TypeVar("M", bound=msgspec.Struct)


def parse_message(value: Mapping[str, Any], wanted: type[M], request_id: Optional[int] = None) -> M:
    """Return the map `value` as a checked message.

    Types are taken at their word: no text is read as a number, no base64 text as bytes.

    Raises:
        MessageInvalid: a field is absent, of another type, or outside its range; `field` is the path to it,
            such as ``$.derivations[3].config``.
    """
    try:
        return msgspec.convert(value, wanted, strict=True, builtin_types=(bytes,))
    except UnicodeEncodeError as error:
        raise MessageInvalid("the name of a field is not UTF-8", "$", request_id) from error
    except msgspec.ValidationError as error:
        problem, found, where = str(error).rpartition(" - at ")
        if not found:
            problem, where = where, "$"
        raise MessageInvalid(in_words(problem), where.replace("`", ""), request_id) from error


_PATTERN: Final = " matching regex "
_WORDS: Final[Mapping[str, str]] = {
    kind.pattern: words
    for kind, words in (
        (found, words)
        for annotated, words in (
            (v.DRefText, "dref:<32 hex digits>-<name>"),
            (v.RRefText, "rref:<32 hex digits>-<32 hex digits>-<name>"),
            (v.Id, "a name of letters, digits, - and _"),
            (v.Subject, "dref:<32 hex digits>-<name>, rref:<32 hex digits>-<32 hex digits>-<name>, or the name of a build"),
            (v.Word, "a word of UTF-8"),
            (v.Label, "a text of UTF-8"),
            (v.Sha256, "64 hexadecimal digits"),
            (v.BlobKey, "64 hexadecimal digits, or nothing"),
            (v.PathText, "an absolute path"),
            (v.ImportPath, "a path without a null character"),
            (v.FolderName, "the name of a folder"),
            (v.TagName, "a small letter, then small letters, digits and _"),
            (v.VariableName, "the name of an environment variable"),
            (v.VariableValue, "a value without a null character"),
        )
        for found in get_args(annotated)
        if isinstance(found, msgspec.Meta)
    )
    if kind.pattern is not None
}
"""What the patterns of fields mean."""


def in_words(problem: str) -> str:
    """Return what msgspec says about a value, with a pattern replaced by what it means."""
    before, found, pattern = problem.partition(_PATTERN)
    if not found:
        return problem
    words = next((words for known, words in _WORDS.items() if repr(known) == pattern), "another text")
    return f"{before}: {words}"
