"""Realizing in programs that run an event loop: a notebook's asyncio, a trio program; with a daemon and without.

`realize` blocks, wherever it is called; `realize_async` lets the loop's other tasks go on.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from tests.client import daemons
from tests.stores import Numbered, check_tmp, output, refuses, stage, text_of
from tests.waiting import wait_until

from pylightnix import (
    BuildError,
    Closure,
    Context,
    DRef,
    Misuse,
    Path,
    Registry,
    RRef,
    StorageSettings,
    allrrefs,
    current_registry,
    current_storage,
    instantiate,
    mkregistry,
    realize,
    realize1,
    realize_async,
    tlregistry,
    tlstorage,
)
from pylightnix.storage import store_layout
from pylightnix_client.client import Client


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def served() -> Iterator[StorageSettings]:
    with daemons.served_store() as S:
        yield S


def run(backend: str, main: Callable[[], Awaitable[None]]) -> None:
    async def timed() -> None:
        with anyio.fail_after(daemons.SECONDS):
            await main()

    anyio.run(timed, backend=backend)


def chain(S: StorageSettings, text: str) -> Closure:
    return instantiate(daemons.chain, text, S=S)[1]


# --- blocking, inside a loop --------------------------------------------------------------------------


def test_realize_inside_a_running_loop(S: StorageSettings, backend: str) -> None:
    async def main() -> None:
        assert realize1(instantiate(stage, S=S))
        await anyio.lowlevel.checkpoint()

    run(backend, main)


def test_realize_through_a_daemon_inside_a_running_loop(served: StorageSettings, backend: str) -> None:
    """All of it: registering, realizing, asking the index, a failure. None of it needs, or starts, a loop."""

    async def main() -> None:
        result, _, context = realize(instantiate(daemons.chain, f"blocking {backend}", S=served))
        assert context[result]
        assert set(context[result] or []) <= set(allrrefs(served))
        with pytest.raises(BuildError):
            realize(instantiate(lambda r: daemons.stage(r, "failing", daemons.fail), S=served))
        await anyio.lowlevel.checkpoint()

    run(backend, main)


# --- awaiting -----------------------------------------------------------------------------------------


def test_awaiting_gives_the_same_as_realize(S: StorageSettings, backend: str) -> None:
    closure = instantiate(lambda r: {"a": stage(r, "a"), "b": stage(r, "b")}, S=S)

    async def main() -> None:
        assert await realize_async(closure) == realize(closure)
        assert await realize_async(closure[1], dry_run=True) == realize(closure)

    run(backend, main)


def test_awaiting_gives_the_same_through_a_daemon(served: StorageSettings, backend: str) -> None:
    closure = instantiate(daemons.chain, f"awaited {backend}", S=served)

    async def main() -> None:
        assert await realize_async(closure) == realize(closure)

    run(backend, main)


def test_arguments_are_those_of_realize(S: StorageSettings, backend: str) -> None:
    build = Numbered()
    result, closure = instantiate(stage, S=S, realizer=build)

    async def main() -> None:
        for _ in range(2):
            await realize_async(closure, True)
        _, _, context = await realize_async(closure, force_rebuild=[result], realize_args={result: {}})
        (rref,) = context[result] or []
        assert text_of(rref, S) == "3"
        with pytest.raises(AssertionError, match="assert_realized forbids"):
            await realize_async(other(S), [], other(S).targets)
        with pytest.raises(Misuse):
            await realize_async("nonsense")  # type: ignore[arg-type]

    run(backend, main)


def other(S: StorageSettings) -> Closure:
    return instantiate(lambda r: stage(r, "other", realizer=refuses), S=S)[1]


@pytest.mark.parametrize("with_daemon", [False, True])
def test_other_tasks_go_on_meanwhile(S: StorageSettings, served: StorageSettings, with_daemon: bool, backend: str) -> None:
    """The realizer waits for what only another task of the loop will do. It cannot be pickled, so it runs here in any case."""
    store = served if with_daemon else S
    begun, done = threading.Event(), threading.Event()

    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        begun.set()
        assert done.wait(daemons.SECONDS)
        return [output(S)]

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(realize_async, instantiate(stage, S=store, realizer=realizer, backend=backend))
            await anyio.to_thread.run_sync(begun.wait, daemons.SECONDS)
            done.set()

    run(backend, main)
    assert realize1(instantiate(stage, S=store, realizer=refuses, backend=backend))


def test_other_tasks_go_on_while_a_daemon_works(served: StorageSettings, backend: str) -> None:
    closure = instantiate(lambda r: daemons.stage(r, "endless", daemons.wait_for_ever, on=backend), S=served)[1]

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(realize_async, closure)
            _, _, context = await realize_async(chain(served, f"beside {backend}"))
            assert len(context) == 3
            group.cancel_scope.cancel()

    run(backend, main)
    with Client.connect(store_layout(served)) as client:  # the daemon cancels what nobody waits for any more
        wait_until(lambda: not client.ps().operations)


def test_the_callers_store_and_registry_are_current_in_the_thread(S: StorageSettings, backend: str) -> None:
    seen: list[Any] = []

    def matcher(settings: StorageSettings, rrefs: list[RRef]) -> Any:
        seen.append((tlstorage() == settings, tlregistry(), threading.current_thread() is threading.main_thread()))
        return rrefs or None

    async def main() -> None:
        with current_registry(mkregistry(S)) as r:
            await realize_async(instantiate(lambda r: stage(r, matcher=matcher)))
            assert seen[0] == (True, r, False)
        with current_storage(S):
            await realize_async(instantiate(lambda r: stage(r, matcher=matcher)))

    run(backend, main)
    assert seen[-1] == (True, None, False)


def test_failures_are_raised_as_they_were(S: StorageSettings, served: StorageSettings, backend: str) -> None:
    def failing(r: Registry) -> DRef:
        return daemons.stage(r, "failing", daemons.fail)

    async def main() -> None:
        for store in (S, served):
            with pytest.raises(BuildError, match="no such luck") as failed:
                await realize_async(instantiate(failing, S=store))
            assert isinstance(failed.value.exception, ValueError)

    run(backend, main)


def test_cancelling_ends_with_the_build_that_runs_and_keeps_it(S: StorageSettings, backend: str) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        begun.set()
        assert go_on.wait(daemons.SECONDS)
        return [output(S)]

    def two(r: Registry) -> DRef:
        return stage(r, "top", realizer=refuses, below=stage(r, "below", realizer=realizer))

    closure = instantiate(two, S=S)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(realize_async, closure)
            await anyio.to_thread.run_sync(begun.wait, daemons.SECONDS)
            group.cancel_scope.cancel()
            go_on.set()

    run(backend, main)
    assert [rref.rpartition("-")[2] for rref in allrrefs(S)] == ["below"]
    check_tmp(S)


def test_the_store_may_change_hands_between_two_calls(backend: str) -> None:
    with daemons.short_store() as S:

        async def main() -> None:
            result, _, context = await realize_async(instantiate(daemons.chain, length=1, text=str(len(built)), S=S))
            built.extend(context[result] or [])

        built: list[RRef] = []
        run(backend, main)
        daemon = daemons.start_daemon(str(S.root), "--drain", "1")
        try:
            run(backend, main)
        finally:
            daemons.end_daemon(daemon)
        run(backend, main)
        assert set(built) == set(allrrefs(S))
        assert len(built) == 3
