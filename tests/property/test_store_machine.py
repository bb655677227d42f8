"""A store under random work, random deaths and random recoveries: what was acknowledged is there, and nothing else is.

Every step is done by a forked process that may be killed at any reach of any named point; the machine itself
never opens the store, it only looks at what lies there.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.peers import Line, Peer
from tests.soundness import UNIT_FILE, check_sound, rows
from tests.stores import new_store, output, stage

from pylightnix import Context, DRef, Matcher, Path, Realizer, Registry, RRef, StorageSettings, instantiate, match_all, match_latest
from pylightnix.embedded import realize_closure
from pylightnix.query import allrrefs
from pylightnix.storage import store_layout
from pylightnix.store import faults

# --- the pool of derivations --------------------------------------------------------------------------


class Fails(Exception):
    pass


def leaving(name: str, fixed: int, fresh: int) -> Realizer:
    """Return a realizer of `fixed` outputs that are the same on every run, and `fresh` ones that never are."""

    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        nonce = os.urandom(8).hex()
        outputs = [output(S, {"number": str(i), UNIT_FILE: f"{name} {fixed}"}) for i in range(fixed)]
        outputs += [output(S, {"number": str(i), UNIT_FILE: f"{nonce} {fresh}"}) for i in range(fresh)]
        for folder in outputs:
            os.symlink("number", f"{folder}/link")
            os.mkdir(f"{folder}/empty")
        if rarg.get("fail"):
            raise Fails(name)
        return outputs

    return realizer


@dataclass(frozen=True)
class Stage:
    below: tuple[str, ...]
    fixed: int
    fresh: int
    matcher: Matcher


POOL = {
    "leaf": Stage((), 1, 0, match_latest()),
    "random": Stage((), 0, 2, match_latest()),
    "three": Stage((), 3, 0, match_all),
    "left": Stage(("leaf", "random"), 2, 0, match_latest(2)),
    "right": Stage(("leaf", "three"), 1, 2, match_latest()),
    "above": Stage(("left", "right"), 1, 0, match_latest()),
    "top": Stage(("above", "three"), 0, 3, match_all),
    "alone": Stage((), 2, 0, match_all),
}
NAMES = tuple(POOL)


def graph(r: Registry) -> list[DRef]:
    drefs: dict[str, DRef] = {}
    for name, item in POOL.items():
        deps = [drefs[below] for below in item.below]
        drefs[name] = stage(r, name, realizer=leaving(name, item.fixed, item.fresh), matcher=item.matcher, deps=deps)
    return list(drefs.values())


# --- work, and how it ends ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One call of `realize`."""

    targets: tuple[str, ...]
    forced: tuple[str, ...] = ()
    failing: tuple[str, ...] = ()
    keep_going: bool = False


@dataclass(frozen=True)
class Death:
    """Being killed at the `occurrence`-th reach of a point."""

    point: str
    occurrence: int


CALLS = st.builds(
    Call,
    targets=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True).map(tuple),
    forced=st.lists(st.sampled_from(NAMES), max_size=2, unique=True).map(tuple),
    failing=st.one_of(st.just(()), st.sampled_from(NAMES).map(lambda name: (name,))),
    keep_going=st.booleans(),
)
DEATHS = st.builds(Death, st.sampled_from(faults.POINTS), st.integers(1, 6))


def dying(death: Optional[Death]) -> Optional[Callable[[str], None]]:
    if death is None:
        return None
    left = death.occurrence

    def hook(point: str) -> None:
        nonlocal left
        left -= point == death.point
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def realize(S: StorageSettings, call: Call) -> list[RRef]:
    """Return what is acknowledged."""
    drefs, closure = instantiate(graph, S=S)
    of = dict(zip(NAMES, drefs, strict=True))
    outcome = realize_closure(
        closure._replace(targets=[of[name] for name in call.targets]),
        force_rebuild=[of[name] for name in call.forced],
        realize_args={of[name]: {"fail": True} for name in call.failing},
        keep_going=call.keep_going,
    )
    assert all(isinstance(error, Fails) for _, error in outcome.failed), outcome.failed
    return [rref for rrefs in outcome.context.values() for rref in rrefs or ()]


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def make(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="test-store-machine-")
        self.S = new_store(f"{self.folder}/store")
        self.acknowledged: set[RRef] = set()

    def teardown(self) -> None:
        for folder, _, _ in os.walk(self.folder):
            os.chmod(folder, 0o755)
        shutil.rmtree(self.folder)

    def child(self, calls: list[Call], death: Optional[Death]) -> None:
        """Make the calls in a process that may be killed, and note what it has acknowledged."""

        def body(line: Line) -> None:
            faults.set_hook(dying(death))
            for call in calls:
                line.say(" ".join(["acknowledged", *realize(self.S, call)]))

        with Peer(body) as peer:
            while heard := peer.line.hear():
                self.acknowledged.update(map(RRef, heard.split()[1:]))
            assert peer.wait() in ((0, -signal.SIGKILL) if death else (0,))

    def recover(self) -> None:
        def body(line: Line) -> None:
            line.say(" ".join(["valid", *allrrefs(self.S)]))

        with Peer(body) as peer:
            _, *valid = peer.line.hear().split()
            peer.end()
        assert self.acknowledged <= set(map(RRef, valid))

    @rule(calls=st.lists(CALLS, min_size=1, max_size=2), deaths=st.lists(DEATHS, max_size=3))
    def work(self, calls: list[Call], deaths: list[Death]) -> None:
        """Try the same work several times, each but the last of them perhaps cut short."""
        for death in [*deaths, None] if len(deaths) < 3 else deaths:
            self.child([call if death else Call(call.targets, call.forced) for call in calls], death)
        self.recover()

    @rule(deaths=st.lists(DEATHS, min_size=1, max_size=2))
    def lose_a_row(self, deaths: list[Death]) -> None:
        """A tree lies where a realization is to go, and no row knows of it."""
        self.child([Call(("alone",))], None)
        (lost, *_) = sorted(rref for rref in rows(self.S) if rref.endswith("-alone"))
        db = sqlite3.connect(store_layout(self.S).index)
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("DELETE FROM realization WHERE rref = ?", (lost,))
        db.commit()
        db.close()
        self.acknowledged.discard(lost)
        for death in deaths:
            self.child([Call(("alone",), forced=("alone",))], death)
        self.child([Call(("alone",), forced=("alone",))], None)
        assert lost in self.acknowledged
        self.recover()

    @invariant()
    def is_sound(self) -> None:
        if hasattr(self, "S"):
            check_sound(self.S, self.acknowledged)


SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
FEW = settings(max_examples=8, stateful_step_count=5, deadline=None, suppress_health_check=SLOW)
MANY = settings(FEW, max_examples=60, stateful_step_count=15)


def test_random_work_and_death() -> None:
    run_state_machine_as_test(StoreMachine, settings=FEW)


@pytest.mark.slow
def test_much_random_work_and_death() -> None:
    run_state_machine_as_test(StoreMachine, settings=MANY)
