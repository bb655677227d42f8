"""The async client with a real daemon, on both event loops that it is for."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator

import anyio
import anyio.lowlevel
import pytest
from tests.client import daemons

from pylightnix import BuildError, Closure, MissingRealization, Misuse, PylightnixException, StorageSettings, instantiate, realize
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import NoSuchOperation
from pylightnix.protocol.limits import CONNECTIONS_PER_USER_MAX
from pylightnix.storage import store_layout
from pylightnix_client.aio import AsyncClient, AsyncOperation
from pylightnix_client.client import Client
from pylightnix_client.errors import DaemonFull, DaemonGone, NoDaemon
from pylightnix_client.operation import Operation

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


def test_realize_gives_the_outcome_of_the_blocking_client(connected: Callable[[Body], None], served: StorageSettings, backend: str) -> None:
    closure = chain(served, f"realized {backend}")

    async def body(client: AsyncClient) -> None:
        outcome = await client.realize(closure, jobs=1)
        assert len(outcome.built) == 3
        rref = (outcome.context[closure.targets[0]] or [])[0]
        with Client.connect(store_layout(served)) as blocking:
            again = blocking.realize(closure, jobs=1)
            assert (again.context, len(again.reused)) == (outcome.context, 3)
            assert await client.info(rref) == blocking.info(rref)
        with pytest.raises(MissingRealization):
            await client.info(f"rref:{'0' * 32}-{rref.partition('-')[2]}")

    connected(body)


def test_logs_come_with_the_events(connected: Callable[[Body], None], served: StorageSettings, backend: str) -> None:
    closure = instantiate(lambda r: daemons.stage(r, "speaks", daemons.say, on=backend), S=served)[1]

    async def body(client: AsyncClient) -> None:
        operation = await client.submit(closure, log=True, jobs=1)
        happened = [happening async for happening in operation.events()]
        assert b"".join(piece.data for piece in happened if isinstance(piece, m.LogPiece)) == b"the realizer speaks\n"
        assert [event.phase for event in happened if isinstance(event, m.Event) and event.kind == "build"] == ["start", "stop"]
        assert operation.dropped == 0

    connected(body)


def test_others_operations_are_attached_to(connected: Callable[[Body], None], served: StorageSettings, backend: str) -> None:
    closure = instantiate(lambda r: daemons.stage(r, "attached", daemons.wait_for_ever, on=backend), S=served)[1]

    async def body(client: AsyncClient) -> None:
        submitted = await client.submit(closure, watch=False)
        async with await AsyncClient.connect(store_layout(served)) as other:
            attached = await other.attach(submitted.id)
            assert attached.attached is not None
            assert (attached.attached.targets, attached.attached.total) == (closure.targets, 1)
            async for happening in attached.events(log=True):
                if isinstance(happening, m.LogPiece):
                    assert b"it waits" in happening.data
                    break
            await attached.cancel()
            assert not (await attached.wait()).ok
            with pytest.raises(Misuse):
                await attached.outcome()
            with pytest.raises(NoSuchOperation):
                await other.attach("nothing")
        assert not (await submitted.wait()).ok

    connected(body)


def test_cancelling_realize_cancels_the_operation(connected: Callable[[Body], None], served: StorageSettings, backend: str) -> None:
    closure = instantiate(lambda r: daemons.stage(r, "left", daemons.wait_for_ever, on=backend), S=served)[1]

    async def body(client: AsyncClient) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(client.realize, closure)
            while closure.targets[0] not in [line.dref for line in (await client.ps()).builds]:
                pass
            group.cancel_scope.cancel()
        with anyio.fail_after(daemons.SECONDS):
            while (await client.ps()).operations:
                pass
        for steps in range(40):  # in the middle of submitting, too
            async with anyio.create_task_group() as group:
                group.start_soon(client.realize, closure)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
        with anyio.fail_after(daemons.SECONDS):  # a cancel is answered before all of it has ended
            while [line for line in (await client.ps()).operations if line.state != "open" or line.total]:
                pass

    connected(body)


def test_a_free_connection_is_waited_for(served: StorageSettings, backend: str) -> None:
    async def main() -> None:
        with anyio.fail_after(daemons.SECONDS):
            layout = store_layout(served)
            others = [await AsyncClient.connect(layout) for _ in range(CONNECTIONS_PER_USER_MAX)]
            try:
                with pytest.raises(DaemonFull):
                    await AsyncClient.connect(layout, patience_seconds=0)
                async with await AsyncClient.connect(layout, waiting=lambda refusal: others.pop().close()) as client:
                    assert (await client.status()).pid == client.welcome.pid
            finally:
                for other in others:
                    other.close()

    anyio.run(main, backend=backend)


def test_both_clients_offer_the_same() -> None:
    for method in ("connect", "realize", "submit", "attach", "cancel", "status", "ps", "log", "info", "wait", "close"):
        blocking, awaited = (inspect.signature(getattr(kind, method)).parameters for kind in (Client, AsyncClient))
        assert set(awaited) <= set(blocking), method
        assert set(blocking) - set(awaited) <= {"ask", "ask_on_failure"}, method
    for method in ("events", "wait", "cancel", "outcome"):
        assert list(inspect.signature(getattr(Operation, method)).parameters) == list(
            inspect.signature(getattr(AsyncOperation, method)).parameters
        )


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
