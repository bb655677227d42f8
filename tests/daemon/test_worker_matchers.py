"""Matchers in a real worker's child."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import msgpack  # type: ignore[import-untyped]  # it ships no type information
import pytest
from tests.daemon import realizers
from tests.daemon.worker_driver import A_DREF, DEADLINE_SECONDS, Refusal, Worker

from pylightnix import InvalidMatch, Matcher, RRef, StorageSettings, match, tlstorage
from pylightnix.travel import load_exception, pack_matcher

RREFS = [RRef(f"rref:{digit * 32}-{'0' * 32}-sample") for digit in "123"]


class MatcherChild:
    """The other end of a matcher child's connection."""

    def __init__(self, worker: Worker, operation: str = "operation") -> None:
        self.operation = operation
        self.connection, theirs = socket.socketpair()
        self.connection.settimeout(DEADLINE_SECONDS)
        with theirs:
            try:
                answer = worker.ask("matcher", [theirs.fileno()], operation=operation, root="/sample", storage="/sample/store-v1")
            except Refusal:
                self.connection.close()
                raise
        self.pid: int = answer["pid"]
        self._unpacker = msgpack.Unpacker()

    def ask(self, matcher: Matcher, rrefs: list[RRef] = RREFS) -> Any:
        blob = pack_matcher(matcher).blob
        params = {"dref": A_DREF, "matcher": blob, "candidates": [[rref, float(i)] for i, rref in enumerate(rrefs)]}
        self.connection.sendall(msgpack.packb([0, 7, "match", [params]]))
        while True:
            for message in self._unpacker:
                kind, request, error, result = message
                assert (kind, request) == (1, 7)
                return result["answer"] if error is None else error
            data = self.connection.recv(1 << 16)
            assert data, "the matcher child is gone"
            self._unpacker.feed(data)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with Worker(tmp_path / "worker") as worker:
        yield worker


@pytest.fixture
def child(worker: Worker) -> Iterator[MatcherChild]:
    child = MatcherChild(worker)
    with child.connection:
        yield child


def test_matchers_are_asked_one_after_the_other(child: MatcherChild) -> None:
    assert child.ask(lambda S, rrefs: rrefs[-1:]) == RREFS[-1:]
    assert child.ask(lambda S, rrefs: None) is None
    assert child.ask(lambda S, rrefs: rrefs, [])["code"] == "invalid-match"
    assert child.ask(match(lambda S, rref: rref, lambda rrefs: rrefs[:1])) == RREFS[-1:]


def test_a_matcher_is_given_the_store(child: MatcherChild) -> None:
    def matcher(S: StorageSettings, rrefs: list[RRef]) -> Optional[list[RRef]]:
        assert [*map(str, S), tlstorage() == S] == ["/sample", "/sample/store-v1", "None", True]
        return rrefs

    assert child.ask(matcher) == RREFS


def test_a_matcher_that_fails_does_not_end_the_others(child: MatcherChild) -> None:
    def failing(S: StorageSettings, rrefs: list[RRef]) -> Optional[list[RRef]]:
        raise realizers.OwnError("why")

    error = child.ask(failing)
    assert (error["code"], error["message"]) == ("remote-exception", "why")
    assert type(load_exception(error, trusted=True)) is realizers.OwnError
    assert child.ask(lambda S, rrefs: rrefs) == RREFS


@pytest.mark.parametrize("answer", [1, "text", [1], {"a": 1}])
def test_an_answer_of_another_shape_is_an_error(child: MatcherChild, answer: Any) -> None:
    error = child.ask(lambda S, rrefs: answer)
    assert error["code"] == "invalid-match"
    assert isinstance(load_exception(error, trusted=False), InvalidMatch)


def test_a_child_ends_with_its_connection(worker: Worker, child: MatcherChild) -> None:
    child.connection.close()
    worker.pump(lambda: child.operation in worker.ended)
    assert worker.ended[child.operation] == {"build": child.operation, "pid": child.pid, "exit_code": 0, "signal": None}


def test_a_matcher_that_never_answers_is_killed(worker: Worker, child: MatcherChild) -> None:
    def hanging(S: StorageSettings, rrefs: list[RRef]) -> Optional[list[RRef]]:
        realizers.pause_for_ever()
        return None

    params: dict[str, Any] = {"dref": A_DREF, "matcher": pack_matcher(hanging).blob, "candidates": []}
    child.connection.sendall(msgpack.packb([0, 7, "match", [params]]))
    worker.ask("kill", build=child.operation)
    worker.pump(lambda: child.operation in worker.ended)
    assert worker.ended[child.operation]["signal"] == signal.SIGKILL
    assert not os.path.exists(f"/proc/{child.pid}")


def test_one_child_per_operation(worker: Worker, child: MatcherChild) -> None:
    with pytest.raises(Refusal, match="already"):
        MatcherChild(worker)
    other = MatcherChild(worker, "another")
    with other.connection:
        assert other.ask(lambda S, rrefs: rrefs) == RREFS
    assert worker.build(realizers.trivial).outputs
