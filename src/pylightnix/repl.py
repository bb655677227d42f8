"""Being the realizer oneself: a realization paused before a derivation, until its user says what becomes of it.

`repl_realize` runs up to the first pause, `repl_continue` to the next. At a pause one may hand over output
folders, name ready realizations, let the realizer run, or give up. What fails pauses, too: the error is raised,
and the helper stands before the derivation that failed. A pause keeps nobody from the
store and may last for days. Must not know how, or where, closures are realized.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Optional, Union

from pylightnix.build import Build, build_markstart, build_markstop, build_outpaths, mkbuildargs
from pylightnix.context import mkcontext
from pylightnix.errors import AmbiguousMatch, Misuse
from pylightnix.outputs import output_validate
from pylightnix.realize import ClosureArg, mkrealization, realize_steps, unpack_closure_arg_
from pylightnix.refs import isdref
from pylightnix.results import map_drefs
from pylightnix.storage import store_layout
from pylightnix.types import (
    BuildArgs,
    Context,
    Derivation,
    DRef,
    Output,
    Path,
    RealizeArg,
    RealizeSeqGen,
    RRef,
    StageResult,
    StorageSettings,
)

if TYPE_CHECKING:
    PYLIGHTNIX_REPL_HELPER: Optional[ReplHelper]
    """The last helper of this thread."""

__all__ = [
    "ERR_INACTIVE_RH",
    "ERR_INVALID_RH",
    "ReplHelper",
    "repl_build",
    "repl_buildargs",
    "repl_cancel",
    "repl_cancelBuild",
    "repl_continue",
    "repl_continue1",
    "repl_continueBuild",
    "repl_continueMany",
    "repl_realize",
    "repl_result",
    "repl_rref",
    "repl_rrefs",
]

ERR_INVALID_RH: Final = "this thread has no REPL helper yet; begin with repl_realize(…), or pass rh=…"
"""What `Misuse` says where there is no helper."""
ERR_INACTIVE_RH: Final = "this REPL helper is not paused"
"""What `Misuse` says, with the reason, where the helper is not paused."""


class ReplHelper:
    """A realization that pauses.

    Attributes:
        gen: what `realizeSeq` returned; None once it is finished, cancelled or broken.
        result: what the stage returned.
        S: the store, at the latest pause; its `tmpdir` is for outputs and goes when the pause ends.
        dref: the derivation before which it is, or was last, paused.
        context: the context of that derivation; in the end that of everything.
        drv: the derivation with its matcher and realizer.
        rarg: what its realizer would be given.
    """

    def __init__(self, gen: Optional[RealizeSeqGen], result: StageResult) -> None:
        self.gen, self.result = gen, result
        self.S: Optional[StorageSettings] = None
        self.dref: Optional[DRef] = None
        self.context: Context = mkcontext()
        self.drv: Optional[Derivation] = None
        self.rarg: RealizeArg = {}
        self._complete = False
        self._ended = "it was never started"

    def __repr__(self) -> str:
        state = f"paused before {self.dref}" if self.gen is not None else self._ended
        return f"<ReplHelper: {state}>"

    def _advance(self, resume: Callable[[], Any]) -> None:
        """Go on to the next pause or to the end. Raises what failed, if that is why it paused."""
        try:
            pause = resume()
        except StopIteration as end:
            self.gen, self.context = None, end.value
            self._complete, self._ended = True, "it is finished"
        except BaseException as error:
            self.gen, self._ended = None, f"it ended with {type(error).__name__}: {error}"
            raise
        else:
            self.S, self.dref, self.context, self.drv, self.rarg = pause
            failure: Optional[BaseException] = getattr(pause, "error", None)
            if failure is not None:
                failure.add_note(
                    f"The REPL helper is paused before {self.dref}: repl_continue() runs its realizer again, "
                    "repl_continue(out_paths=[…]) does without it, repl_cancel() gives up."
                )
                raise failure


class _PerThread(threading.local):
    helper: Optional[ReplHelper] = None


_thread = _PerThread()


def __getattr__(name: str) -> Any:
    if name == "PYLIGHTNIX_REPL_HELPER":
        return _thread.helper
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _paused(rh: Optional[ReplHelper]) -> tuple[ReplHelper, RealizeSeqGen, DRef]:
    helper = rh if rh is not None else _thread.helper
    if helper is None:
        raise Misuse(ERR_INVALID_RH)
    if not isinstance(helper, ReplHelper):
        raise Misuse(f"expected a ReplHelper, as repl_realize returns it, found {helper!r:.200}")
    if helper.gen is None or helper.dref is None:
        raise Misuse(f"{ERR_INACTIVE_RH}: {helper._ended}; begin again with repl_realize(…), what was finished is kept")
    if getattr(helper.gen, "gi_running", False):
        raise Misuse(f"{ERR_INACTIVE_RH}: it is at work, in another thread or below this very call; wait until it pauses")
    return helper, helper.gen, helper.dref


def _wait_for_store(S: Optional[StorageSettings]) -> None:
    """Raise while the helper is still paused, rather than when it has gone on, if the store is kept from all others."""
    from pylightnix.store.locks import StoreOwned, shared_lock
    from pylightnix.store.ownership import daemon_socket

    layout = store_layout(S)
    if daemon_socket(layout) is not None:
        return  # it will go on with it; this user may not even be allowed to lock the store
    try:
        with shared_lock(layout):
            pass
    except StoreOwned:
        pass  # by a daemon that has just come


def repl_realize(
    arg: ClosureArg,
    force_interrupt: Union[Sequence[DRef], bool] = True,
    realize_args: Optional[Mapping[DRef, RealizeArg]] = {},
) -> ReplHelper:
    """Realize a closure up to the first of some derivations, and pause before it even if it is realized already.

    The helper that is returned is also the one that the other functions of this module mean without `rh`,
    in this thread.

    Args:
        arg: a closure, or the pair that `instantiate` returns.
        force_interrupt: where to pause: True at the targets, False nowhere, or a list of derivations.
        realize_args: passed to realizers, by derivation.

    Raises:
        What `realize` raises. Unless the store failed, the helper is paused at what failed then.
    """
    result, closure = unpack_closure_arg_(arg)
    if isinstance(force_interrupt, bool):
        ask: Sequence[DRef] = closure.targets if force_interrupt else []
    elif isinstance(force_interrupt, (list, tuple, set, frozenset)):
        ask = list(force_interrupt)
    else:
        raise Misuse(f"force_interrupt expects True, False or a list of DRefs, found {force_interrupt!r:.200}")
    gen = realize_steps(closure, ask, ask_on_failure=True, realize_args=realize_args)
    rh = _thread.helper = ReplHelper(gen, result)
    rh._advance(lambda: next(gen))
    return rh


def repl_continue(
    out_paths: Optional[Sequence[Path]] = None,
    out_rrefs: Optional[Sequence[RRef]] = None,
    rh: Optional[ReplHelper] = None,
) -> tuple[StageResult, Context]:
    """Go on from a pause to the next one, or to the end.

    Args:
        out_paths: output folders that become realizations of the derivation; its matcher is not asked.
        out_rrefs: realizations of it that count; its matcher is not asked. With neither, its realizer runs.
        rh: the helper, else the last one of this thread.

    Returns:
        (what the stage returned, the helper's context).

    Raises:
        Misuse: both are given, or the helper is not paused.
        StoreBusy: somebody else has the store to himself. The helper is paused as before.
        What `realize` raises. Unless the store failed, the helper is paused at what failed then.
    """
    helper, gen, dref = _paused(rh)
    if out_paths is not None and out_rrefs is not None:
        raise Misuse("repl_continue was given both out_paths and out_rrefs; give one of them, or none to run the realizer")
    _wait_for_store(helper.S)
    rrefs: Optional[list[RRef]] = None
    if out_paths is not None:
        rrefs = [mkrealization(dref, helper.context, path, helper.S) for path in out_paths]
    elif out_rrefs is not None:
        rrefs = list(out_rrefs)
    helper._advance(lambda: gen.send((rrefs, False)))
    return helper.result, helper.context


def repl_continueMany(
    out_paths: Optional[Sequence[Path]] = None,
    out_rrefs: Optional[Sequence[RRef]] = None,
    rh: Optional[ReplHelper] = None,
) -> Optional[list[RRef]]:
    """Do as `repl_continue`, and return the realizations of the target, None if it paused again."""
    helper, _, _ = _paused(rh)
    _target(helper)
    repl_continue(out_paths, out_rrefs, helper)
    return repl_rrefs(helper)


def repl_continue1(
    out_paths: Optional[Sequence[Path]] = None,
    out_rrefs: Optional[Sequence[RRef]] = None,
    rh: Optional[ReplHelper] = None,
) -> Optional[RRef]:
    """Do as `repl_continue`, and return the realization of the target, None if it paused again."""
    helper, _, _ = _paused(rh)
    _target(helper)
    repl_continue(out_paths, out_rrefs, helper)
    return repl_rref(helper)


def _target(rh: ReplHelper) -> DRef:
    if not isdref(rh.result):
        raise Misuse(
            f"expected a stage that returns one DRef, found {rh.result!r:.200}; use repl_continue and repl_result for other results"
        )
    return DRef(rh.result)


def repl_result(rh: ReplHelper) -> Any:
    """Return what the stage returned with the list of its realizations in place of each DRef, None while incomplete."""
    return map_drefs(rh.result, lambda dref: list(rh.context[dref] or [])) if rh._complete else None


def repl_rrefs(rh: ReplHelper) -> Optional[list[RRef]]:
    """Return the realizations of the one DRef that the stage returned, sorted; None while incomplete."""
    target = _target(rh)
    return list(rh.context[target] or []) if rh._complete else None


def repl_rref(rh: ReplHelper) -> Optional[RRef]:
    """Return the realization of the one DRef that the stage returned; None while incomplete.

    Raises:
        AmbiguousMatch: there are several.
    """
    rrefs = repl_rrefs(rh)
    if rrefs is not None and len(rrefs) != 1:
        raise AmbiguousMatch(f"the REPL's target {rh.result}", rrefs, "exactly one realization")
    return None if rrefs is None else rrefs[0]


def repl_cancel(rh: Optional[ReplHelper] = None) -> None:
    """Give up. What was realized by then is kept.

    Raises:
        Misuse: the helper is not paused.
    """
    helper, gen, _ = _paused(rh)
    helper.gen, helper._ended = None, "it was cancelled"
    try:
        gen.send((None, True))
    except StopIteration:
        pass  # the way it is to end


# --- with the Build API -------------------------------------------------------------------------------


def repl_buildargs(rh: Optional[ReplHelper] = None) -> BuildArgs:
    """Return the arguments of a `Build` of the derivation before which a helper is paused."""
    helper, _, dref = _paused(rh)
    return mkbuildargs(helper.S, dref, helper.context, "AUTO", "AUTO", {}, helper.rarg)


def repl_build(rh: Optional[ReplHelper] = None, nouts: Optional[int] = 1) -> Build:
    """Return a build of the derivation before which a helper is paused, with `nouts` output folders open.

    With None it has none; `build_markstart` opens them then.
    """
    b = Build(repl_buildargs(rh))
    if nouts is not None:
        build_markstart(b, nouts)
    return b


def repl_continueBuild(b: Build, rh: Optional[ReplHelper] = None) -> Optional[RRef]:
    """Stamp the end of a build and go on with its outputs; return the realization of the target, None if it paused again.

    Raises:
        PromiseException: an output lacks what the config promises. The helper is paused as before.
        Misuse: the build is not of the derivation before which the helper is paused.
        What `repl_continue` raises.
    """
    helper, _, dref = _paused(rh)
    if b.dref != dref:
        raise Misuse(f"the REPL helper is paused before {dref}, and this build is of {b.dref}; make one with repl_build()")
    _target(helper)
    build_markstop(b)
    return repl_continue1(output_validate(dref, Output(build_outpaths(b)), b.S), rh=helper)


def repl_cancelBuild(b: Build, rh: Optional[ReplHelper] = None) -> None:
    """Give up, and remove the output folders of a build."""
    repl_cancel(rh)
    from pylightnix.store.set_aside import discard

    for path in b.outpaths.val if b.outpaths is not None else []:
        discard(store_layout(b.S), path)
