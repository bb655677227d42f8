"""A client that is gone before its answer is ready costs nothing, and is no mistake of ours."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from pylightnix.protocol import messages as m
from pylightnix.protocol.client import ClientConnection
from pylightnix.protocol.connection import ConnectionState
from pylightnix.protocol.server import ServerConnection
from pylightnix.protocol.vocabulary import Message
from pylightnixd.session import Session


def test_an_answer_that_comes_too_late_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    client, connection = (
        ClientConnection(),
        ServerConnection(m.DaemonWelcome(daemon="d", store="/s", storage="/s/v", caller="owner", pid=1), ()),
    )
    answered, begun = [], trio.Event()

    async def handle(session: Session, method: str, params: Message) -> Message:
        begun.set()
        with trio.CancelScope(shield=True):  # as work in a thread is, which goes on to its end
            while connection.state is not ConnectionState.closed:  # noqa: ASYNC110  # it tells nobody
                await trio.lowlevel.checkpoint()
        answered.append(method)
        return m.Done()

    async def main() -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        session = Session(theirs, connection, 0, handle, lambda *_: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            await ours.send_all(client.send_hello(m.ClientHello(versions=[1], client="test/1"))[1])
            client.receive_data(await ours.receive_some())
            await ours.send_all(client.send_request("cancel", m.Cancel(operation="o"))[1])
            await begun.wait()
            await ours.aclose()

    with caplog.at_level(logging.INFO):
        trio.run(main)
    assert answered == ["cancel"]
    assert not caplog.records
