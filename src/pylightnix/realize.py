"""`realize` and its kin: from a closure to realizations."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional, Union

from pylightnix.build_output import usual_observer
from pylightnix.errors import AmbiguousMatch, Misuse
from pylightnix.events import Observer
from pylightnix.refs import isdref
from pylightnix.registry import instantiate, isclosure
from pylightnix.types import Closure, Context, DRef, Path, RealizeArg, RealizeSeqGen, RRef, Stage, StageResult, StorageSettings

if TYPE_CHECKING:
    from pylightnix.embedded import Outcome
    from pylightnix.pause import Answer, Pause

__all__ = [
    "evaluate",
    "mkrealization",
    "realize",
    "realize1",
    "realizeMany",
    "realizeSeq",
    "realize_async",
    "realize_steps",
    "unpack_closure_arg_",
]

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
    force_rebuild: Union[Sequence[DRef], bool] = [],
    assert_realized: Sequence[DRef] = [],
    realize_args: Optional[Mapping[DRef, RealizeArg]] = {},
    dry_run: bool = False,
    *,
    observe: Optional[Observer] = None,
) -> tuple[StageResult, Closure, Context]:
    """Realize everything that the targets of a closure need.

    What is realized already, in the same context and to the matcher's liking, is used again. Blocks
    until all is done and durable.

    A realizer may call this, too. What the targets come to is then recorded as dynamic dependencies of what it
    makes: part of its hash, and kept as long as it is; but its matcher is not asked again because of them.

    Args:
        closure: a `Closure`, or the pair that `instantiate` returns.
        force_rebuild: True for the targets, or a list of derivations, to build whatever there is.
        assert_realized: derivations that must be realized already.
        realize_args: passed to realizers (``Build.rarg``), by derivation; no part of any hash.
        dry_run: build nothing; what would be built is None in the context.
        observe: is called with every event (`pylightnix.events`) in this thread, as it happens; ``ignore`` watches nothing. By
            default, what builds print in a daemon is copied to standard error, or where PYLIGHTNIX_BUILD_OUTPUT says
            (``stderr``, ``stdout`` or ``none``). What builds print in this process goes where it goes.

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
        observe=usual_observer() if observe is None else observe,
    )
    outcome.check()
    return result, unpacked, outcome.context


async def realize_async(
    closure: ClosureArg,
    force_rebuild: Union[Sequence[DRef], bool] = [],
    assert_realized: Sequence[DRef] = [],
    realize_args: Optional[Mapping[DRef, RealizeArg]] = {},
    dry_run: bool = False,
    *,
    observe: Optional[Observer] = None,
) -> tuple[StageResult, Closure, Context]:
    """Do as `realize` while other tasks of the event loop, trio's or asyncio's, go on.

    Without a daemon, matchers and realizers run in a worker thread, one after the other, with the current
    registry and storage of the caller. Cancelling waits for the build that is running there, and keeps what
    was finished; a daemon is told to cancel at once.

    Arguments, result and errors are those of `realize`.
    """
    from pylightnix.remote import realize_closure_async

    result, unpacked = unpack_closure_arg_(closure)
    outcome = await realize_closure_async(
        unpacked,
        force_rebuild=force_rebuild,
        assert_realized=assert_realized,
        realize_args=realize_args,
        dry_run=dry_run,
        observe=usual_observer() if observe is None else observe,
    )
    outcome.check()
    return result, unpacked, outcome.context


def realizeMany(
    closure: ClosureArg,
    force_rebuild: Union[Sequence[DRef], bool] = [],
    assert_realized: Sequence[DRef] = [],
    realize_args: Optional[Mapping[DRef, RealizeArg]] = {},
    dry_run: bool = False,
    *,
    observe: Optional[Observer] = None,
) -> list[RRef]:
    """Realize a closure whose result is one DRef, and return its realizations, sorted.

    In a dry run, of what would be built the list is empty. Arguments and errors as of `realize`.
    """
    result, _ = unpack_closure_arg_(closure)
    if not isdref(result):
        raise Misuse(f"expected a stage that returns one DRef, found {result!r:.200}; use realize for other results")
    _, _, context = realize(closure, force_rebuild, assert_realized, realize_args, dry_run, observe=observe)
    return list(context[DRef(result)] or [])


def realize1(
    closure: ClosureArg,
    force_rebuild: Union[Sequence[DRef], bool] = [],
    assert_realized: Sequence[DRef] = [],
    realize_args: Optional[Mapping[DRef, RealizeArg]] = {},
    dry_run: bool = False,
    *,
    observe: Optional[Observer] = None,
) -> RRef:
    """Realize a closure whose result is one DRef with one matched realization, and return that.

    Arguments and errors as of `realize`.

    Raises:
        AmbiguousMatch: several match.
        NotRealized: a dry run found that it would be built.
    """
    rrefs = realizeMany(closure, force_rebuild, assert_realized, realize_args, dry_run, observe=observe)
    result, _ = unpack_closure_arg_(closure)
    if not rrefs:
        from pylightnix.errors import NotRealized

        raise NotRealized(DRef(result), "a dry run builds nothing")
    if len(rrefs) > 1:
        raise AmbiguousMatch(f"realize1 of {result}", rrefs, "exactly one matched realization")
    return rrefs[0]


def realizeSeq(
    closure: ClosureArg,
    force_interrupt: Sequence[DRef] = [],
    assert_realized: Sequence[DRef] = [],
    realize_args: Optional[Mapping[DRef, RealizeArg]] = {},
    dry_run: bool = False,
) -> RealizeSeqGen:
    """Realize a closure step by step: a generator that pauses before each derivation of `force_interrupt`.

    At a pause it yields ``(S, dref, context, derivation, rarg)`` and is to be sent ``(rrefs, abort)``:
    realizations that settle the derivation without asking its matcher, or None to run its realizer,
    whatever there is; or, with `abort`, that no more is to be done. What was realized by then is durable
    and stays. A pause holds no lock, so it may last for days; ``S.tmpdir`` is a folder that lives as long.

    Other arguments, and errors, as of `realize`.

    Returns:
        The context as `realize` returns it; empty after an abort.
    """
    _, unpacked = unpack_closure_arg_(closure)
    return realize_steps(unpacked, force_interrupt, assert_realized=assert_realized, realize_args=realize_args, dry_run=dry_run)


def realize_steps(closure: Closure, ask: Sequence[DRef], **options: Any) -> RealizeSeqGen:
    """Return the generator of `realizeSeq`; options as of `pylightnix.embedded.realize_in_steps`."""
    from pylightnix.remote import realize_in_steps

    return _sequence(realize_in_steps(closure, ask, **options))


def _sequence(steps: Generator[Pause, Answer, Optional[Outcome]]) -> Generator[Pause, Answer, Context]:
    outcome = yield from steps
    if outcome is None:
        return {}
    outcome.check()
    return outcome.context


def mkrealization(dref: DRef, l: Context, o: Path, S: Optional[StorageSettings] = None) -> RRef:  # noqa: E741  # the published name
    """Make a folder that was filled without a realizer a realization, and return its reference.

    Args:
        dref: what it is a realization of.
        l: which realizations stand for its dependencies; more than these is no matter.
        o: the folder, on the store's file system and best under ``fstmpdir(S)``. It is moved into the store.
        S: the store.

    Raises:
        Misuse: it is no folder, or `l` lacks a dependency.
        InvalidOutput: it holds what cannot be stored. It stays where it is.
        StoreError: the store does not take it.
    """
    from pylightnix.insertion import insert_output

    return insert_output(dref, l, o, S)


def evaluate(stage: Stage, *args: Any, **kwargs: Any) -> RRef:
    """Instantiate and realize a stage that returns one DRef."""
    return realize1(instantiate(stage, *args, **kwargs))
