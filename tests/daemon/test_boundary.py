"""Nothing that a task raises leaves a nursery that others share, and no task is started in one but through the boundary."""

from __future__ import annotations

import ast
import logging
import sqlite3
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from pylightnix.errors import StoreFull
from pylightnixd.boundary import FAILURES_MAX, SharedNursery, contained

DAEMON = Path(__file__).parents[2] / "daemon" / "pylightnixd"
ERRORS = (
    OSError(30, "read-only"),
    StoreFull("/s", "writing"),
    sqlite3.OperationalError("disk I/O error"),
    KeyError("greeted"),
    MemoryError(),
    AssertionError("BUG: two of one"),
    UnicodeEncodeError("utf-8", "\udce9", 0, 1, "no"),
)
FORESEEN = 3
"""How many of these are nobody's mistake."""


async def fails(error: BaseException) -> None:
    await trio.lowlevel.checkpoint()
    raise error


async def fails_deep() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(fails, KeyError("deep"))


def levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    return sorted(record.levelname for record in caplog.records)


def test_what_a_task_raises_is_logged_with_an_id_and_ends_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            shared = SharedNursery(nursery)
            for error in ERRORS:
                shared.start_soon(f"task {error!r}", partial(fails, error))
            shared.start_soon("task deep", fails_deep)
            await trio.testing.wait_all_tasks_blocked()
            assert not nursery.cancel_scope.cancel_called

    with caplog.at_level(logging.WARNING, "pylightnixd"):
        trio.run(main)
    assert levels(caplog) == ["ERROR"] * (len(ERRORS) - FORESEEN + 1) + ["WARNING"] * FORESEEN
    assert all("incident " in record.getMessage() for record in caplog.records)
    assert len({record.getMessage() for record in caplog.records}) == len(ERRORS) + 1


def test_what_goes_wrong_while_it_is_cancelled_is_logged_and_cancelling_passes(caplog: pytest.LogCaptureFixture) -> None:
    async def fails_at_its_end() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError(5, "closing")

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails_at_its_end)
            nursery.start_soon(trio.sleep_forever)

    async def main() -> bool:
        with trio.move_on_after(0) as scope:  # noqa: ASYNC100  # leaving the nursery is one
            async with trio.open_nursery() as nursery:
                SharedNursery(nursery).start_soon("both", both)
        return scope.cancelled_caught

    with caplog.at_level(logging.WARNING, "pylightnixd"):
        assert trio.run(main)
    assert levels(caplog) == ["WARNING"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_what_is_no_failure_of_a_task_passes(error: BaseException) -> None:
    with pytest.raises(type(error)), contained("a task"):
        raise error


def test_a_kept_task_is_started_again_ever_later_and_told_of_when_it_never_gets_on() -> None:
    began: list[float] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            shared = SharedNursery(nursery)

            async def task() -> None:
                began.append(trio.current_time())
                if len(began) <= FAILURES_MAX + 2:
                    raise KeyError(len(began))
                await trio.sleep_forever()

            shared.keep("a task", task)
            ailing = []
            for _ in range(70):
                await trio.sleep(1)
                ailing.append(shared.ailing())
            assert ailing[0] == []
            assert ["a task"] in ailing
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    waits = [round(after - before, 6) for before, after in pairwise(began)]
    assert waits == sorted(waits)
    assert max(waits) <= 5.1


def test_a_kept_task_that_ran_well_for_a_while_is_well_again() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            shared = SharedNursery(nursery)

            async def task() -> None:
                await trio.sleep(100)
                raise KeyError("now and then")

            shared.keep("a task", task)
            await trio.sleep(100 * (FAILURES_MAX + 5))
            assert shared.ailing() == []
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_kept_task_that_is_done_stays_so() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            SharedNursery(nursery).keep("a task", trio.lowlevel.checkpoint)

    trio.run(main)


# --- the only way -------------------------------------------------------------------------------------

PRIVATE = {("operation.py", "_nursery"), ("session.py", "_nursery")}
"""Nurseries kept in an object that are one client's alone: what is raised there ends, in the object's own `run`, that client's affair."""


def _opened_here(function: ast.AsyncFunctionDef) -> set[str]:
    """Return the names by which a function knows the nurseries that it opens itself, so that what they raise is raised there."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.AsyncWith):
            for item in node.items:
                if ast.unparse(item.context_expr).startswith("trio.open_nursery(") and item.optional_vars is not None:
                    found.add(ast.unparse(item.optional_vars))
    return found


def unguarded(name: str, source: str) -> list[str]:
    """Return where a file starts tasks in a nursery that it did not open in the same function, but by a `SharedNursery`."""
    tree = ast.parse(source)
    shared = {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and ast.unparse(node.annotation) == "SharedNursery"
    }
    shared |= {
        node.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.arg) and node.annotation and ast.unparse(node.annotation) == "SharedNursery"
    }
    shared |= {
        node.targets[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "SharedNursery"
    }
    problems = []

    def visit(node: ast.AST, local: set[str]) -> None:
        if isinstance(node, ast.AsyncFunctionDef):
            local = local | _opened_here(node)
        if isinstance(node, ast.Attribute) and node.attr in ("start_soon", "start"):
            owner = ast.unparse(node.value)
            attribute = owner.rpartition(".")[2]
            is_nursery = node.attr == "start_soon" or "nursery" in attribute
            if is_nursery and owner not in local and attribute not in shared and (name, attribute) not in PRIVATE:
                problems.append(f"{name}:{node.lineno}: {owner}.{node.attr}")
        if isinstance(node, ast.Attribute) and node.attr in ("spawn_system_task", "serve_listeners", "serve_tcp"):
            problems.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
        for child in ast.iter_child_nodes(node):
            visit(child, local)

    visit(tree, set())
    return problems


def test_no_task_is_started_but_through_the_boundary() -> None:
    files = [path for path in DAEMON.rglob("*.py") if path.name != "boundary.py"]
    assert len(files) > 20
    assert [problem for path in files for problem in unguarded(path.name, path.read_text())] == []


@pytest.mark.parametrize(
    "source",
    [
        "class A:\n nursery: trio.Nursery\n def f(self):\n  self.nursery.start_soon(g)",
        "async def f(nursery):\n await nursery.start(g)",
        "async def f():\n async with trio.open_nursery() as one:\n  h(one)\nasync def h(one):\n one.start_soon(g)",
        "def f(pool):\n pool.nursery.start_soon(g)",
        "async def f():\n await trio.serve_listeners(g, [l], handler_nursery=n)",
        "def f():\n trio.lowlevel.spawn_system_task(g)",
    ],
)
def test_what_goes_past_the_boundary_is_found(source: str) -> None:
    assert len(unguarded("a.py", source)) == 1


def test_a_nursery_of_ones_own_is_no_danger() -> None:
    source = "async def f():\n async with trio.open_nursery() as own:\n  own.start_soon(g)\n  def later():\n   own.start_soon(g)"
    assert unguarded("a.py", source) == []
