"""`realize` and its kin: from a closure to realizations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

from pylightnix.errors import AmbiguousMatch, Misuse
from pylightnix.refs import isdref
from pylightnix.registry import instantiate, isclosure
from pylightnix.types import Closure, Context, DRef, RealizeArg, RRef, Stage, StageResult

__all__ = ["evaluate", "realize", "realize1", "realizeMany", "unpack_closure_arg_"]

ClosureArg = Union[Closure, tuple[StageResult, Closure]]


def unpack_closure_arg_(arg: ClosureArg) -> tuple[StageResult, Closure]:
    """Return (result, closure) of either form in which closures are passed around.

    Raises:
        Misuse: it is neither a closure nor the pair that `instantiate` returns.
    """
    if isclosure(arg):
        closure = Closure(*arg)
        return closure.result, closure
    if isinstance(arg, tuple) and len(arg) == 2 and isclosure(arg[1]):
        return arg[0], Closure(*arg[1])
    raise Misuse(f"expected a closure, or the pair that instantiate returns, found {arg!r:.200}; call instantiate(stage) first")


def realize(
    closure: ClosureArg,
    force_rebuild: Union[Sequence[DRef], bool] = (),
    assert_realized: Sequence[DRef] = (),
    realize_args: Optional[Mapping[DRef, RealizeArg]] = None,
    dry_run: bool = False,
) -> tuple[StageResult, Closure, Context]:
    """Realize everything that the targets of a closure need.

    What is realized already, in the same context and to the matcher's liking, is used again. Blocks
    until all is done and durable.

    Args:
        closure: a `Closure`, or the pair that `instantiate` returns.
        force_rebuild: True for the targets, or a list of derivations, to build whatever there is.
        assert_realized: derivations that must be realized already.
        realize_args: passed to realizers (``Build.rarg``), by derivation; no part of any hash.
        dry_run: build nothing; what would be built is None in the context.

    Returns:
        (what the stage returned, the closure, every derivation with its matched realizations).

    Raises:
        BuildError, PromiseException, or whatever a raw realizer or a matcher raised.
        StoreError: the store cannot be used.
    """
    from pylightnix.remote import realize_closure  # SQLite and all, which `import pylightnix` need not pay for

    result, unpacked = unpack_closure_arg_(closure)
    outcome = realize_closure(
        unpacked,
        force_rebuild=force_rebuild,
        assert_realized=assert_realized,
        realize_args=realize_args,
        dry_run=dry_run,
    )
    outcome.check()
    return result, unpacked, outcome.context


def realizeMany(
    closure: ClosureArg,
    force_rebuild: Union[Sequence[DRef], bool] = (),
    assert_realized: Sequence[DRef] = (),
    realize_args: Optional[Mapping[DRef, RealizeArg]] = None,
    dry_run: bool = False,
) -> list[RRef]:
    """Realize a closure whose result is one DRef, and return its realizations, sorted.

    In a dry run, of what would be built the list is empty. Arguments and errors as of `realize`.
    """
    result, _ = unpack_closure_arg_(closure)
    if not isdref(result):
        raise Misuse(f"expected a stage that returns one DRef, found {result!r:.200}; use realize for other results")
    _, _, context = realize(closure, force_rebuild, assert_realized, realize_args, dry_run)
    return list(context[DRef(result)] or [])


def realize1(
    closure: ClosureArg,
    force_rebuild: Union[Sequence[DRef], bool] = (),
    assert_realized: Sequence[DRef] = (),
    realize_args: Optional[Mapping[DRef, RealizeArg]] = None,
    dry_run: bool = False,
) -> RRef:
    """Realize a closure whose result is one DRef with one matched realization, and return that.

    Arguments and errors as of `realize`.

    Raises:
        AmbiguousMatch: several match.
        NotRealized: a dry run found that it would be built.
    """
    rrefs = realizeMany(closure, force_rebuild, assert_realized, realize_args, dry_run)
    result, _ = unpack_closure_arg_(closure)
    if not rrefs:
        from pylightnix.errors import NotRealized

        raise NotRealized(DRef(result), "a dry run builds nothing")
    if len(rrefs) > 1:
        raise AmbiguousMatch(f"realize1 of {result}", rrefs, "exactly one matched realization")
    return rrefs[0]


def evaluate(stage: Stage, *args: Any, **kwargs: Any) -> RRef:
    """Instantiate and realize a stage that returns one DRef."""
    return realize1(instantiate(stage, *args, **kwargs))
