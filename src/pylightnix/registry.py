"""Registries: the derivations that stages register, and the closures made of them.

A registry is the mutable, in-memory side of the language. Registering a derivation also writes its
folder in the store. Must not realize anything.
"""

from __future__ import annotations

import json
import logging
import os
import types
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Optional

from pylightnix.bytecode import warn_of_outdated_bytecode
from pylightnix.collecting import Uncollected
from pylightnix.config import Config, assert_rref_deps, canonical_bytes, canonical_deps, cfgdeps, cfgname, mkconfig
from pylightnix.errors import (
    CodeKeyError,
    ForeignDerivation,
    InvalidConfig,
    InvalidStorage,
    Misuse,
    NoRegistry,
    StoreBusy,
    StoreForeign,
    kind_of,
    shown,
)
from pylightnix.matchers import check_matcher
from pylightnix.planner.graph import dependency_order
from pylightnix.refs import assert_valid_dref, isdref
from pylightnix.results import result_drefs
from pylightnix.storage import _registry, absolute_settings, store_layout, tlstorage
from pylightnix.store.derivations import derivation_ref, is_written, read_config, write_derivation
from pylightnix.types import Closure, Derivation, DRef, Matcher, Realizer, Stage, StageResult, StorageSettings

__all__ = [
    "Registry",
    "assert_have_realizers",
    "assert_valid_closure",
    "closure_deps",
    "current_registry",
    "drafted",
    "instantiate",
    "isclosure",
    "mkclosure",
    "mkdrv",
    "mkdrv_",
    "mkregistry",
    "registered_config",
    "result_drefs",
    "setregistry",
    "tlregistry",
    "write_all",
    "write_waiting",
    "written_config",
]

_log = logging.getLogger("pylightnix")
_OWN_FOLDER: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep


class RegisteredDerivation(Derivation):
    """A derivation that knows its config, so that a plan need not read the store again.

    A copy made by `_replace` knows nothing; then the store is read.
    """

    config: Optional[bytes] = None
    """The canonical config, as it was when registered."""
    deps: Optional[tuple[DRef, ...]] = None
    """Direct dependencies, sorted."""


class Registry:
    """A mutable, ordered map from DRefs to derivations, bound to a store.

    Attributes:
        builders: the derivations, in the order in which they were first registered.
        S: the settings of the store, made absolute, or None for the default one.
        in_instantiate: whether `instantiate` is at work with this registry.
    """

    def __init__(self, S: Optional[StorageSettings] = None) -> None:
        self.builders: dict[DRef, Derivation] = {}
        self.S = absolute_settings(S)
        self.in_instantiate = False
        self.unwritten: dict[DRef, bytes] = {}
        """Canonical configs that a daemon is still to be told of: all at once, see `write_all`."""
        self.draft_of: Optional[Registry] = None
        """The registry that this one is a draft of. What is registered in a draft is not written into the store."""

    def __repr__(self) -> str:
        return f"Registry({len(self.builders)} derivations, S={self.S!r})"


_waiting: dict[int, Registry] = {}
"""Registries with configs that a daemon is still to be told of, by their `id`; kept alive for these, even if nobody else does."""


def mkregistry(S: Optional[StorageSettings] = None) -> Registry:
    """Return a new registry, bound to `S` or to the current storage."""
    return Registry(tlstorage(S))


def tlregistry(M: Optional[Registry] = None) -> Optional[Registry]:
    """Return `M` if given, else the current registry, else None.

    Raises:
        Misuse: `M` is something else.
    """
    if M is not None and not isinstance(M, Registry):
        raise Misuse(f"expected for r a registry, found {shown(M)}; pass on the one that instantiate gives to your stage")
    return M if M is not None else _registry.get()


def setregistry(r: Optional[Registry]) -> Optional[Registry]:
    """Make `r` the current registry of this thread (or task) and return the previous one."""
    previous = _registry.get()
    _registry.set(r)
    return previous


_draft: ContextVar[Optional[Registry]] = ContextVar("pylightnix_draft", default=None)


@contextmanager
def drafted(r: Registry) -> Iterator[Registry]:
    """Let stages called inside the block register in a draft of `r`, which is current there if `r` is."""
    draft = Registry(r.S)
    draft.draft_of, draft.in_instantiate = r, r.in_instantiate
    token = _draft.set(draft)
    try:
        if _registry.get() is r:
            with current_registry(draft):
                yield draft
        else:
            yield draft
    finally:
        _draft.reset(token)


@contextmanager
def current_registry(r: Registry) -> Iterator[Registry]:
    """Make `r` the current registry, and its store the current one, inside the ``with`` block."""
    from pylightnix.storage import current_storage

    token = _registry.set(r)
    try:
        with current_storage(r.S):
            yield r
    finally:
        _registry.reset(token)


# --- registering ------------------------------------------------------------------------------------


def mkdrv_(c: Config, S: Optional[StorageSettings] = None) -> DRef:
    """Write the derivation folder of the config `c` into the store and return its reference."""
    unwritten: dict[DRef, bytes] = {}
    checked = mkconfig(c.val)
    dref, canonical, _ = _identify(checked)
    _write(dref, canonical, checked, S, unwritten)
    _register_all(unwritten, S)
    return dref


def _identify(checked: Config) -> tuple[DRef, bytes, tuple[DRef, ...]]:
    """Return the reference, the canonical form and the direct dependencies of a config."""
    canonical = canonical_bytes(checked.val)
    if b'"rref:' in canonical:
        assert_rref_deps(checked)
    return derivation_ref(canonical, cfgname(checked)), canonical, canonical_deps(canonical)


def _write(dref: DRef, canonical: bytes, checked: Config, S: Optional[StorageSettings], unwritten: dict[DRef, bytes]) -> None:
    """Write a derivation, or enter it into `unwritten` where a daemon owns the store."""
    layout = store_layout(S)
    if unwritten:
        # A daemon had the store a moment ago: asking for the lock once more for each config would only cost time.
        if not is_written(layout, dref, canonical, checked.val):
            unwritten[dref] = _fit_for_daemon(dref, canonical)
    else:
        try:
            write_derivation(layout, dref, canonical, checked.val)
        except (StoreBusy, StoreForeign) as error:
            from pylightnix.store.locks import StoreOwned
            from pylightnix.store.ownership import daemon_socket

            # A daemon that had the store may be gone by now. `register` finds out who may write then.
            if not isinstance(error, StoreOwned) and daemon_socket(layout) is None:
                raise
            unwritten[dref] = _fit_for_daemon(dref, canonical)


def _fit_for_daemon(dref: DRef, canonical: bytes) -> bytes:
    # Now rather than when it is sent: here the stage is known that it is of, and no other one suffers from it.
    from pylightnix.protocol.limits import CONFIG_BYTES_MAX

    if len(canonical) > CONFIG_BYTES_MAX:
        problem = f"is {len(canonical)} bytes long, and a daemon takes at most {CONFIG_BYTES_MAX}"
        raise InvalidConfig(str(dref), problem, "make a stage of what is so long, for example with mknode, and depend on it")
    return canonical


def write_all(r: Registry) -> None:
    """Make sure that every derivation of `r` is in the store: hand those that were kept back to the daemon.

    Raises:
        StoreError: the store, or the daemon, does not take them. They stay unwritten.
    """
    _register_all(r.unwritten, r.S)
    _waiting.pop(id(r), None)


def write_waiting(S: Optional[StorageSettings]) -> None:
    """Put into the store of `S` what was registered for it and kept back so far: somebody is about to look there.

    Raises:
        StoreError: the store, or the daemon, does not take it.
    """
    if not _waiting:
        return
    storage = store_layout(S).storage
    for registry in list(_waiting.values()):  # other threads may register meanwhile
        if store_layout(registry.S).storage == storage:
            write_all(registry)


def written_config(dref: DRef, S: Optional[StorageSettings]) -> Config:
    """Return the config of a derivation as it stands in the store, where it is put first if it was kept back.

    Raises:
        MissingDerivation, StoreCorrupt: the store does not have it, or not whole.
    """
    write_waiting(S)
    return read_config(store_layout(S), dref)


def _register_all(unwritten: dict[DRef, bytes], S: Optional[StorageSettings]) -> None:
    if unwritten:
        from pylightnix.remote import register

        sent = dict(unwritten)
        register(sent, S)
        for dref in sent:
            unwritten.pop(dref, None)  # another thread may have entered more meanwhile


def mkdrv(config: Config, matcher: Matcher, realizer: Realizer, r: Optional[Registry] = None) -> DRef:
    """Register a derivation, and write its folder.

    Where a daemon owns the store, the folder comes at the end of `instantiate`, with `mkclosure`, or when
    something first looks for it.

    Registering the same config again replaces matcher and realizer (the last one wins, with a warning
    in the log) and keeps its place in the order.

    Args:
        config: what `mkconfig` returned.
        matcher: picks the realizations that count, see `Matcher`.
        realizer: fills output folders, see `Realizer`.
        r: the registry, else the current one.

    Raises:
        NoRegistry: there is none.
        InvalidConfig: the config holds what JSON cannot, or an RRef.
    """
    registry = tlregistry(r)
    if registry is None:
        raise NoRegistry("mkdrv")
    check_matcher(matcher, "mkdrv")
    if not callable(realizer):
        raise Misuse(f"mkdrv expects a realizer, which can be called as (S, dref, context, rarg), found {shown(realizer)}")
    if not isinstance(config, Config):
        raise Misuse(f"mkdrv expects a Config, found {kind_of(config)}; make one with mkconfig({{…}})")
    checked = mkconfig(config.val)
    dref, canonical, deps = _identify(checked)
    if registry.draft_of is None:
        _write(dref, canonical, checked, registry.S, registry.unwritten)
        if registry.unwritten:
            _waiting[id(registry)] = registry
    derivation = RegisteredDerivation(dref, matcher, realizer)
    derivation.config, derivation.deps = canonical, deps
    previous = registry.builders.get(dref)
    if previous is not None and (previous.matcher != matcher or previous.realizer != realizer):
        _log.warning("%s is registered again; the last matcher and realizer count", dref)
    registry.builders[dref] = derivation
    return dref


def registered_config(dref: DRef) -> Optional[Config]:
    """Return the config of `dref` as the current registry, or what is drafted now, has it; None if neither does."""
    derivation: Optional[Derivation] = None
    for registry in (tlregistry(), _draft.get()):
        while derivation is None and registry is not None:
            derivation, registry = registry.builders.get(dref), registry.draft_of
    if not isinstance(derivation, RegisteredDerivation) or derivation.config is None:
        return None
    config = Config.__new__(Config)
    config.val = json.loads(derivation.config)
    return config


# --- closures ---------------------------------------------------------------------------------------


def closure_deps(closure_or_builders: Iterable[Derivation], S: Optional[StorageSettings]) -> dict[DRef, tuple[DRef, ...]]:
    """Return each derivation's direct dependencies, read from the store where they were not registered here."""
    layout = None
    deps: dict[DRef, tuple[DRef, ...]] = {}
    for derivation in closure_or_builders:
        if isinstance(derivation, RegisteredDerivation) and derivation.deps is not None:
            deps[derivation.dref] = derivation.deps
        else:
            layout = layout or store_layout(S)
            deps[derivation.dref] = tuple(sorted(cfgdeps(read_config(layout, derivation.dref))))
    return deps


@dataclass(frozen=True, slots=True)
class ClosureGraph:
    """The part of a closure that its targets need."""

    order: list[DRef]
    """Dependencies first; registration order wherever that allows it."""
    deps: dict[DRef, tuple[DRef, ...]]


def needed_graph(targets: Sequence[DRef], builders: Iterable[Derivation], S: Optional[StorageSettings]) -> ClosureGraph:
    """Return what `targets` need, in an order in which it can be realized.

    Raises:
        ForeignDerivation: something needed is not among `builders`.
        MissingDerivation: it is not even in the store.
        CycleError: derivations depend on each other in a circle.
    """
    deps = closure_deps(builders, S)
    for target in targets:
        if target not in deps:
            _refuse_foreign(target, None, S)
    for dref in deps:
        for dep in deps[dref]:
            if dep not in deps:
                _check_needed(targets, deps, S)
                break
    order = dependency_order(targets, deps)
    return ClosureGraph(order, {dref: deps[dref] for dref in order})


def _check_needed(targets: Sequence[DRef], deps: dict[DRef, tuple[DRef, ...]], S: Optional[StorageSettings]) -> None:
    seen = set(targets)
    stack = list(targets)
    while stack:
        dref = stack.pop()
        for dep in deps[dref]:
            if dep not in deps:
                _refuse_foreign(dep, dref, S)
            if dep not in seen:
                seen.add(dep)
                stack.append(dep)


def _refuse_foreign(dref: DRef, needed_by: Optional[DRef], S: Optional[StorageSettings]) -> None:
    assert_valid_dref(dref)
    read_config(store_layout(S), dref)  # raises MissingDerivation when the store has never seen it
    raise ForeignDerivation(dref, needed_by)


def mkclosure(result: StageResult, r: Registry) -> Closure:
    """Return the closure of `result` over everything registered in `r`.

    Raises:
        Misuse: the result holds no DRef.
        ForeignDerivation, MissingDerivation: a needed derivation was not registered in `r`.
        CycleError: derivations depend on each other in a circle.
    """
    targets = result_drefs(result)
    if not targets:
        raise Misuse(f"a stage is expected to return a DRef, or a container that holds some; found {result!r:.200}")
    write_all(r)
    derivations = list(r.builders.values())
    with Uncollected():
        needed_graph(targets, derivations, r.S)
    return Closure(result, targets, derivations, r.S)


def instantiate(
    stage: Stage | StageResult,
    *args: Any,
    S: Optional[StorageSettings] = None,
    r: Optional[Registry] = None,
    **kwargs: Any,
) -> tuple[StageResult, Closure]:
    """Call a stage and return what it returned, with the closure of everything that this takes.

    Args:
        stage: a callable, called as ``stage(*args, r=registry, **kwargs)``; or a DRef or a container
            of DRefs, taken as the result.
        S: the store, when no registry is given or current.
        r: the registry, else the current one, else a fresh one on `S`.

    Raises:
        Misuse: called from inside a stage with the same registry, or without any DRef as result.
        InvalidStorage: `S` and the registry's store differ.
        ForeignDerivation, MissingDerivation: the result needs what this registry does not have.
    """
    given: object = S  # whatever a program passes
    if given is not None and not isinstance(given, StorageSettings):
        root = repr(str(given)[:200]) if isinstance(given, (str, os.PathLike)) else "…"
        raise Misuse(
            f"S expects the settings of a store, found {shown(given)}; write S=mkSS({root}), or give a config item "
            "of that name in a call of your own: instantiate(lambda r: stage(r=r, S=…))"
        )
    registry = tlregistry(r)
    if registry is None:
        registry = mkregistry(S)
    elif S is not None and store_layout(S).storage != store_layout(registry.S).storage:
        raise InvalidStorage(f"instantiate was given the store {S} and a registry on {registry.S}; give one of them")
    if registry.in_instantiate:
        raise Misuse("instantiate was called inside itself with the same registry; call the inner stage directly, with r=…, instead")
    registry.in_instantiate = True
    try:
        result = stage(*args, r=registry, **kwargs) if callable(stage) else stage
    except CodeKeyError as error:
        raise error.with_traceback(_users_frames(error.__traceback__)) from None
    finally:
        registry.in_instantiate = False
    warn_of_outdated_bytecode()
    return result, mkclosure(result, registry)


def _users_frames(trace: Optional[types.TracebackType]) -> Optional[types.TracebackType]:
    """Return a traceback without the frames of this package: a dozen of them say nothing of the user's code."""
    frames = []
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith(_OWN_FOLDER):
            frames.append(trace)
        trace = trace.tb_next
    found: Optional[types.TracebackType] = None
    for kept in reversed(frames):
        found = types.TracebackType(found, kept.tb_frame, kept.tb_lasti, kept.tb_lineno)
    return found


def isclosure(x: Any) -> bool:
    """Tell whether `x` is a `Closure`, or a 4-tuple shaped like one."""
    return (
        isinstance(x, tuple)
        and len(x) == 4
        and isinstance(x[1], list)
        and isinstance(x[2], list)
        and all(isdref(t) for t in x[1])
        and all(isinstance(d, tuple) and len(d) == 3 for d in x[2])
    )


def assert_valid_closure(closure: Closure) -> None:
    """Raise `Misuse` unless `closure` has derivations and all targets are among them."""
    if not isclosure(closure) or not closure[2]:
        raise Misuse(f"expected a closure with derivations, as instantiate returns it, found {shown(closure, 200)}")
    _, targets, derivations, _ = closure  # which may be a plain tuple
    known = {dref for dref, _, _ in derivations}
    for target in targets:
        if target not in known:
            raise ForeignDerivation(target, None)


def assert_have_realizers(r: Registry, drefs: Sequence[DRef]) -> None:
    """Raise `ForeignDerivation` unless `drefs` and all that they depend on are registered in `r`."""
    needed_graph(drefs, r.builders.values(), r.S)
