"""Configs: the JSON value that describes what is to be built, its canonical bytes and what stands in it.

Identity rests on `canonical_bytes`: sorted keys, minimal separators, UTF-8. Must not know any store.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator
from json.encoder import encode_basestring as _quoted
from typing import Any, Final, Optional

from pylightnix.errors import InvalidConfig, kind_of, shown
from pylightnix.refs import NAME_LENGTH_MAX, PYLIGHTNIX_NAMEPAT, assert_valid_name, isdref, isrref, isselfpath
from pylightnix.types import DRef, Hash, Name, RefPath

__all__ = [
    "Config",
    "ConfigAttrs",
    "RConfig",
    "assert_rref_deps",
    "assert_serializable",
    "assert_valid_config",
    "assert_valid_dict",
    "canonical_bytes",
    "canonical_deps",
    "cfgcattrs",
    "cfgdeps",
    "cfgdict",
    "cfghash",
    "cfgname",
    "cfgserialize",
    "cfgsp",
    "mkconfig",
    "readable_text",
    "resolve",
]

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_NEST_MAX = 100
"""Deepest nesting of a config. Far above what people write, far below where parsers give up."""


class Config:
    """A JSON dict that fully describes what is to be built. `val` is a deep copy of what was given."""

    def __init__(self, d: dict[str, Any]) -> None:
        self.val: dict[str, Any] = copy.deepcopy(d)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.val!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Config) or type(self) is not type(other):
            return False
        try:
            return canonical_bytes(self.val) == canonical_bytes(other.val)  # as their references are: 1 is not True, NaN is NaN
        except (TypeError, ValueError, RecursionError):
            return self.val == other.val  # not checked by mkconfig yet

    __hash__ = None  # type: ignore[assignment]  # mutable, as programs expect


class RConfig(Config):
    """A config whose self-paths were replaced by refpaths of its own derivation."""


class ConfigAttrs:
    """An object with the items of a dict as attributes."""

    def __init__(self, d: dict[str, Any]) -> None:
        self.__dict__.update(d)


def _key_path(where: str, key: str) -> str:
    return f"{where}.{key}" if key.isidentifier() else f"{where}[{shown(key)}]"


def _json_text(value: str, where: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidConfig(
            where,
            f"the text {value!r} has a lone surrogate at position {error.start}",
            "give text that UTF-8 can encode; for a file name that is not UTF-8 use os.fsencode(…).hex()",
        ) from error
    return str.__str__(value)


def _json_int(value: int, where: str) -> int:
    try:
        int.__repr__(value)
    except ValueError as error:  # Python's limit on converting huge integers, 4300 digits unless changed
        raise InvalidConfig(where, "the integer has too many digits", "give it as text, for example hex(x)") from error
    return int(value)


_ADVICE: Final = {
    "builtins.tuple": "give a list: list(x)",
    "builtins.set": "give a sorted list: sorted(x)",
    "builtins.frozenset": "give a sorted list: sorted(x)",
    "builtins.range": "give a list: list(x)",
    "builtins.bytes": "give text: x.hex(), or pass the bytes through mknode(…, artifacts=…)",
    "builtins.bytearray": "give text: x.hex(), or pass the bytes through mknode(…, artifacts=…)",
    "builtins.complex": "give a list: [x.real, x.imag]",
    "builtins.type": "give its name, or the numbers and texts that say what you mean by it",
    "datetime.date": "give text: x.isoformat()",
    "datetime.time": "give text: x.isoformat()",
    "datetime.timedelta": "give a number: x.total_seconds()",
    "decimal.Decimal": "give text: str(x)",
    "enum.Enum": "give what it stands for: x.value",
    "numpy.generic": "give a Python number: x.item()",
    "numpy.ndarray": "give a list: x.tolist(), or pass the array through a stage that writes it to a file",
    "pathlib.PurePath": "give text: str(x); for a file whose contents count, depend on source(x)",
    "pylightnix.autostage.AutoStage": "call it, and give the DRef that it returns: x(r=r)",
    "pylightnix.config.Config": "give its dict: cfgdict(x)",
    "pylightnix.lens.Lens": "give what it points at: x.val",
    "pylightnix.registry.Registry": "leave it out, or name it 'r'",
    "uuid.UUID": "give text: str(x)",
}
"""What to write in place of an object of a class, or of a subclass. By name, so that nothing is imported for it."""


def _class_names(cls: type) -> Iterator[str]:
    for base in cls.__mro__:
        # Some move within their packages from one Python to the next: pathlib.PurePath is pathlib._local.PurePath in 3.13.
        package = base.__module__ if base.__module__.startswith("pylightnix.") else base.__module__.partition(".")[0]
        yield f"{package}.{base.__qualname__}"


def _advice(value: object) -> str:
    for name in _class_names(type(value)):
        if name in _ADVICE:
            return _ADVICE[name]
    if hasattr(value, "dtype"):  # of torch and its kin
        return _ADVICE["numpy.ndarray" if hasattr(value, "tolist") else "numpy.generic"]
    if callable(value):
        return (
            "if it is a stage, call it, and give the DRef that it returns: x(r=r); if not, the config says what it is to do, "
            "in numbers and texts, and the realizer calls it"
        )
    return "a config holds dicts with text keys, lists, text, numbers, booleans and None"


class _Unfit(Exception):
    """Something that JSON cannot hold; where it was is found out by a second, slower walk."""


def _json_copy(value: Any, depth: int = 0) -> Any:
    """Return a copy of `value` made of plain JSON types only, or raise `_Unfit`."""
    kind = type(value)
    if kind is str or isinstance(value, str):
        if not value.isascii():
            return _json_text(value, "")
        return value if kind is str else str.__str__(value)
    if value is None or kind is bool or kind is float:
        return value
    if kind is int and -(1 << 63) < value < 1 << 63:
        return value
    if depth > _NEST_MAX:
        raise _Unfit
    if kind is dict:
        for key in value:
            if type(key) is not str or not key.isascii():
                return {_json_key(key): _json_copy(item, depth + 1) for key, item in value.items()}
        return {key: _json_copy(item, depth + 1) for key, item in value.items()}
    if kind is list:
        return [_json_copy(item, depth + 1) for item in value]
    return _json_copy_of_subclass(value, depth)


def _json_key(key: Any) -> str:
    if not isinstance(key, str):
        raise _Unfit
    return _json_text(key, "")


def _json_copy_of_subclass(value: Any, depth: int) -> Any:
    """Bring texts, numbers and containers of derived types (a DRef, numpy.float64) down to the plain type."""
    if isinstance(value, int):
        return _json_int(value, "")
    if isinstance(value, float):
        return float(value)
    if isinstance(value, dict):
        return _json_copy(dict(value), depth)
    if isinstance(value, list):
        return _json_copy(list(value), depth)
    raise _Unfit


def _explain(value: Any, where: str, depth: int = 0) -> None:
    """Raise `InvalidConfig` with the path to the first thing in `value` that JSON cannot hold."""
    if isinstance(value, str):
        _json_text(value, where)
    elif isinstance(value, int):
        _json_int(value, where)
    elif value is None or isinstance(value, float):
        return
    elif depth > _NEST_MAX:
        raise InvalidConfig(where, f"nested deeper than {_NEST_MAX} levels", "flatten it, or check for a list that holds itself")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidConfig(where, f"the key {shown(key)} is {kind_of(key)}", "keys are text: str(key)")
            _json_text(key, f"{where} (a key)")
            _explain(item, _key_path(where, key), depth + 1)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _explain(item, f"{where}[{i}]", depth + 1)
    else:
        raise InvalidConfig(where, f"{shown(value)} is {kind_of(value)}, which JSON cannot hold", _advice(value))


def _checked_copy(value: Any, where: str = "config") -> Any:
    try:
        return _json_copy(value)
    except (_Unfit, InvalidConfig):
        _explain(value, where)
        raise AssertionError("BUG: the fast check refuses what the explaining one accepts") from None


def canonical_bytes(value: Any) -> bytes:
    """Return the canonical JSON of a value that is plain JSON: sorted keys, minimal separators, UTF-8.

    NaN and the infinities are spelt as Python's json module spells them.
    """
    return _CANONICAL.encode(value).encode("utf-8")


def readable_text(value: Any) -> str:
    """Return the form of the same value that stands on disk for people: sorted, indented, a final newline."""
    return _readable(value, "\n") + "\n"


def _readable(value: Any, newline: str) -> str:
    """Return what ``json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False)`` does.

    With an indent, that is a chain of generators in Python: seven times slower, and half of what it costs to
    write a derivation.
    """
    if isinstance(value, str):
        return _quoted(value)
    if type(value) is int:
        return int.__repr__(value)
    if not value or not isinstance(value, (dict, list)):
        return _CANONICAL.encode(value)
    inner = newline + "  "
    if isinstance(value, dict):
        items = [f"{_quoted(key)}: {_readable(value[key], inner)}" for key in sorted(value)]
        return f"{{{inner}{f',{inner}'.join(items)}{newline}}}"
    return f"[{inner}{f',{inner}'.join([_readable(item, inner) for item in value])}{newline}]"


def mkconfig(d: dict[str, Any]) -> Config:
    """Return the config of the dict `d`, checked and copied.

    A key ``r`` that holds a `Registry` is dropped, so that ``mkconfig(locals())`` works inside a stage.

    Raises:
        InvalidConfig: a value is not JSON (the message has the path to it).
        InvalidName: the item ``name`` cannot stand in a reference.
    """
    if not isinstance(d, dict):
        raise InvalidConfig("config", f"{shown(d)} is {kind_of(d)}", "a config is a dict")
    if "r" in d and "pylightnix.registry.Registry" in _class_names(type(d["r"])):
        d = {key: value for key, value in d.items() if key != "r"}
    config = Config.__new__(Config)
    config.val = _checked_copy(d)
    assert_valid_name(cfgname(config))
    return config


def assert_valid_config(c: Config) -> Config:
    """Return `c` if it is a valid config; raise what `mkconfig` raises otherwise."""
    if not isinstance(c, Config):
        raise InvalidConfig("config", f"{shown(c)} is {kind_of(c)}", "make one with mkconfig({…})")
    _checked_copy(c.val)
    assert_valid_name(cfgname(c))
    return c


def assert_valid_dict(d: dict[str, Any], argname: str) -> dict[str, Any]:
    """Return `d` if it is a dict that a config could hold; raise `InvalidConfig` otherwise.

    Args:
        d: what to check.
        argname: how the error calls it.
    """
    if not isinstance(d, dict):
        raise InvalidConfig(argname, f"{shown(d)} is {kind_of(d)}", "pass a dict of JSON values")
    _checked_copy(d, argname)
    return d


def assert_serializable(d: Any, argname: str = "dict") -> Any:
    """Return a plain copy of `d`, as it comes back from JSON; raise `InvalidConfig` if it would come back changed.

    Args:
        d: any JSON value.
        argname: how the error calls it.
    """
    return _checked_copy(d, argname)


def cfgdict(cp: Config) -> dict[str, Any]:
    """Return a deep copy of the config's dict."""
    return copy.deepcopy(cp.val)


def cfgcattrs(c: Config) -> Any:
    """Return the config's items as attributes of an object."""
    return ConfigAttrs(cfgdict(c))


def cfgname(c: Config) -> Name:
    """Return the config's name: its item ``name`` as text, ``unnamed`` without one."""
    return Name(str(c.val.get("name", "unnamed")))


def cfgserialize(c: Config) -> str:
    """Return the canonical JSON text of the config, over which its hash is taken."""
    return canonical_bytes(c.val).decode("utf-8")


def cfghash(c: Config) -> Hash:
    """Return the SHA-256 of the config's canonical form."""
    return Hash(hashlib.sha256(canonical_bytes(c.val)).hexdigest())


def _leaves(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield every text that stands as a value at any depth, with the path to it. Keys do not count."""
    stack = [(where, value)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, str):
            yield path, item
        elif isinstance(item, dict):
            stack.extend((_key_path(path, key), v) for key, v in item.items())
        elif isinstance(item, list):
            stack.extend((f"{path}[{i}]", v) for i, v in enumerate(item))


def cfgdeps(c: Config) -> set[DRef]:
    """Return every DRef that stands as a value anywhere in the config, heads of refpaths included."""
    return {DRef(text) for text in _texts(c.val) if text.startswith("dref:") and isdref(text)}


_CANONICAL_DREF = re.compile(rf'(?<!\\)"(dref:[0-9a-f]{{32}}-{PYLIGHTNIX_NAMEPAT}{{1,{NAME_LENGTH_MAX}}})"(?!:)'.encode())
# A quote inside a text follows a backslash, one around it never; one that ends a key precedes a colon, others never.


def canonical_deps(canonical: bytes) -> tuple[DRef, ...]:
    """Return what `cfgdeps` finds, sorted, given the canonical form: faster than a walk."""
    if b'"dref:' not in canonical:
        return ()
    return tuple([DRef(text.decode("ascii")) for text in sorted(set(_CANONICAL_DREF.findall(canonical)))])


def _texts(value: Any) -> Iterator[str]:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def assert_rref_deps(c: Config) -> None:
    """Raise `InvalidConfig` if the config holds a realization reference: nobody could rebuild that."""
    for where, text in _leaves(c.val, "config"):
        if text.startswith("rref:") and isrref(text):
            raise InvalidConfig(where, f"{text} is a realization", "depend on its derivation: rref2dref(…)")


def cfgsp(c: Config) -> list[tuple[str, RefPath]]:
    """Return the config's self-paths (what it promises), each with the text of its key or list index."""
    found: list[tuple[str, RefPath]] = []

    def visit(key: str, value: Any) -> None:
        if isselfpath(value):
            found.append((key, value))
        elif isinstance(value, dict):
            for k, v in value.items():
                visit(str(k), v)
        elif isinstance(value, list):
            for i, v in enumerate(value):
                visit(str(i), v)

    for key, value in c.val.items():
        visit(str(key), value)
    return found


def _resolved(value: Any, head: Optional[DRef]) -> Any:
    if isinstance(value, dict):
        return {k: _resolved(v, head) for k, v in value.items()}
    if isinstance(value, list):
        if isselfpath(value):
            return [str(head), *value[1:]]
        return [_resolved(v, head) for v in value]
    return value


def resolve(c: Config, r: DRef) -> RConfig:
    """Return a copy of the config in which every self-path is a refpath of the derivation `r`."""
    config = RConfig.__new__(RConfig)
    config.val = _resolved(c.val, r)
    return config
