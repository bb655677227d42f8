"""The daemon's side of a worker: one that is silent, does not read, answers late or lies. Simulated time, and no process."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing
from tests.daemon.fake_worker import BIG, LIMIT, Theirs, talk

from pylightnixd.worker import Worker, WorkerLost


def test_a_question_is_answered() -> None:
    async def script(worker: Worker, theirs: Theirs) -> None:
        question = worker.post("build", {"a": 1})
        number, method, params = await theirs.hear()
        assert (method, params) == ("build", {"a": 1})
        await theirs.answer(number, pid=7)
        assert await worker.answer_to(question) == {"pid": 7}
        await trio.sleep(10 * LIMIT)
        assert not worker.lost, "who owes nothing may be silent"

    talk(script)


def test_a_silent_worker_is_lost_when_it_owes_an_answer_too_long() -> None:
    async def script(worker: Worker, theirs: Theirs) -> None:
        await trio.sleep(10 * LIMIT)
        begun = trio.current_time()
        with pytest.raises(WorkerLost, match=r"process 4711 did not answer for 60 s"):
            await worker.call("build", {})
        assert trio.current_time() - begun == pytest.approx(LIMIT)
        with pytest.raises(WorkerLost):
            await worker.call("build", {})

    talk(script)


def test_signs_of_life_are_heard() -> None:
    async def script(worker: Worker, theirs: Theirs) -> None:
        worker.expect_end("b-1")
        question = worker.post("hello", {})
        number, _, _ = await theirs.hear()
        for _ in range(5):
            await trio.sleep(0.9 * LIMIT)
            await theirs.tell_end("b-0")
        await theirs.answer(number)
        assert await worker.answer_to(question) == {}
        assert not worker.lost

    talk(script)


def test_a_worker_that_does_not_read_holds_nobody() -> None:
    async def script(worker: Worker, theirs: Theirs) -> None:
        with trio.move_on_after(5) as patience:
            await worker.call("build", {"realizer": BIG})
        assert patience.cancelled_caught
        assert trio.current_time() == pytest.approx(patience.deadline)
        begun = trio.current_time()
        with pytest.raises(WorkerLost):
            await worker.call("build", {"realizer": BIG})
        assert trio.current_time() - begun == pytest.approx(LIMIT - 5)

    talk(script)


def test_a_message_is_never_cut_short_for_who_leaves() -> None:
    async def script(worker: Worker, theirs: Theirs) -> None:
        for _ in range(3):
            with trio.move_on_after(1):
                await worker.call("build", {"realizer": BIG})
        kept = worker.post("kill", {"build": "b-1"})
        number, method, params = await theirs.hear()
        assert (method, len(params["realizer"])) == ("build", len(BIG))
        number, method, params = await theirs.hear()
        assert (method, params) == ("kill", {"build": "b-1"}), "what had not begun was taken back"
        await theirs.answer(number)
        assert await worker.answer_to(kept) == {}

    talk(script)


def test_slow_reading_is_a_sign_of_life() -> None:
    async def script(worker: Worker, theirs: Theirs) -> None:
        question = worker.post("build", {"realizer": BIG})
        for _ in range(4):
            await trio.sleep(0.9 * LIMIT)
            await theirs.read_some()
            await trio.testing.wait_all_tasks_blocked()
        assert not worker.lost
        assert not question.arrived.is_set()

    talk(script)


def test_descriptors_are_the_workers_own_even_if_who_asked_has_left() -> None:
    async def script(worker: Worker, theirs: Theirs) -> None:
        blocked = worker.post("build", {"realizer": BIG})
        reading, writing = os.pipe()
        question = worker.post("build", {}, (writing,))
        with trio.move_on_after(1):
            await worker.answer_to(question)
        os.close(writing)
        await theirs.hear()
        assert blocked.begun
        assert not question.begun
        assert os.read(reading, 1) == b"", "nobody else has it"
        os.close(reading)

    talk(script)


def test_a_late_end_of_what_was_given_up_ends_nothing_else() -> None:
    async def script(worker: Worker, theirs: Theirs) -> None:
        other = worker.expect_end("b-2")
        end = worker.expect_end("b-1")
        worker.abandon("b-1")
        assert worker.retired
        assert worker.has_work, "the other build goes on"
        _, method, params = await theirs.hear()
        assert (method, params) == ("kill", {"build": "b-1"})
        assert not end.arrived.is_set()
        await theirs.tell_end("b-1", left=[9])
        await end.arrived.wait()
        assert end.told is not None
        assert end.told.left == [9]
        assert not other.arrived.is_set()
        worker.forget("b-2")
        await theirs.hear_end()

    talk(script)


def test_a_worker_of_which_all_is_given_up_is_asked_to_end() -> None:
    async def script(worker: Worker, theirs: Theirs) -> None:
        end = worker.expect_end("b-1")
        worker.abandon("b-1")
        await end.arrived.wait()
        assert end.told is None
        assert worker.lost

    talk(script)


@pytest.mark.parametrize(
    "said", [[1, 0, None], [2, "ended", [{"build": "b-1", "pid": -3}]], [2, "ended", [{"build": 7}]], "nonsense", {"a": 1}]
)
def test_a_worker_that_talks_nonsense_is_lost_and_nothing_else(said: object) -> None:
    async def script(worker: Worker, theirs: Theirs) -> None:
        end = worker.expect_end("b-1")
        await theirs.say(said)
        await end.arrived.wait()
        assert end.told is None
        with pytest.raises(WorkerLost):
            await worker.call("build", {})

    talk(script)
