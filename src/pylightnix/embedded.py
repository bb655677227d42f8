"""The embedded driver: turns the planner in the calling process, one action at a time.

Realizers and matchers are the caller's own functions and run in its thread, in registration order
wherever dependencies allow. No daemon, no second process, no thread.
"""

from __future__ import annotations

import heapq
import json
import logging
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Optional, Union

from pylightnix.attempt import call_matcher, call_realizer, realizer_manifest, take_outputs
from pylightnix.collecting import Uncollected
from pylightnix.context import LazyContext
from pylightnix.errors import MissingRealization, Misuse, StoreError
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
from pylightnix.nesting import RunningRealizer, note_realized, running_realizer
from pylightnix.pause import Answer, Pause
from pylightnix.planner.messages import (
    Action,
    AskCaller,
    AskMatcher,
    Built,
    CallerAnswered,
    Candidate,
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
from pylightnix.refs import isrref
from pylightnix.registry import ClosureGraph, RegisteredDerivation, assert_valid_closure, needed_graph
from pylightnix.storage import fsroot, store_layout
from pylightnix.store.access import translated_errors
from pylightnix.store.derivations import write_derivation
from pylightnix.store.faults import reach
from pylightnix.store.kept import keep_failed, left_by, point_to
from pylightnix.store.layout import StoreLayout
from pylightnix.store.locks import holders
from pylightnix.store.set_aside import discard
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

__all__ = ["Outcome", "forced_drefs", "realize_closure", "realize_in_steps"]

_log = logging.getLogger("pylightnix")

_FOUND_AT_ONCE: Final = 100
"""Of how many derivations the index is asked for the realizations in one query."""


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
    with Uncollected():
        graph = needed_graph(closure.targets, closure.derivations, closure.S)
        plan = Plan(graph.order, graph.deps, forced=forced, assert_realized=assert_realized, dry_run=dry_run, keep_going=keep_going)
        driver = _Driver(closure, graph, plan, realize_args or {}, observe)
    for pause in driver.run():
        raise AssertionError(f"BUG: the plan asks about {pause.dref}, which it was not told to do")
    return driver.outcome()


def realize_in_steps(
    closure: Closure,
    ask: Sequence[DRef],
    *,
    ask_on_failure: bool = False,
    assert_realized: Sequence[DRef] = (),
    realize_args: Optional[Mapping[DRef, RealizeArg]] = None,
    dry_run: bool = False,
) -> Generator[Pause, Answer, Optional[Outcome]]:
    """Realize as `realize_closure` does, but let the caller decide about some derivations.

    What was realized before a pause is durable then, and the store is nobody's while it lasts.

    Args:
        closure: as `instantiate` makes it.
        ask: pause before each of these, even if it is realized already.
        ask_on_failure: pause at what failed, too, instead of ending with it.
        assert_realized: derivations that must not be built.
        realize_args: what realizers get as their last argument, by derivation.
        dry_run: ask matchers and the caller, but build nothing.

    Returns:
        How it ended, None if the caller gave up.
    """
    assert_valid_closure(closure)
    graph = needed_graph(closure.targets, closure.derivations, closure.S)
    plan = Plan(graph.order, graph.deps, ask=ask, ask_on_failure=ask_on_failure, assert_realized=assert_realized, dry_run=dry_run)
    driver = _Driver(closure, graph, plan, realize_args or {}, ignore)

    def steps() -> Generator[Pause, Answer, Optional[Outcome]]:
        return driver.outcome() if (yield from driver.run()) else None

    return steps()  # made here and not in the generator, so that what is wrong with the closure is said at the call


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
    _store: Store
    """Open between two pauses."""

    def __init__(
        self,
        closure: Closure,
        graph: ClosureGraph,
        plan: Plan,
        realize_args: Mapping[DRef, RealizeArg],
        observe: Observer,
    ) -> None:
        self._layout, self._closure, self._plan = store_layout(closure.S), closure, plan
        self._derivations: dict[DRef, Derivation] = {d.dref: d for d in closure.derivations}
        self._rank = {dref: i for i, dref in enumerate(graph.order)}
        self._realize_args, self._observe = realize_args, observe
        self._uncollected = Uncollected()
        self._queue: list[tuple[int, int, Action]] = []
        self._unasked: dict[DRef, FindCandidates] = {}
        """Look-ups in the queue that the index was not asked about yet."""
        self._found: dict[DRef, list[Candidate]] = {}
        """What the index said about other look-ups in the queue. Good until code of users runs, which may realize, too."""
        self._pushed = 0
        self._losses = 0
        self._made: dict[DRef, list[RRef]] = {}
        self._root = fsroot(closure.S)  # now: a realizer may change the working folder or the environment

    def run(self) -> Generator[Pause, Answer, bool]:
        """Turn the plan until it is finished, or the caller gives up at a pause; tell whether it was finished.

        What is in place when anything is raised is committed first.
        """
        fact: Optional[Fact] = None
        while True:
            with open_store(self._layout) as self._store:
                self._losses = self._store.batch.losses
                self._found.clear()
                actions = self._plan.start() if fact is None else self._plan.handle(self._confirmed(fact))
                question = self._turn(actions)
                if question is None:
                    return True
                with translated_errors(self._layout, f"making a folder for {question.dref}"):
                    folder = self._store.owner.make_folder()
            try:
                rrefs, abort = yield self._pause(question, folder)
            finally:
                _remove_folder(self._layout, folder)
            if abort:
                return False
            fact = CallerAnswered(question.dref, rrefs)

    def _turn(self, actions: Sequence[Action]) -> Optional[AskCaller]:
        """Do one action after the other until there are none, or the caller is to be asked."""
        try:
            with self._uncollected:
                while True:
                    for action in actions:
                        self._push(action)
                    _, _, action = heapq.heappop(self._queue)
                    if isinstance(action, Finish):
                        return None
                    if isinstance(action, AskCaller):
                        committed = self._commit()
                        if isinstance(committed, CommitFailed):
                            raise committed.error
                        return action
                    actions = self._plan.handle(self._attempt(action))
        except BaseException:
            # Realizations that were finished before stay, whatever stops the rest.
            self._store.flush()
            raise

    def _push(self, action: Action) -> None:
        self._pushed += 1
        heapq.heappush(self._queue, (self._rank_of(action), self._pushed, action))
        if isinstance(action, FindCandidates):
            self._unasked[action.dref] = action

    def _attempt(self, action: Action) -> Fact:
        try:
            return self._act(action)
        except KeyboardInterrupt as error:
            if self._plan.asks_on_failure and isinstance(action, (AskMatcher, StartBuild)):
                return Failed(action.dref, error)  # for the caller to decide, as with any other failure
            raise

    def _pause(self, question: AskCaller, folder: str) -> Pause:
        dref = question.dref
        context = LazyContext(question.context, lambda: self._plan.transitive(dref))
        pause = Pause(self._settings(folder), dref, context, self._derivations[dref], self._realize_args.get(dref, {}))
        pause.error = question.error
        return pause

    def _confirmed(self, fact: Fact) -> Fact:
        """Return what a caller answered, or that it failed if it names realizations that are not in the store.

        Raises:
            MissingRealization: what was matched before the pause is not there any more.
        """
        for rref in sorted(self._store.lost_among(self._plan.matched_rrefs())):
            raise MissingRealization(rref, self._layout.storage)
        if isinstance(fact, CallerAnswered) and isinstance(fact.rrefs, (list, tuple)):
            for rref in sorted(self._store.lost_among(rref for rref in fact.rrefs if isrref(rref))):
                return Failed(fact.dref, MissingRealization(rref, self._layout.storage))
        return fact

    def _rank_of(self, action: Action) -> int:
        return len(self._rank) if isinstance(action, (Commit, Finish)) else self._rank[action.dref]

    def _act(self, action: Action) -> Fact:
        if isinstance(action, FindCandidates):
            return CandidatesFound(action.dref, self._find(action))
        if isinstance(action, AskMatcher):
            return self._ask(action)
        if isinstance(action, StartBuild):
            with self._code_of_users():
                return self._build(action)
        if isinstance(action, Commit):
            return self._commit()
        raise AssertionError(f"BUG: the planner gave {action!r}")

    def _find(self, action: FindCandidates) -> list[Candidate]:
        """Return the candidates of one derivation; ask the index for those of others in the queue with it."""
        found = self._found.pop(action.dref, None)
        if found is None:
            asked = [action]
            self._unasked.pop(action.dref, None)
            while self._unasked and len(asked) < _FOUND_AT_ONCE:
                asked.append(self._unasked.popitem()[1])
            found, *others = self._store.candidates_of_many([(each.dref, each.context) for each in asked])
            self._found.update(zip((each.dref for each in asked[1:]), others, strict=True))
        return found

    @contextmanager
    def _code_of_users(self) -> Iterator[None]:
        self._found.clear()
        with self._uncollected.interrupted():
            yield

    def _failed(self, dref: DRef, error: BaseException) -> Failed:
        from pylightnix.missing_files import advise

        advise(error)
        self._observe(BuildFailed(dref, error))
        return Failed(dref, error)

    def _ask(self, action: AskMatcher) -> Fact:
        matcher = self._derivations[action.dref].matcher
        try:
            if isinstance(matcher, BuiltinMatcher):
                answer = matcher.pick(action.candidates)
            else:
                with self._code_of_users():
                    answer = call_matcher(matcher, self._settings(None), [candidate.rref for candidate in action.candidates])
        except Exception as error:  # noqa: BLE001  # a user's code; the planner decides what follows
            return self._failed(action.dref, error)
        made = self._made.pop(action.dref, ())
        if made and isinstance(answer, (list, tuple)) and answer and not any(rref in made for rref in answer):
            _log.warning("%s was built, and its matcher picked none of what came of it: %s", action.dref, ", ".join(made))
        return MatcherAnswered(action.dref, answer)

    def _commit(self) -> Fact:
        self._store.flush()
        if self._store.batch.losses != self._losses and self._store.batch.lost is not None:
            # Another thread's flush lost what this one had put in place.
            return CommitFailed(self._store.batch.lost, self._store.lost_among(self._plan.matched_rrefs()))
        return Committed()

    def _settings(self, folder: Optional[str]) -> StorageSettings:
        return StorageSettings(self._root, Path(self._layout.storage), Path(folder or self._layout.tmp))

    # --- building -----------------------------------------------------------------------------------

    def _build(self, action: StartBuild) -> Fact:
        dref = action.dref

        def on_wait() -> None:
            self._observe(BuildWaiting(dref, tuple(holders(self._store.layout))))

        with running_realizer(dref, self._layout.storage) as running, self._store.build_lock(dref, action.context, on_wait):
            if action.known is not None:
                candidates = self._store.candidates(dref, action.context)
                if candidates != list(action.known):
                    self._observe(BuildJoined(dref))
                    return CandidatesFound(dref, candidates)
            self._write_again(dref)
            self._observe(BuildStarted(dref, self._plan.done, self._plan.total))
            fact = self._run_realizer(running, action.context)
        self._store.flush_if_due()
        return fact

    def _write_again(self, dref: DRef) -> None:
        """Write the folder of a derivation that was collected as garbage since it was registered."""
        derivation = self._derivations[dref]
        if os.path.isdir(self._store.layout.derivation(dref)):
            return
        if isinstance(derivation, RegisteredDerivation) and derivation.config is not None:
            value = json.loads(derivation.config)
            write_derivation(self._store.layout, dref, derivation.config, value, owner=self._store.owner)

    def _run_realizer(self, running: RunningRealizer, context: dict[DRef, list[RRef]]) -> Fact:
        layout, dref = self._store.layout, running.dref
        with translated_errors(layout, f"making the build folder of {dref}"):
            folder = self._store.owner.make_folder()
        reach("folder_made")
        realizer = self._derivations[dref].realizer
        started = time.time()
        begun = time.perf_counter()
        try:
            arguments = self._realize_args.get(dref, {})
            answer = call_realizer(realizer, self._settings(folder), dref, context, lambda: self._plan.transitive(dref), arguments)
            stopped = started + (time.perf_counter() - begun)
            outputs = take_outputs(layout, dref, folder, answer)
            code = realizer_manifest(realizer)
            known = {} if code is None else {"realizer_digest": code.digest, "manifest": code.to_json()}
            self._made[dref] = self._store.place(dref, context, outputs, started=started, stopped=stopped, dynamic=running.dynamic, **known)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001  # a user's code; the planner decides what follows
            _keep(layout, dref, folder, error)
            return self._failed(dref, error)
        finally:
            _remove_folder(self._layout, folder)
        self._observe(BuildFinished(dref, stopped - started))
        return Built(dref)

    # --- the end ------------------------------------------------------------------------------------

    def outcome(self) -> Outcome:
        with self._uncollected:
            return self._outcome()

    def _outcome(self) -> Outcome:
        ended = self._plan.outcome()
        for dref, because in ended.skipped:
            self._observe(BuildSkipped(dref, because))
        known: Context = {dref: list(rrefs) for dref, rrefs in ended.matched.items()}
        unknown: Context = {step.dref: None for step in ended.steps}
        if not self._plan.is_dry_run:
            note_realized(self._layout.storage, {dref: ended.matched.get(dref) for dref in self._closure.targets})
        return Outcome(
            result=self._closure.result,
            closure=self._closure,
            context=dict(sorted({**unknown, **known}.items())),
            built=ended.built,
            joined=ended.joined,
            reused=ended.reused,
            failed=ended.failed,
            skipped=ended.skipped,
            steps=ended.steps,
        )


def _keep(layout: StoreLayout, dref: DRef, folder: str, error: Exception) -> None:
    """Keep what a failed build left, if it left anything and its error can say where."""
    tops = (folder, os.path.realpath(folder))

    def inside(path: str) -> Optional[str]:
        """Return what follows the build folder in a path; None if it leads elsewhere."""
        return next((path[len(top) :] for top in tops if path == top or path.startswith(f"{top}/")), None)

    if any(inside(path) is not None and os.path.isdir(path) for path in left_by(error)):
        kept = keep_failed(layout, dref, folder)
        point_to(error, lambda path: path if (rest := inside(path)) is None else kept + rest)


def _remove_folder(layout: StoreLayout, folder: str) -> None:
    try:
        os.rmdir(folder)  # mostly empty now: outputs were renamed into the store
    except OSError:
        discard(layout, folder)
