"""What a live display shows of an operation that others began."""

from __future__ import annotations

from typing import Any

from pylightnix.protocol import messages as m
from pylightnix_client.board import Board

DREFS = [f"dref:{i:032x}-stage{i}" for i in range(3)]


def line(i: int) -> m.BuildLine:
    return m.BuildLine(build=f"b{i}", dref=DREFS[i], state="running", operations=["op"], pid=1, started=100.0 + i, user="ann")


def event(i: int, phase: m.EventPhase, **fields: Any) -> m.Event:
    return m.Event(id=i, kind="build", phase=phase, time=200.0, dref=DREFS[i], **fields)


def test_it_begins_with_where_the_operation_is() -> None:
    board = Board()
    board.begin(5, 9, [line(0), line(1)])
    assert board.totals() == "5/9 done"
    assert [(row.name, row.started) for row in board.shown(9)] == [("stage0", 100.0), ("stage1", 101.0)]


def test_what_ran_before_ends_with_its_event() -> None:
    board = Board()
    board.begin(5, 9, [line(0), line(1)])
    board.hear(m.LogPiece(operation="op", build="b0", dref=DREFS[0], data=b"half\n"))
    board.hear(event(2, "start", build="b2", done=5, total=9))
    board.hear(event(0, "stop", ok=True, done=5, total=9))
    assert [row.name for row in board.shown(9)] == ["stage1", "stage2"]
    board.hear(m.LogPiece(operation="op", build="b0", dref=DREFS[0], data=b"late\n"))
    assert [row.name for row in board.shown(9)] == ["stage1", "stage2"]
    board.hear(event(2, "stop", ok=False, code="build-failed", done=6, total=9))
    assert [row.name for row in board.shown(9)] == ["stage1"]
    assert board.totals() == "7/9 done, 1 built, 1 failed"


def test_what_else_the_daemon_is_at_is_shown() -> None:
    def span(i: int, kind: m.EventKind, phase: m.EventPhase, build: str | None = None) -> m.Event:
        return m.Event(id=i, kind=kind, phase=phase, time=200.0, dref=DREFS[0], build=build)

    board = Board()
    board.hear(span(10, "plan", "start"))
    assert board.work() == "working out what to do"
    board.hear(span(10, "plan", "stop"))
    for i in (11, 12):
        board.hear(span(i, "match", "start"))
    assert board.work() == "asking 2 matchers"
    board.hear(span(12, "match", "stop"))
    assert board.work() == "asking 1 matcher"
    board.hear(span(11, "match", "stop"))
    board.hear(event(0, "start", build="b0"))
    board.hear(m.LogPiece(operation="op", build="b0", dref=DREFS[0], data=b"epoch 9\n"))
    board.hear(span(13, "copy", "start", "b0"))
    assert [row.line for row in board.shown(9)] == ["its outputs are put in place"]
    board.hear(span(13, "copy", "stop", "b0"))
    assert [row.line for row in board.shown(9)] == ["epoch 9"]
    board.hear(span(14, "commit", "start"))
    assert board.work() == "making it durable"
