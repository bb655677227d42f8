"""Realizers, matchers and arguments as bytes.

What the package itself defines travels by name and arguments. Of all else, code in importable modules
travels by reference (module and qualified name), code of `__main__`, notebooks and inner functions by
value, as cloudpickle has it. Wrappers hold no config, so that equal code gives equal bytes wherever
pickling allows (classes that travel by value, and sets, may differ from process to process). What cannot
travel is left with the caller, and the reason is told. Must not know how the bytes get anywhere.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Optional, cast

import cloudpickle  # type: ignore[import-untyped]  # it ships no type information
import msgpack  # type: ignore[import-untyped]  # it ships no type information

from pylightnix.autodrv import RawBody
from pylightnix.autostage import AutoStage
from pylightnix.errors import Misuse, PylightnixException
from pylightnix.fetch.environment import read_environment
from pylightnix.matchers import BuiltinMatcher, _MatchAll, _MatchExact, _MatchLatest, _MatchOnly, _MatchSome
from pylightnix.options import SteeredRealizer
from pylightnix.stagebody import StageBody, named
from pylightnix.stages.command import CommandRealizer
from pylightnix.stages.fetch import FetchRealizer
from pylightnix.stages.node import NodeRealizer
from pylightnix.stages.source import SourceRealizer
from pylightnix.travel.claims import ClaimedRealizer, CodeClaim
from pylightnix.travel.script import Namespace, code_reduced
from pylightnix.types import Matcher, RealizeArg, Realizer, RRef

__all__ = [
    "Packed",
    "PackedMatcher",
    "builtin_matcher",
    "pack_arguments",
    "pack_claimed",
    "pack_matcher",
    "pack_realizer",
    "unpack",
    "unpack_node",
]


@dataclass(frozen=True, slots=True)
class Packed:
    """A realizer, or the arguments of one, ready to travel."""

    kind: str
    """``command`` (all is in the config), ``mknode`` (`blob` is a MessagePack map of file names to bytes),
    ``fetch`` (`blob` is as `pack_fetch` makes it), ``python`` (`blob` is a pickle), or ``caller`` (it cannot travel)."""
    blob: Optional[bytes]
    reason: str
    """Why it cannot travel; else empty."""


@dataclass(frozen=True, slots=True)
class PackedMatcher:
    """A matcher, ready to travel."""

    kind: str
    """``latest``, ``some`` (both with `n`), ``only``, ``all``, ``exact`` (with `rrefs`), ``python`` (with `blob`), or ``caller``."""
    n: int
    rrefs: tuple[RRef, ...]
    blob: Optional[bytes]
    reason: str
    """Why it cannot travel; else empty."""


# --- packing ------------------------------------------------------------------------------------------


def pack_realizer(realizer: Realizer) -> Packed:
    """Return a realizer as bytes. Never fails: what cannot be packed is of the kind ``caller``.

    Options of a realizer of Python travel in its bytes; of all kinds, `options_of` tells them.
    """
    bare = realizer.realizer if isinstance(realizer, SteeredRealizer) else realizer
    if type(bare) is CommandRealizer:
        return Packed("command", None, "")
    if type(bare) is NodeRealizer:
        return Packed("mknode", cast(bytes, msgpack.packb(dict(bare.artifacts))), "")
    if type(bare) is FetchRealizer:
        return _packed_fetch(bare)
    if type(bare) is SourceRealizer:
        return Packed("caller", None, "it hands over a file or folder that only its program may be able to read")
    return _packed(realizer)


def pack_claimed(blob: bytes, claim: CodeClaim) -> Packed:
    """Return a packed realizer of Python with what is said of its code."""
    return Packed("python", dumps(ClaimedRealizer(blob, claim)), "")


def _packed_fetch(realizer: FetchRealizer) -> Packed:
    from pylightnix.travel.fetching import pack_fetch

    if realizer.is_local:
        return Packed("caller", None, "it takes a local file, which only the program that asks for it is sure to be allowed to open")
    return Packed("fetch", pack_fetch(realizer, read_environment(os.environ)), "")


def pack_arguments(arguments: RealizeArg) -> Packed:
    """Return what a realizer gets as its last argument, as bytes; none are no bytes. Never fails."""
    return _packed(arguments) if arguments else Packed("python", None, "")


def pack_matcher(matcher: Matcher) -> PackedMatcher:
    """Return a matcher as its name and arguments, or as bytes. Never fails."""
    # Exact types: a subclass decides in its own way.
    if type(matcher) is _MatchLatest:
        return PackedMatcher("latest", matcher.n, (), None, "")
    if type(matcher) is _MatchSome:
        return PackedMatcher("some", matcher.n, (), None, "")
    if type(matcher) is _MatchOnly:
        return PackedMatcher("only", 0, (), None, "")
    if type(matcher) is _MatchAll:
        return PackedMatcher("all", 0, (), None, "")
    if type(matcher) is _MatchExact:
        return PackedMatcher("exact", 0, matcher.rrefs, None, "")
    packed = _packed(matcher)
    return PackedMatcher(packed.kind, 0, (), packed.blob, packed.reason)


def _packed(value: Any) -> Packed:
    try:
        return Packed("python", dumps(value), "")
    except Exception as error:  # noqa: BLE001  # pickling calls methods of users' objects
        return Packed("caller", None, f"it cannot be pickled: {type(error).__name__}: {error}"[:1000])


# --- pickling -----------------------------------------------------------------------------------------


class _Packer(cloudpickle.Pickler):  # type: ignore[misc]  # its base is unknown to mypy
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._texts: dict[str, Optional[str]] = {}
        for name in ("__main__", *cloudpickle.list_registry_pickle_by_value()):
            module = sys.modules.get(name)
            if module is not None:  # cloudpickle would give the functions of each pickle globals of their own
                self.globals_ref[id(vars(module))] = Namespace(module)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.CodeType):
            return code_reduced(obj, self.dispatch_table[types.CodeType](obj), self._texts)
        if isinstance(obj, io.TextIOWrapper) and obj not in (sys.stdout, sys.stderr):
            # cloudpickle would send what is in the file now, which is not what an open file is.
            raise pickle.PicklingError(f"an open file ({obj.name!r})")
        if isinstance(obj, AutoStage) and _by_value(obj):
            return _made_stage, (type(obj), obj.__wrapped__, obj._steering, obj._items)
        if isinstance(obj, (StageBody, RawBody)) and _by_value(obj.f):
            return type(obj), tuple(getattr(obj, each.name) for each in fields(obj))
        return super().reducer_override(obj)


def _by_value(stage: Any) -> bool:
    """Tell whether a stage, or the function of one, lies where the receiving process cannot import it from."""
    module = getattr(stage, "__module__", None) or ""
    apart = cloudpickle.list_registry_pickle_by_value()
    parents = {module.rsplit(".", up)[0] for up in range(module.count(".") + 1)}
    return module == "__main__" or bool(parents & set(apart)) or named(stage) is None


def _made_stage(cls: type[AutoStage], f: Any, steering: Any, items: dict[str, Any]) -> AutoStage:
    return cls(f, steering, None, items)


class _ErrorPacker(_Packer):
    """Packs errors without a way of their own so that they come back without a call of their constructor."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, BaseException) and _is_pickled_as_all(type(obj)):
            return _remade_error, obj.__reduce__()
        return super().reducer_override(obj)


def _is_pickled_as_all(cls: type[BaseException]) -> bool:
    return isinstance(cls.__reduce__, types.MethodDescriptorType) and cls.__reduce_ex__ is object.__reduce_ex__


def _remade_error(cls: type[BaseException], arguments: tuple[Any, ...], state: Optional[Mapping[str, Any]] = None) -> BaseException:
    """Return an error as Python's own pickling does, but for the call of a constructor that may take something else than `args`."""
    error = cls.__new__(cls, *arguments)
    # What Python's own classes keep outside of __dict__: the error number of an OSError, for example.
    builtin = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    builtin.__init__(error, *arguments)  # type: ignore[misc]  # `error` is one of these
    if state:
        error.__setstate__(dict(state))
    return error


def dumps(value: Any) -> bytes:
    """Return a pickle of `value`.

    Raises:
        Exception: it cannot be pickled; of any class, for methods of the value are called.
    """
    return _dumped(value, _Packer)


def dumps_error(error: BaseException) -> bytes:
    """Return a pickle of an error, and of those it holds, that calls no constructor of theirs when it is opened.

    Raises:
        Exception: it cannot be pickled; of any class.
    """
    return _dumped(error, _ErrorPacker)


def _dumped(value: Any, packer: type[_Packer]) -> bytes:
    with io.BytesIO() as file:
        try:
            packer(file).dump(value)
        except RecursionError as error:
            raise pickle.PicklingError("it is nested too deeply") from error
        return file.getvalue()


# --- unpacking ----------------------------------------------------------------------------------------


def unpack(blob: bytes) -> Any:
    """Return what a blob of the kind ``python`` holds. This runs code that the blob names: only for those who may.

    Raises:
        Exception: it cannot be had here, because a module is missing for example; of any class.
    """
    return pickle.loads(blob)


def unpack_node(blob: bytes) -> NodeRealizer:
    """Return the realizer of a blob of the kind ``mknode``. Runs no code of the blob's.

    Raises:
        Misuse: it is not such a blob.
    """
    try:
        artifacts: Mapping[str, bytes] = msgpack.unpackb(blob)
        entries = sorted(artifacts.items())
    except Exception as error:
        raise Misuse(f"expected the artifacts of mknode as a MessagePack map of names to bytes, found {blob[:40]!r}") from error
    if not all(isinstance(name, str) and isinstance(content, bytes) for name, content in entries):
        raise Misuse("expected the artifacts of mknode as a MessagePack map of names to bytes, found other types in it")
    return NodeRealizer(tuple(entries))


_PLAIN: Final = {"only": _MatchOnly, "all": _MatchAll}
_COUNTED: Final = {"latest": _MatchLatest, "some": _MatchSome}


def builtin_matcher(kind: str, n: int = 0, rrefs: Sequence[RRef] = ()) -> BuiltinMatcher:
    """Return the matcher of the package that a `PackedMatcher` names. Takes anything and checks it.

    Raises:
        Misuse: there is no such matcher, or not with these arguments.
    """
    if kind in _PLAIN:
        return _PLAIN[kind]()
    if kind in _COUNTED:
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise Misuse(f"the matcher {kind!r} takes how many realizations to take, 0 or more, found {n!r:.100}")
        return _COUNTED[kind](n)
    if kind == "exact":
        from pylightnix.refs import assert_valid_rref

        try:
            for rref in rrefs:
                assert_valid_rref(rref)
        except PylightnixException as error:
            raise Misuse(f"the matcher 'exact' takes realizations: {error}") from error
        return _MatchExact(tuple(sorted({RRef(rref) for rref in rrefs})))
    raise Misuse(f"expected the name of a matcher of this package, found {kind!r:.100}; it has all, exact, latest, only and some")
