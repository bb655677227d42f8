"""The embedded driver: turns the planner in the calling process, one action at a time.

Realizers and matchers are the caller's own functions and run in its thread, in registration order
wherever dependencies allow. No daemon, no second process, no thread.
"""

from __future__ import annotations

import heapq
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Optional, Union

from pylightnix.attempt import take_outputs
from pylightnix.context import LazyContext
from pylightnix.errors import BuildError, Misuse, PylightnixException, StoreError
from pylightnix.events import (
    BuildFailed,
    BuildFinished,
    BuildJoined,
    BuildSkipped,
    BuildStarted,
    BuildWaiting,
    Observer,
    PlanStep,
    ignore,
)
from pylightnix.matchers import BuiltinMatcher
from pylightnix.planner.messages import (
    Action,
    AskMatcher,
    Built,
    CandidatesFound,
    Commit,
    CommitFailed,
    Committed,
    Fact,
    Failed,
    FindCandidates,
    Finish,
    MatcherAnswered,
    StartBuild,
)
from pylightnix.planner.plan import Plan
from pylightnix.registry import ClosureGraph, assert_valid_closure, needed_graph
from pylightnix.storage import current_storage, fsroot, store_layout
from pylightnix.store.access import translated_errors
from pylightnix.store.faults import reach
from pylightnix.store.kept import keep_failed
from pylightnix.store.layout import StoreLayout
from pylightnix.store.locks import holders
from pylightnix.store.removal import remove_tree
from pylightnix.store.store import Store, open_store
from pylightnix.types import (
    Closure,
    Context,
    Derivation,
    DRef,
    Path,
    RealizeArg,
    RRef,
    StageResult,
    StorageSettings,
)

__all__ = ["Outcome", "forced_drefs", "realize_closure"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the realization of a closure ended. Every realization in it is durable."""

    result: StageResult
    closure: Closure
    context: Context
    """Each derivation that was settled with its matched realizations; None for what a dry run does not know."""
    built: list[DRef]
    joined: list[DRef]
    """Built meanwhile by another process."""
    reused: list[DRef]
    failed: list[tuple[DRef, BaseException]]
    skipped: list[tuple[DRef, DRef]]
    """(derivation, the failed one below it)"""
    steps: list[PlanStep]
    """What a dry run found; empty otherwise."""

    def check(self) -> None:
        """Raise the first failure, if there is one, as the realizer or matcher raised it."""
        for _, error in self.failed:
            raise error


def realize_closure(
    closure: Closure,
    *,
    force_rebuild: Union[Sequence[DRef], bool] = (),
    assert_realized: Sequence[DRef] = (),
    realize_args: Optional[Mapping[DRef, RealizeArg]] = None,
    dry_run: bool = False,
    keep_going: bool = False,
    observe: Observer = ignore,
) -> Outcome:
    """Realize what the targets of `closure` need, in this process.

    Args:
        closure: as `instantiate` makes it.
        force_rebuild: True for the targets, or a list of derivations, to build whatever there is.
        assert_realized: derivations that must not be built.
        realize_args: what realizers get as their last argument, by derivation. No part of any hash.
        dry_run: ask matchers, but build nothing.
        keep_going: after a failure go on with what does not depend on it.
        observe: is called with every event as it happens.

    Returns:
        How it ended. Failures of realizers and matchers are in it, not raised.

    Raises:
        StoreError: the store cannot be used, or what was built could not be made durable.
        Misuse: the closure is not one, or `force_rebuild` is of another type.
    """
    assert_valid_closure(closure)
    forced = forced_drefs(closure, force_rebuild)
    graph = needed_graph(closure.targets, closure.derivations, closure.S)
    plan = Plan(graph.order, graph.deps, forced=forced, assert_realized=assert_realized, dry_run=dry_run, keep_going=keep_going)
    with open_store(store_layout(closure.S)) as store:
        driver = _Driver(store, closure, graph, plan, realize_args or {}, observe)
        driver.run()
    return driver.outcome()


def forced_drefs(closure: Closure, force_rebuild: Union[Sequence[DRef], bool]) -> Sequence[DRef]:
    """Return what `force_rebuild` asks to be built whatever there is. Raises `Misuse` if it is of another type."""
    if force_rebuild is True:
        return closure.targets
    if force_rebuild is False:
        return ()
    if isinstance(force_rebuild, (list, tuple, set, frozenset)):
        return list(force_rebuild)
    raise Misuse(f"force_rebuild expects True, False or a list of DRefs, found {force_rebuild!r:.200}")


class _Driver:
    def __init__(
        self,
        store: Store,
        closure: Closure,
        graph: ClosureGraph,
        plan: Plan,
        realize_args: Mapping[DRef, RealizeArg],
        observe: Observer,
    ) -> None:
        self._store, self._closure, self._plan = store, closure, plan
        self._derivations: dict[DRef, Derivation] = {d.dref: d for d in closure.derivations}
        self._rank = {dref: i for i, dref in enumerate(graph.order)}
        self._realize_args, self._observe = realize_args, observe
        self._losses = store.batch.losses
        self._root = fsroot(closure.S)  # now: a realizer may change the working folder or the environment

    def run(self) -> None:
        """Turn the plan until it is finished. What is in place when anything is raised is committed first."""
        queue: list[tuple[int, int, Action]] = []
        pushed = 0
        try:
            actions = self._plan.start()
            while True:
                for action in actions:
                    pushed += 1
                    heapq.heappush(queue, (self._rank_of(action), pushed, action))
                _, _, action = heapq.heappop(queue)
                if isinstance(action, Finish):
                    return
                actions = self._plan.handle(self._act(action))
        except BaseException:
            # Realizations that were finished before stay, whatever stops the rest.
            self._store.flush()
            raise

    def _rank_of(self, action: Action) -> int:
        return len(self._rank) if isinstance(action, (Commit, Finish)) else self._rank[action.dref]

    def _act(self, action: Action) -> Fact:
        if isinstance(action, FindCandidates):
            return CandidatesFound(action.dref, self._store.candidates(action.dref, action.context))
        if isinstance(action, AskMatcher):
            return self._ask(action)
        if isinstance(action, StartBuild):
            return self._build(action)
        if isinstance(action, Commit):
            return self._commit()
        raise AssertionError(f"BUG: the planner gave {action!r}")

    def _failed(self, dref: DRef, error: BaseException) -> Failed:
        self._observe(BuildFailed(dref, error))
        return Failed(dref, error)

    def _ask(self, action: AskMatcher) -> Fact:
        matcher = self._derivations[action.dref].matcher
        try:
            if isinstance(matcher, BuiltinMatcher):
                return MatcherAnswered(action.dref, matcher.pick(action.candidates))
            rrefs = [candidate.rref for candidate in action.candidates]
            with _not_in_forked_child():
                return MatcherAnswered(action.dref, matcher(self._settings(None), rrefs))
        except Exception as error:  # noqa: BLE001  # a user's code; the planner decides what follows
            return self._failed(action.dref, error)

    def _commit(self) -> Fact:
        self._store.flush()
        if self._store.batch.losses != self._losses and self._store.batch.lost is not None:
            # Another thread's flush lost what this one had put in place.
            return CommitFailed(self._store.batch.lost, self._store.lost_among(self._plan.matched_rrefs()))
        return Committed()

    def _settings(self, folder: Optional[str]) -> StorageSettings:
        layout = self._store.layout
        return StorageSettings(self._root, Path(layout.storage), Path(folder or layout.tmp))

    # --- building -----------------------------------------------------------------------------------

    def _build(self, action: StartBuild) -> Fact:
        dref = action.dref

        def on_wait() -> None:
            self._observe(BuildWaiting(dref, tuple(holders(self._store.layout))))

        with _not_nested(dref), self._store.build_lock(dref, action.context, on_wait):
            if action.known is not None:
                candidates = self._store.candidates(dref, action.context)
                if candidates != list(action.known):
                    self._observe(BuildJoined(dref))
                    return CandidatesFound(dref, candidates)
            self._observe(BuildStarted(dref, self._plan.done, self._plan.total))
            fact = self._run_realizer(dref, action.context)
        self._store.flush_if_due()
        return fact

    def _run_realizer(self, dref: DRef, context: dict[DRef, list[RRef]]) -> Fact:
        layout = self._store.layout
        with translated_errors(layout, f"making the build folder of {dref}"):
            folder = self._store.owner.make_folder()
        reach("folder_made")
        realizer = self._derivations[dref].realizer
        started = time.time()
        begun = time.perf_counter()
        try:
            S = self._settings(folder)
            with _not_in_forked_child(), current_storage(S):
                answer = realizer(S, dref, LazyContext(context, lambda: self._plan.transitive(dref)), self._realize_args.get(dref, {}))
            stopped = started + (time.perf_counter() - begun)
            outputs = take_outputs(layout, dref, folder, answer)
            digest = _realizer_digest(realizer)
            self._store.place(dref, context, outputs, started=started, stopped=stopped, realizer_digest=digest)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001  # a user's code; the planner decides what follows
            _keep(layout, dref, folder, error)
            return self._failed(dref, error)
        finally:
            _remove_folder(folder)
        self._observe(BuildFinished(dref, stopped - started))
        return Built(dref)

    # --- the end ------------------------------------------------------------------------------------

    def outcome(self) -> Outcome:
        ended = self._plan.outcome()
        for dref, because in ended.skipped:
            self._observe(BuildSkipped(dref, because))
        context: Context = {dref: list(rrefs) for dref, rrefs in sorted(ended.matched.items())}
        for step in ended.steps:
            context.setdefault(step.dref, None)
        return Outcome(
            result=self._closure.result,
            closure=self._closure,
            context=context,
            built=ended.built,
            joined=ended.joined,
            reused=ended.reused,
            failed=ended.failed,
            skipped=ended.skipped,
            steps=ended.steps,
        )


def _keep(layout: StoreLayout, dref: DRef, folder: str, error: Exception) -> None:
    """Keep what a failed build left, if it left anything and its error can say where."""
    if isinstance(error, BuildError) and any(os.path.isdir(path) for path in error.outpaths):
        kept = keep_failed(layout, dref, folder)
        error.outpaths = [Path(path.replace(folder, kept, 1)) for path in error.outpaths]


def _remove_folder(folder: str) -> None:
    try:
        os.rmdir(folder)  # mostly empty now: outputs were renamed into the store
    except OSError:
        remove_tree(folder)


def _realizer_digest(realizer: Any) -> Optional[str]:
    from pylightnix.codekey import pyobjhash

    try:
        return str(pyobjhash([realizer]))
    except PylightnixException:
        return None  # provenance only: a realizer without source is built all the same


@contextmanager
def _not_in_forked_child() -> Iterator[None]:
    """End, at the end of the block, a process that user code forked in it and let run on.

    Such a child would else go on with its parent's plan: remove its build folder, commit its batch.
    """
    pid = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != pid:
            _end_stray_child(sys.exc_info()[1])


def _end_stray_child(error: Optional[BaseException]) -> NoReturn:
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else 1 if error.code else 0
    elif error is not None:
        status = 1
        traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


_building: set[tuple[int, DRef]] = set()
"""(thread, derivation) of every realizer that is running."""


@contextmanager
def _not_nested(dref: DRef) -> Iterator[None]:
    """Refuse to build, inside a realizer, the very derivation that it realizes: it would wait for itself."""
    key = (threading.get_ident(), dref)
    if key in _building:
        raise Misuse(f"the realizer of {dref} asks for its own derivation to be realized, which would never end")
    _building.add(key)
    try:
        yield
    finally:
        _building.discard(key)
