"""Data that code reaches, as hashes and nodes: the same mean equal values, in every process and on every machine.

Functions and classes inside data are left to whoever asks. Must not know how code is found.

Rules:

- Values of plain types count as they are, with the order of lists and dictionaries; sets have none. All else counts by
  what `state_of` says.
- A value without code in it is a hash. One that has code in it, or leads back to itself, is a node with edges.
- Text and paths that lead into, or beside, the folder of the module are taken from there (`mark`).
- Walked with a stack of its own: data may be nested however deep.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import marshal
import types
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Optional, TypeAlias, Union

from pylightnix._codegraph import UNORDERED, Content, Edge, Node
from pylightnix._codenumpy import array_fingerprint, is_array
from pylightnix._codestates import Changed, CodeIn, State, Unseen, Used, code_in, state_of
from pylightnix._origins import is_project_class, is_project_module, package_of
from pylightnix._placing import mark
from pylightnix._wrappers import is_code
from pylightnix.errors import CodeKeyError, shown

__all__ = ["Encoder", "fingerprint", "shown_value", "type_text"]

_VALUES_MAX: Final = 1_000_000
"""Most objects that one value may hold, not counting numbers and texts side by side."""
_SHOWN_CHARACTERS: Final = 60
_SHOWN_LEVELS: Final = 3
_CONTAINERS: Final = frozenset({list, tuple, dict, set, frozenset})
_FLAT: Final = frozenset({str, int, float, complex, bytes, bool, type(None)})
_MARSHAL_VERSION: Final = 2
"""Has no references to what was written before, which depend on what else holds a value."""
_TEXT_MAX: Final = 64
_SINGLE: Final = {id(None): b"none", id(Ellipsis): b"...", id(NotImplemented): b"ni", id(True): b"true", id(False): b"false"}

Token: TypeAlias = Union[bytes, Node]
"""What stands for a value: bytes, or a node if there is code in it."""


class TooMuch(Exception):
    """A value is too large to count."""


@dataclass(frozen=True, slots=True)
class _Made:
    """What a value came to, before it is known whether it leads back to itself."""

    kind: bytes
    parts: list[Token]
    is_ordered: bool = True


_Walk: TypeAlias = Generator[Any, Token, _Made]


@dataclass(slots=True)
class Encoder:
    """Turns values into tokens."""

    code: Callable[[Any], Token]
    """Called with functions, classes and modules on the way; returns what stands for one."""
    is_changed: Changed = lambda cls, name: ""
    filename: str = ""
    """Of the module that has the values; empty if there is none."""
    problems: list[str] = field(default_factory=list)
    """What was met that does not count as it should."""
    is_plain: bool = True
    """Whether all that was met is of exact plain types, and met once."""
    has_state: bool = False
    """Whether a part does not count as it is, for code changes it or it changes as it is used."""
    changed: list[Any] = field(default_factory=list)
    """Such parts."""
    _count: int = 0
    _open: dict[int, list[Node]] = field(default_factory=dict)
    _done: dict[int, Token] = field(default_factory=dict)
    _kept: list[Any] = field(default_factory=list)  # so that no id is given anew

    def of(self, value: Any) -> Token:
        """Return what stands for a value."""
        try:
            return self._walk(value)
        except TooMuch as error:
            self.problems = [f"it is {error}"]
            return type_text(value)

    def code_in(self, value: Any) -> Token:
        """Return what stands for a value that code changes: for its type, and for the code in it."""
        return self._token(value, self._code_in(value))

    # --- the walk -------------------------------------------------------------------------------------

    def _walk(self, whole: Any) -> Token:
        stack: list[tuple[Any, _Walk]] = []
        token = self._begun(whole)
        while True:
            if not isinstance(token, (bytes, Node)):
                stack.append(token)
                value, walk = token
                sent = None
            elif stack:
                value, walk = stack[-1]
                sent = token
            else:
                return token
            try:
                token = self._begun(walk.send(sent))  # type: ignore[arg-type]  # None begins it
            except StopIteration as stop:
                stack.pop()
                token = self._token(value, stop.value)

    def _begun(self, value: Any) -> Token | tuple[Any, _Walk]:
        """Return the token of a value, or the walk through it that gives one."""
        cls = type(value)
        if cls is str:
            text = mark(value, self.filename) if value[:1] == "/" else value
            return _short(b"s" + text.encode("utf-8", "surrogatepass"))
        if cls is int:
            return _short(b"i%x" % value)
        if cls is float or cls is complex:
            return b"f" + repr(value).encode("ascii")
        if cls is bytes:
            return _short(b"b" + value)
        if id(value) in _SINGLE:
            return _SINGLE[id(value)]
        if cls in _CONTAINERS:
            return self._compound(value)
        self.is_plain = False
        return self.code(value) if is_code(value) else self._compound(value)

    def _compound(self, value: Any) -> Token | tuple[Any, _Walk]:
        known = self._done.get(id(value))
        if known is not None:
            self.is_plain = False  # written out, what is shared many times over has no end
            return known
        opened = self._open.get(id(value))
        if opened is not None:  # a value that leads back to itself
            if not opened:
                opened.append(Node("", Content("part")))
            return opened[0]
        self._count += 1
        if self._count > _VALUES_MAX:
            raise TooMuch(f"of more than {_VALUES_MAX} objects")
        self._kept.append(value)
        flat = _flat(value)
        if flat is not None:
            self._done[id(value)] = flat
            return flat
        self._open[id(value)] = []
        return value, self._parts(value)

    def _token(self, value: Any, made: _Made) -> Token:
        opened = self._open.pop(id(value), [])
        edges = []
        parts = [b"" if isinstance(part, Node) else part for part in made.parts]
        for number, part in enumerate(made.parts):
            if isinstance(part, Node):
                edges.append(Edge(f"{number:09}" if made.is_ordered else UNORDERED, part))
        text = _digest(made.kind, parts if made.is_ordered else sorted(parts))
        token: Token = text
        if edges or opened:
            token = opened[0] if opened else Node("", Content("part"))
            token.content.text, token.content.edges = text, edges
        self._done[id(value)] = token
        return token

    # --- values ---------------------------------------------------------------------------------------

    def _parts(self, value: Any) -> _Walk:
        cls = type(value)
        try:
            if cls is list or cls is tuple:
                return (yield from self._items(cls.__name__, value))
            if cls is dict:
                return (yield from self._pairs(value))
            if cls is set or cls is frozenset:
                return (yield from self._items(cls.__name__, value, is_ordered=False))
            if cls is bytearray:
                return _Made(b"bytearray", [hashlib.sha256(value).digest()])
            if cls is CodeIn:
                self.has_state = True
                self.changed.append(value.value)
                return self._code_in(value.value)
            if issubclass(type(cls), enum.EnumMeta):
                # Flags that are set together have other names in other Pythons.
                which = value._value_ if issubclass(cls, enum.Flag) else value._name_
                return _Made(b"member", [self.code(cls), (yield which)])
            if issubclass(cls, types.ModuleType):
                return self._module(value)
            return (yield from self._object(value))
        except (CodeKeyError, TooMuch):
            raise
        except Exception as error:  # noqa: BLE001  # what users' classes do
            self._problem(f"looking at it raises {type(error).__name__}", value)
            return _Made(b"type", [type_text(value)])

    def _items(self, kind: str, items: Any, is_ordered: bool = True) -> _Walk:
        parts = []
        for item in items:
            parts.append((yield item))  # noqa: PERF401  # a comprehension cannot yield
        return _Made(kind.encode("utf-8"), parts, is_ordered)

    def _pairs(self, value: dict[Any, Any]) -> _Walk:
        parts = []
        for key, item in list(value.items()):
            parts += [(yield key), (yield item)]
        return _Made(b"dict", parts)

    def _object(self, value: Any) -> _Walk:
        state = state_of(value, self.is_changed)
        if isinstance(state, State):
            self._kept.append(state.children)
            return (yield from self._items(state.kind, state.children, state.is_ordered))
        if isinstance(state, Used):
            self.has_state = True
            return _Made(b"used", [self.code(type(value))])
        if isinstance(state, Unseen):
            self._problem(state.problem, value)
        return _Made(b"type", [type_text(value)])

    def _module(self, value: types.ModuleType) -> _Made:
        if not is_project_module(value.__name__):
            return _Made(b"module", [self.code(value)])
        self._problem(f"the module {value.__name__}, used as a value", value)
        return _Made(b"type", [type_text(value)])

    def _code_in(self, value: Any) -> _Made:
        return _Made(b"code in", [self.code(item) for item in code_in(value)], is_ordered=False)

    def _problem(self, what: str, value: Any) -> None:
        is_whole = len(self._open) == 1
        if not what.startswith("looking"):
            what = f"it is {what}" if is_whole else f"it holds something that is {what}"
        if what not in self.problems:
            self.problems.append(what)


def _flat(value: Any) -> Optional[bytes]:
    """Return the token of a container of numbers and texts side by side, at once; None for all else."""
    cls = type(value)
    if cls is list or cls is tuple:
        return _flat_token(cls.__name__, list(value)) if _is_flat(value) else None
    if cls is dict:
        return _flat_token("dict", [list(value), list(value.values())]) if _is_flat(value) and _is_flat(value.values()) else None
    if (cls is set or cls is frozenset) and _is_flat(value):
        return _flat_token(cls.__name__, sorted([marshal.dumps(item, _MARSHAL_VERSION) for item in value]))
    return None


def _flat_token(kind: str, items: list[Any]) -> bytes:
    return b"#" + hashlib.sha256(f"flat {kind}:".encode("ascii") + marshal.dumps(items, _MARSHAL_VERSION)).digest()


def _is_flat(items: Iterable[Any]) -> bool:
    """Tell whether items are numbers and texts, none of which may be a path of the project's."""
    kinds = set(map(type, items))
    return kinds <= _FLAT and not (str in kinds and any(type(item) is str and item[:1] == "/" for item in items))


def _short(text: bytes) -> bytes:
    return text if len(text) <= _TEXT_MAX else b"#" + hashlib.sha256(text).digest()


def _digest(kind: bytes, parts: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256(kind)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return b"#" + digest.digest()


def type_text(value: Any) -> bytes:
    """Return the text of a value that counts by its type only."""
    cls = type(value)
    package = package_of(cls.__module__)
    # Names of classes in `typing` differ from Python to Python.
    name = "" if package in ("typing", "types") else f".{cls.__qualname__}"
    return f"<{package if not is_project_class(cls) else ''}{name}>".encode("utf-8", "surrogatepass")


def shown_value(value: Any) -> str:
    """Return a short rendering for people, the same in every process."""
    return _cut(_brief(value, _SHOWN_LEVELS))


def _brief(value: Any, levels: int) -> str:
    cls = type(value)
    if cls in _FLAT:
        return shown(value[: _SHOWN_CHARACTERS + 1] if cls in (str, bytes) else value, _SHOWN_CHARACTERS)
    if cls is types.FunctionType or issubclass(cls, type):
        return str(value.__qualname__)
    if cls is dict and levels:
        return "{" + ", ".join(f"{_brief(key, levels - 1)}: {_brief(item, levels - 1)}" for key, item in _first(value.items())) + "}"
    if cls in (list, tuple) and levels:
        inner = ", ".join(_brief(item, levels - 1) for item in _first(value))
        return f"[{inner}]" if cls is list else f"({inner}{',' if len(value) == 1 else ''})"
    if cls in (set, frozenset) and levels and len(value) <= _SHOWN_CHARACTERS:
        return "{" + ", ".join(sorted(_brief(item, levels - 1) for item in value)) + "}"
    return f"<{cls.__qualname__}>"


def _first(items: Iterable[Any]) -> list[Any]:
    return list(itertools.islice(items, _SHOWN_CHARACTERS // 2))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def fingerprint(value: Any, is_changed: Changed, is_plain: bool) -> Any:
    """Return what stays equal, within this process, as long as a value is the same.

    Args:
        value: what is looked at.
        is_changed: as it was told when the value was encoded.
        is_plain: whether all in it was of plain types then, which is quicker to look at.
    """
    if is_array(value):
        return array_fingerprint(value)
    if is_plain and type(value) in (set, frozenset) and _is_flat(value):
        return len(value), hash(frozenset(value))
    if is_plain:
        try:
            return marshal.dumps(value, _MARSHAL_VERSION)
        except ValueError:  # nested more deeply than that allows, or not plain any more
            pass
    found: list[Any] = []

    def note(pyobj: Any) -> bytes:
        found.append(pyobj)  # which keeps its id
        return b"@%d" % id(pyobj)

    return Fingerprint(Encoder(note, is_changed).of(value), found)


class Fingerprint:
    """A value as a token, whose code is told apart by what it is."""

    def __init__(self, token: Token, kept: list[Any]) -> None:
        self._kept = kept
        self._hash = token if isinstance(token, bytes) else _token_hash(token)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self._hash == other._hash

    __hash__ = None  # type: ignore[assignment]  # compared only


def _token_hash(token: Node) -> bytes:
    from pylightnix._codegraph import hashes, reached

    return hashes(reached([token], lambda node: node.content))[token]
