"""The realization algorithm, as a state machine over one closure: facts in, actions out.

It owns every decision: order, matching, rebuild or reuse, failure and its spread, dry runs, when to
commit. It knows no files, clock, threads or randomness; two drivers turn it, one embedded and one in
the daemon, and tests drive it alone.

Each derivation goes through these states:

    waiting ──(dependencies settled)──> finding ──> matching ──(accepted)──> settled
                                           ^  ^        │
                                           │  │        └─(None)─> building ──(Built)──> finding
                                           │  └─────(others delivered)─┘
                                           └── a forced derivation starts at building

A derivation that the plan is told to ask about starts at asking: the caller settles it without its
matcher, or has it built as if it were forced. With `ask_on_failure`, one that failed goes there too.

and from any of them to `failed` (its own matcher or realizer failed, or its commit), `skipped`
(something below it failed) or, in a dry run, `unknown` (it would be built, or depends on what would)
and `refused` (it would be built, and must not be). What is above a refused one is `skipped`. A dry run does
not know what is above what would be built, but what fails or is refused beside that decides it: from
`unknown`, too, a derivation goes to `skipped`.
A matcher that asks for a build again after one was made has refused, which is a failure.

When every derivation is in a final state, `Commit` is given, and only after `Committed` comes
`Finish`: nobody hears of a realization that is not durable. Rules that must change together: a new
state needs a row in `_FINAL` or a way out, and a clause in `check_invariants`. All transitions stand in
this one file, long as it is, because they are only right together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Optional

from pylightnix.errors import InvalidMatch, MatcherRefused, Misuse, NotRealized
from pylightnix.events import PlanStep, StepKind
from pylightnix.planner.answers import problem_of_answer, problem_of_given
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
    Withdrawn,
)
from pylightnix.types import DRef, RRef

__all__ = ["NodeState", "Plan", "PlanOutcome"]


class NodeState(Enum):
    """Where a derivation is on its way."""

    waiting = "waiting"
    asking = "asking"
    finding = "finding"
    matching = "matching"
    building = "building"
    settled = "settled"
    failed = "failed"
    skipped = "skipped"
    unknown = "unknown"
    refused = "refused"

    # There is one object for each state, so its address will do: Enum's own hash is Python code, and each
    # step of a plan looks states up in the sets below.
    __hash__ = object.__hash__


_FINAL = frozenset({NodeState.settled, NodeState.failed, NodeState.skipped, NodeState.unknown, NodeState.refused})
_CAUSES = frozenset({NodeState.failed, NodeState.skipped, NodeState.refused})
"""Of which one is directly below whatever is skipped."""
_WAITING = frozenset({NodeState.waiting})
_UNDECIDED = _WAITING | {NodeState.unknown}
_BUSY = frozenset({NodeState.asking, NodeState.finding, NodeState.matching, NodeState.building})


@dataclass(slots=True)
class _Node:
    dref: DRef
    deps: tuple[DRef, ...]
    waits_for: int
    """Direct dependencies that are not settled."""
    forced: bool
    """Whether to build it whatever there is."""
    dependents: list[_Node] = field(default_factory=list)
    state: NodeState = NodeState.waiting
    candidates: Sequence[Candidate] = ()
    built: bool = False
    joined: bool = False
    matched: Optional[list[RRef]] = None
    would_build: bool = False
    """In a dry run: it is this one that would be built, not something below it."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PlanOutcome:
    """How a plan ended. Every list is in the order of the plan."""

    matched: dict[DRef, list[RRef]]
    built: list[DRef]
    joined: list[DRef]
    reused: list[DRef]
    failed: list[tuple[DRef, BaseException]]
    """In the order in which they failed."""
    skipped: list[tuple[DRef, DRef]]
    """(derivation, the failed one below it; in a dry run perhaps one that must not be built)"""
    steps: list[PlanStep]
    """What a dry run found; empty otherwise."""


class Plan:
    """One closure on its way to being realized.

    Args:
        order: what the targets need, dependencies first.
        deps: direct dependencies of each of these.
        forced: build these whatever there is.
        ask: ask the caller about these before anything else.
        ask_on_failure: ask the caller about what fails, instead of failing it.
        assert_realized: fail these rather than build them. A dry run, which fails nothing for that, says so in its steps.
        dry_run: ask matchers, build nothing.
        keep_going: after a failure go on with what does not depend on it.
    """

    def __init__(
        self,
        order: Sequence[DRef],
        deps: Mapping[DRef, Sequence[DRef]],
        *,
        forced: Iterable[DRef] = (),
        ask: Iterable[DRef] = (),
        ask_on_failure: bool = False,
        assert_realized: Iterable[DRef] = (),
        dry_run: bool = False,
        keep_going: bool = False,
    ) -> None:
        self._nodes: dict[DRef, _Node] = {}
        at_once = frozenset(forced)
        for dref in order:
            unique = tuple(dict.fromkeys(deps[dref]))
            node = self._nodes[dref] = _Node(dref, unique, len(unique), dref in at_once)
            for dep in unique:
                self._nodes[dep].dependents.append(node)
        self._asked, self.asks_on_failure = frozenset(ask), ask_on_failure
        self._assert_realized = frozenset(assert_realized)
        self.is_dry_run, self._keep_going = dry_run, keep_going
        self._open = len(self._nodes)
        self._busy = 0
        self._stopping = False
        self._phase = "running"
        self._failed: list[tuple[DRef, BaseException]] = []
        self._skipped: dict[DRef, DRef] = {}

    # --- what drivers call --------------------------------------------------------------------------

    def start(self) -> list[Action]:
        """Return the first actions."""
        actions: list[Action] = []
        for node in self._nodes.values():
            if not node.deps:
                self._begin(node, actions)
        return self._close(actions)

    def handle(self, fact: Fact) -> list[Action]:
        """Take in what happened and return what to do next, in the order of the plan.

        Raises:
            AssertionError: the fact does not fit the state; the driver has a bug.
        """
        actions: list[Action] = []
        if isinstance(fact, CandidatesFound):
            self._on_candidates(self._expect(fact, NodeState.finding, NodeState.building), fact.candidates, actions)
        elif isinstance(fact, MatcherAnswered):
            self._on_answer(self._expect(fact, NodeState.matching), fact.answer, actions)
        elif isinstance(fact, CallerAnswered):
            self._on_caller(self._expect(fact, NodeState.asking), fact.rrefs, actions)
        elif isinstance(fact, Built):
            self._on_built(self._expect(fact, NodeState.building), fact.joined, actions)
        elif isinstance(fact, Failed):
            self._fail(self._expect(fact, NodeState.matching, NodeState.building, NodeState.asking), fact.error, actions)
        elif isinstance(fact, Withdrawn):
            self._withdraw(self._expect(fact, NodeState.building))
        elif isinstance(fact, (Committed, CommitFailed)):
            return self._on_commit(fact)
        return self._close(actions)

    @property
    def done(self) -> int:
        """How many derivations are in a final state."""
        return len(self._nodes) - self._open

    @property
    def total(self) -> int:
        """How many derivations there are."""
        return len(self._nodes)

    def state(self, dref: DRef) -> NodeState:
        """Return where `dref` is on its way."""
        return self._nodes[dref].state

    def matched_rrefs(self) -> set[RRef]:
        """Return every realization that was matched so far."""
        return {rref for node in self._nodes.values() for rref in node.matched or ()}

    def transitive(self, dref: DRef) -> dict[DRef, list[RRef]]:
        """Return what was matched for everything below `dref`. All of it must be settled."""
        found: dict[DRef, list[RRef]] = {}
        stack = list(self._nodes[dref].deps)
        while stack:
            node = self._nodes[stack.pop()]
            if node.dref not in found:
                if node.matched is None:
                    raise AssertionError(f"BUG: {node.dref} is {node.state.value}, below {dref}")
                found[node.dref] = list(node.matched)
                stack.extend(node.deps)
        return found

    # --- transitions --------------------------------------------------------------------------------

    def _expect(self, fact: CandidatesFound | MatcherAnswered | CallerAnswered | Built | Failed | Withdrawn, *states: NodeState) -> _Node:
        node = self._nodes[fact.dref]
        if node.state not in states or (isinstance(fact, CandidatesFound) and node.state is NodeState.building and node.forced):
            raise AssertionError(f"BUG: {type(fact).__name__} for {fact.dref}, which is {node.state.value}")
        return node

    def _set(self, node: _Node, state: NodeState) -> None:
        """The one place where a state changes."""
        self._busy += (state in _BUSY) - (node.state in _BUSY)
        self._open -= (state in _FINAL) - (node.state in _FINAL)
        node.state = state

    def _context(self, node: _Node) -> dict[DRef, list[RRef]]:
        context: dict[DRef, list[RRef]] = {}
        for dep in node.deps:
            matched = self._nodes[dep].matched
            if matched is None:
                raise AssertionError(f"BUG: {node.dref} starts before {dep} is settled")
            context[dep] = list(matched)
        return context

    def _begin(self, node: _Node, actions: list[Action]) -> None:
        if self._stopping:
            return
        if node.dref in self._asked:
            self._ask(node, None, actions)
        elif node.forced:
            self._want_build(node, "forced", actions)
        else:
            self._set(node, NodeState.finding)
            actions.append(FindCandidates(node.dref, self._context(node)))

    def _ask(self, node: _Node, error: Optional[BaseException], actions: list[Action]) -> None:
        self._set(node, NodeState.asking)
        actions.append(AskCaller(node.dref, self._context(node), error))

    def _on_caller(self, node: _Node, rrefs: Optional[Sequence[RRef]], actions: list[Action]) -> None:
        node.built, node.joined, node.forced = False, False, True
        if rrefs is None:
            self._want_build(node, "forced", actions)
            return
        problem = problem_of_given(rrefs, node.dref)
        if problem:
            self._fail(node, Misuse(f"{node.dref} {problem}"), actions)
        else:
            self._settle(node, rrefs, actions)

    def _on_candidates(self, node: _Node, candidates: Sequence[Candidate], actions: list[Action]) -> None:
        node.joined = node.joined or node.state is NodeState.building
        node.candidates = candidates
        self._set(node, NodeState.matching)
        actions.append(AskMatcher(node.dref, candidates))

    def _on_answer(self, node: _Node, answer: Any, actions: list[Action]) -> None:
        if answer is None:
            if node.built:
                self._fail(
                    node, MatcherRefused(node.dref, len(node.candidates), [candidate.rref for candidate in node.candidates]), actions
                )
            else:
                seen = len(node.candidates)
                self._want_build(node, f"the matcher accepts none of {seen} realizations" if seen else "no realization", actions)
            return
        problem = problem_of_answer(answer, node.candidates)
        if problem:
            self._fail(node, InvalidMatch(node.dref, problem), actions)
        else:
            self._settle(node, answer, actions)

    def _settle(self, node: _Node, rrefs: Iterable[RRef], actions: list[Action]) -> None:
        node.matched = sorted({RRef(rref) for rref in rrefs})
        self._set(node, NodeState.settled)
        for dependent in node.dependents:
            dependent.waits_for -= 1
            if dependent.waits_for == 0 and dependent.state is NodeState.waiting:
                self._begin(dependent, actions)

    def _want_build(self, node: _Node, reason: str, actions: list[Action]) -> None:
        node.reason = reason
        if self.is_dry_run and node.dref in self._assert_realized:
            self._set(node, NodeState.refused)
            self._skip_above(node, "must not be built")
        elif self.is_dry_run:
            node.would_build = True
            self._set(node, NodeState.unknown)
            because = f"depends on {node.dref}, which would be built"
            for above in self._above(node, _WAITING):
                above.reason = because
                self._set(above, NodeState.unknown)
        elif node.dref in self._assert_realized:
            self._fail(node, NotRealized(node.dref, f"a build was needed ({reason}) where assert_realized forbids it"), actions)
        elif self._stopping:
            self._set(node, NodeState.waiting)
        else:
            self._set(node, NodeState.building)
            known = None if node.forced else node.candidates
            actions.append(StartBuild(node.dref, self._context(node), known))

    def _on_built(self, node: _Node, joined: bool, actions: list[Action]) -> None:
        node.built, node.joined = True, joined
        self._set(node, NodeState.finding)
        actions.append(FindCandidates(node.dref, self._context(node)))

    def _withdraw(self, node: _Node) -> None:
        if not self._stopping:
            raise AssertionError(f"BUG: {node.dref} was withdrawn, and nothing has failed")
        self._set(node, NodeState.waiting)

    def _above(self, node: _Node, states: frozenset[NodeState]) -> list[_Node]:
        """Return what is above `node` in these states, at any distance.

        What is above a skipped derivation is so too, and above an unknown one unknown or skipped, hence no walk
        beyond others: each derivation is walked over twice at most in the life of the plan.
        """
        found: dict[DRef, _Node] = {}
        stack = [node]
        while stack:
            for dependent in stack.pop().dependents:
                if dependent.dref not in found and dependent.state in states:
                    found[dependent.dref] = dependent
                    stack.append(dependent)
        return list(found.values())

    def _fail(self, node: _Node, error: BaseException, actions: list[Action]) -> None:
        if self.asks_on_failure:
            self._ask(node, error, actions)
            return
        self._failed.append((node.dref, error))
        node.matched = None
        node.reason = "its matcher fails"  # told of dry runs only, in which no realizer can
        self._set(node, NodeState.failed)
        self._skip_above(node, "fails")
        if not self._keep_going:
            self._stopping = True

    def _skip_above(self, node: _Node, what: str) -> None:
        because = f"depends on {node.dref}, which {what}"
        for above in self._above(node, _UNDECIDED):
            above.reason = because
            self._skipped[above.dref] = node.dref
            self._set(above, NodeState.skipped)

    def _on_commit(self, fact: Committed | CommitFailed) -> list[Action]:
        if self._phase != "committing":
            raise AssertionError(f"BUG: {type(fact).__name__} while {self._phase}")
        self._phase = "finished"
        if isinstance(fact, CommitFailed):
            for node in self._nodes.values():
                gone = node.built if fact.lost is None else any(rref in fact.lost for rref in node.matched or ())
                lost = gone or any(self._nodes[dep].state is NodeState.failed for dep in node.deps)
                if lost and node.state is NodeState.settled:
                    node.matched = None
                    node.reason = "what it was realized as is lost"
                    self._failed.append((node.dref, fact.error))
                    self._set(node, NodeState.failed)
                    self._skip_above(node, "is lost")
        return [Finish()]

    def _close(self, actions: list[Action]) -> list[Action]:
        """Give `Commit` when nothing is under way and nothing more will start."""
        if self._phase == "running" and self._busy == 0 and (self._open == 0 or self._stopping):
            self._phase = "committing"
            return [*actions, Commit()]
        return actions

    # --- the end ------------------------------------------------------------------------------------

    def outcome(self) -> PlanOutcome:
        """Return how it ended; to be asked after `Finish` only."""
        if self._phase != "finished":
            raise AssertionError(f"BUG: outcome asked while {self._phase}")
        nodes = list(self._nodes.values())
        settled = [node for node in nodes if node.state is NodeState.settled]
        return PlanOutcome(
            matched={node.dref: list(node.matched) for node in settled if node.matched is not None},
            built=[node.dref for node in settled if node.built and not node.joined],
            joined=[node.dref for node in settled if node.joined],
            reused=[node.dref for node in settled if not node.built and not node.joined],
            failed=list(self._failed),
            skipped=[(node.dref, self._skipped[node.dref]) for node in nodes if node.dref in self._skipped],
            steps=[_step(node) for node in nodes] if self.is_dry_run else [],
        )

    def check_invariants(self) -> None:
        """Raise `AssertionError` if the state contradicts itself. For tests, after every step."""
        nodes = self._nodes
        problems = [
            (self._open != sum(n.state not in _FINAL for n in nodes.values()), "open count"),
            (self._busy != sum(n.state in _BUSY for n in nodes.values()), "busy count"),
            (self._phase != "running" and self._busy > 0, "committing while busy"),
        ]
        _report(problems, "the plan")
        for node in nodes.values():
            unsettled = sum(nodes[dep].matched is None for dep in node.deps)
            below = {nodes[dep].state for dep in node.deps}
            started = node.state in _BUSY or node.state is NodeState.settled
            problems = [
                ((node.matched is not None) != (node.state is NodeState.settled), "matched but not settled, or the reverse"),
                (self._phase == "running" and node.waits_for != unsettled, "count of awaited dependencies"),
                (self._phase == "running" and started and unsettled > 0, "started before its dependencies"),
                (node.state is NodeState.skipped and not below & _CAUSES, "skipped without a cause"),
                (node.state not in _CAUSES and bool(below & _CAUSES), "not skipped with a cause"),
                (node.state is NodeState.refused and not self.is_dry_run, "refused, and not in a dry run"),
                (node.built and self.is_dry_run, "built in a dry run"),
                (node.built and node.dref in self._assert_realized, "built against assert_realized"),
            ]
            _report(problems, str(node.dref))


def _report(problems: list[tuple[bool, str]], where: str) -> None:
    for wrong, what in problems:
        if wrong:
            raise AssertionError(f"BUG: {what}: {where}")


def _step(node: _Node) -> PlanStep:
    if node.state is NodeState.settled:
        return PlanStep(node.dref, StepKind.reuse, f"{len(node.matched or ())} of {len(node.candidates)} realizations match")
    if node.would_build:
        return PlanStep(node.dref, StepKind.build, node.reason)
    if node.state is NodeState.waiting:
        return PlanStep(node.dref, StepKind.unknown, "was not looked at, because something else fails")
    return PlanStep(node.dref, StepKind(node.state.value), node.reason)
