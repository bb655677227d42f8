"""The async client with a real daemon, on both event loops that it is for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import anyio
import pytest
from tests.client import daemons

from pylightnix import BuildError, Closure, PylightnixException, StorageSettings, instantiate, realize
from pylightnix.protocol import messages as m
from pylightnix.storage import store_layout
from pylightnix_client.aio import AsyncClient, AsyncOperation
from pylightnix_client.errors import DaemonGone, NoDaemon

Body = Callable[[AsyncClient], Awaitable[None]]


@pytest.fixture(scope="module")
def served() -> Iterator[StorageSettings]:
    with daemons.served_store() as S:
        yield S


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def connected(served: StorageSettings, backend: str) -> Callable[[Body], None]:
    """Runs a body with a client, within a time."""

    async def main(body: Body) -> None:
        with anyio.fail_after(daemons.SECONDS):
            async with await AsyncClient.connect(store_layout(served)) as client:
                await body(client)

    return lambda body: anyio.run(main, body, backend=backend)


def chain(S: StorageSettings, text: str) -> Closure:
    return instantiate(daemons.chain, text, S=S)[1]


def test_it_gives_the_same_as_the_library(connected: Callable[[Body], None], served: StorageSettings, backend: str) -> None:
    closure = chain(served, backend)

    async def body(client: AsyncClient) -> None:
        operation = await client.submit(closure)
        events = [(event.kind, event.phase) async for event in operation.events() if isinstance(event, m.Event)]
        one = [("build", "start"), ("copy", "start"), ("copy", "stop"), ("build", "stop")]
        end = [("commit", "start"), ("commit", "stop")]
        assert [event for event in events if event[0] != "wait"] == [("plan", "start"), ("plan", "stop"), *one * 3, *end]
        outcome = await operation.outcome()
        assert outcome.context == realize(closure)[2]
        assert len(outcome.built) == 3

    connected(body)


def test_tasks_share_a_connection(connected: Callable[[Body], None], served: StorageSettings, backend: str) -> None:
    closures = [chain(served, f"{backend} {i}") for i in range(5)]
    ended: list[int] = []

    async def body(client: AsyncClient) -> None:
        async def one(closure: Closure) -> None:
            outcome = await (await client.submit(closure)).outcome()
            ended.append(len(outcome.built))

        async with anyio.create_task_group() as group:
            for closure in closures:
                group.start_soon(one, closure)
            for _ in range(20):
                assert (await client.status()).pid == client.welcome.pid
        assert ended == [3] * 5

    connected(body)


def test_failures_are_raised_as_they_were(connected: Callable[[Body], None], served: StorageSettings) -> None:
    closure = instantiate(lambda r: daemons.stage(r, "failing", daemons.fail), S=served)[1]

    async def body(client: AsyncClient) -> None:
        outcome = await (await client.submit(closure)).outcome()
        with pytest.raises(BuildError, match="no such luck") as caught:
            outcome.check()
        assert isinstance(caught.value.exception, ValueError)

    connected(body)


def test_a_wait_that_is_cancelled_leaves_the_connection_whole(
    connected: Callable[[Body], None], served: StorageSettings, backend: str
) -> None:
    closure = instantiate(lambda r: daemons.stage(r, "waits", daemons.wait_for_ever, on=backend), S=served)[1]

    async def body(client: AsyncClient) -> None:
        operation: AsyncOperation = await client.submit(closure)
        async with anyio.create_task_group() as group:
            group.start_soon(operation.wait)
            async for _ in operation.events():
                break
            group.cancel_scope.cancel()
        assert [line.operation for line in (await client.ps()).operations] == [operation.id]
        await operation.cancel()
        with pytest.raises(PylightnixException, match="cancelled"):
            await operation.outcome()

    connected(body)


def test_no_daemon_and_one_that_dies_are_told(S: StorageSettings, backend: str) -> None:
    async def nobody() -> None:
        with pytest.raises(NoDaemon):
            await AsyncClient.connect(store_layout(S))

    async def dying(daemon_store: StorageSettings) -> None:
        import os

        async with await AsyncClient.connect(store_layout(daemon_store)) as client:
            os.kill(client.welcome.pid, 9)
            with pytest.raises(DaemonGone):
                await client.next_notice("none")  # which never comes

    anyio.run(nobody, backend=backend)
    with daemons.served_store() as daemon_store:
        anyio.run(dying, daemon_store, backend=backend)
