"""The daemon's side of a child that runs matchers: it keeps its worker, and is ended when nobody wants its answers."""

from __future__ import annotations

import socket
from typing import Any, cast

import msgpack  # type: ignore[import-untyped]  # it ships no type information
import pytest
import trio
from tests.daemon.fake_worker import Theirs, talk

from pylightnix import DRef
from pylightnix.storage import mkSS, store_layout
from pylightnix.travel import capture_environment
from pylightnixd.matching import MatcherChild
from pylightnixd.report import FailedBuild
from pylightnixd.worker import Worker
from pylightnixd.workers import IDLE_WORKERS_MAX, WorkerPool

A_DREF = DRef(f"dref:{'0' * 32}-sample")


class OneWorker:
    """A pool that has this worker for everybody."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    async def worker_for(self, environment: object) -> Worker:
        return self.worker


def child_of(worker: Worker, seconds: float = 60.0) -> MatcherChild:
    pool = cast("WorkerPool", OneWorker(worker))
    return MatcherChild("op-1", pool, store_layout(mkSS("/nonexistent")), capture_environment(), seconds)


async def fork(theirs: Theirs) -> tuple[str, trio.SocketStream]:
    """Be asked for a child; return its name, and its end of the line."""
    number, method, params = await theirs.hear()
    assert method == "matcher"
    line = theirs.take_socket()
    await theirs.answer(number, pid=6)
    return params["operation"], trio.SocketStream(trio.socket.from_stdlib_socket(line))


async def answer(line: trio.SocketStream, answer: Any) -> None:
    unpacker = msgpack.Unpacker()
    while data := await line.receive_some():
        unpacker.feed(data)
        for _, number, method, _ in unpacker:
            assert method == "match"
            await line.send_all(msgpack.packb([1, number, None, {"answer": answer, "told": []}]))
            return


def test_a_child_is_its_workers_work_until_it_is_let_go_of() -> None:
    async def script(worker: Worker, theirs: Theirs) -> None:
        child = child_of(worker)

        def is_work() -> bool:
            return worker.has_work

        async with trio.open_nursery() as nursery:

            async def be_child() -> None:
                _, line = await fork(theirs)
                async with line:
                    for said in (None, ["rref"]):
                        assert is_work()
                        await answer(line, said)
                    assert await line.receive_some() == b"", "the end of the line"

            nursery.start_soon(be_child)
            assert await child.ask(A_DREF, b"", []) is None
            assert is_work(), "the next question may come"
            assert await child.ask(A_DREF, b"", []) == ["rref"]
            child.close()
        assert not is_work()
        child.close()
        worker.post("last", {})
        assert (await theirs.hear())[1] == "last", "one that is not at work ends by itself, and is not killed"

    talk(script)


def test_a_child_at_work_is_killed_and_the_next_has_another_name() -> None:
    async def script(worker: Worker, theirs: Theirs) -> None:
        child = child_of(worker, seconds=5.0)
        names = []

        async def be_children() -> None:
            for _ in range(2):
                name, line = await fork(theirs)
                names.append(name)
                with line.socket:
                    assert (await theirs.hear())[1:] == ("kill", {"build": name})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_children)
            for _ in range(2):
                begun = trio.current_time()
                with pytest.raises(FailedBuild, match=r"took longer than the daemon's matcher-timeout of 5 s"):
                    await child.ask(A_DREF, b"", [])
                assert trio.current_time() - begun == pytest.approx(5)
        assert len(set(names)) == 2
        assert not worker.has_work

    talk(script)


def test_a_child_that_is_lost_is_replaced_once() -> None:
    async def script(worker: Worker, theirs: Theirs) -> None:
        child = child_of(worker)

        async def lose(times: int) -> None:
            for _ in range(times):
                _, line = await fork(theirs)
                await line.aclose()
                assert (await theirs.hear())[1] == "kill"

        async with trio.open_nursery() as nursery:

            async def lose_one() -> None:
                await lose(1)
                _, line = await fork(theirs)
                await answer(line, ["rref"])
                await line.aclose()

            nursery.start_soon(lose_one)
            assert await child.ask(A_DREF, b"", []) == ["rref"]
        async with trio.open_nursery() as nursery:

            async def lose_again() -> None:
                assert (await theirs.hear())[1] == "kill", "the child that had answered, and is gone"
                await lose(1)

            nursery.start_soon(lose_again)
            with pytest.raises(FailedBuild, match="was lost with its process"):
                await child.ask(A_DREF, b"", [])
        child.close()

    talk(script)


def test_a_question_to_a_worker_that_is_silent_ends_although_matchers_may_think_for_ever() -> None:
    async def script(worker: Worker, theirs: Theirs) -> None:
        child = child_of(worker, seconds=0.0)
        with pytest.raises(FailedBuild, match="did not answer for 60 s"):
            await child.ask(A_DREF, b"", [])
        assert not worker.has_work

    talk(script)


def test_only_workers_without_work_are_idle() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            pool = WorkerPool(cast("Any", nursery), cast("Any", None), "/nonexistent")
            pairs = [socket.socketpair() for _ in range(IDLE_WORKERS_MAX + 3)]
            for n, (ours, _) in enumerate(pairs):
                worker = Worker(str(n), "/bin/python", cast("Any", None), trio.socket.from_stdlib_socket(ours), cast("Any", None))
                pool.workers[str(n)] = worker
                if n in (0, 2):
                    worker.expect_end("op-1-m0" if n else "b-1")
            pool._retire_idle(keep=str(len(pairs) - 1))
            assert sorted(map(int, pool.workers)) == [0, 2, *range(5, len(pairs))]
            assert not any(worker.retired for worker in pool.workers.values())
            assert [theirs.recv(1) for n, (_, theirs) in enumerate(pairs) if n in (1, 3, 4)] == [b"", b"", b""]
            for ours, theirs in pairs:
                ours.close()
                theirs.close()

    trio.run(main)
