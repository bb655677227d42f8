"""Logs and events as a terminal may have them: nothing in them acts, whatever they hold; and what a display makes of them."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylightnix import DRef
from pylightnix.events import BuildFinished
from pylightnix.protocol import messages as m
from pylightnix_client.board import Board
from pylightnix_client.output import Answers
from pylightnix_client.plain import last_lines, plain_line
from pylightnix_client.progress import JsonProgress, TextProgress
from pylightnix_client.realizing import Spans

DREF = "dref:0123456789abcdef0123456789abcdef-model"
SEQUENCES = st.sampled_from(["\x1b[2J", "\x1b]0;title\x07", "\x1b[31m", "\x1b", "\x9b1A", "\r", "\b", "\u202e", "\x00", "\ud800", "[bold]"])


@given(st.lists(SEQUENCES | st.text(max_size=5), max_size=12).map("".join))
def test_nothing_acts_on_a_terminal(text: str) -> None:
    assert not [char for char in plain_line(text) if unicodedata.category(char)[0] == "C" or char in "\u2028\u2029"]


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"])))
def test_plain_text_stays(text: str) -> None:
    assert plain_line(text) == (text if text.strip() else "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10 %\r50 %\r100 %\r\n", "100 %"),
        ("\x1b[1mbold\x1b[0m", "bold"),
        ("a\tb", "a       b"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("", ""),
    ],
)
def test_a_line_is_what_a_terminal_would_leave_standing(text: str, shown: str) -> None:
    assert plain_line(text) == shown


def test_the_last_lines_of_a_log() -> None:
    assert last_lines(b"a\nb\nc\n", 2, whole=True) == ["b", "c"]
    assert last_lines(b"lf a line\nb\nc", 5, whole=False) == ["b", "c"]
    assert last_lines(b"one line without an end", 5, whole=False) == ["one line without an end"]
    assert last_lines(b"\xff\n", 5, whole=True) == ["\ufffd"]
    assert last_lines(b"", 5, whole=True) == []


def event(span: int, phase: m.EventPhase, **fields: object) -> m.Event:
    return m.Event(**{"id": span, "kind": "build", "phase": phase, "time": 10.0, "dref": DREF, "done": 0, "total": 3, **fields})  # type: ignore[arg-type]  # as the test has it


def test_a_board_counts_what_it_hears() -> None:
    board = Board()
    board.hear(event(1, "start", build="b1"))
    board.hear(event(2, "start", build="b2", time=5.0))
    board.hear(m.LogPiece(operation="o", build="b1", dref=DREF, data=b"first\nsecond\x1b[0m\n\n"))
    assert [(row.name, row.line, row.started) for row in board.shown(9)] == [("model", "", 5.0), ("model", "second", 10.0)]
    assert len(list(board.shown(1))) == 1
    board.hear(event(1, "stop", ok=True))
    board.hear(event(2, "stop", ok=True, joined=True))
    board.hear(event(3, "start", build="b3"))
    board.hear(event(3, "stop", ok=False, code="build-failed"))
    assert (board.rows, board.totals()) == ({}, "3/3 done, 1 built, 1 joined, 1 failed")
    board.hear(m.LogPiece(operation="o", build="b1", dref=DREF, data=b"late\n"))
    assert board.rows == {}, "the rest of the log of a build that has ended brought it back"


def test_a_board_shows_how_far_a_fetch_is() -> None:
    def fetch(phase: m.EventPhase, **fields: Any) -> m.Event:
        return event(7, phase, kind="fetch", build="b1", fetch=m.Fetching(**fields))

    def line() -> str:
        return board.rows["b1"].line

    board = Board()
    board.hear(event(1, "start", build="b1"))
    board.hear(fetch("start", bytes=0, mirror="https://a.example/x"))
    assert line() == "0 bytes, 0 bytes/s, https://a.example/x"
    board.hear(fetch("progress", bytes=1_500_000, total=3_000_000, bytes_per_second=250_000.0, mirror="https://a.example/x", attempt=2))
    assert line() == "1.5 MB of 3.0 MB, 250.0 kB/s, attempt 2, https://a.example/x"
    board.hear(fetch("progress", bytes=1_500_000, mirror="https://a.example/\x1b[2J", waiting="waiting 3 s"))
    assert line() == "1.5 MB, waiting 3 s, https://a.example/"
    board.hear(fetch("stop", bytes=3_000_000))
    assert line() == ""
    board.hear(fetch("progress", bytes=1))
    assert line().startswith("1 byte")
    board.hear(event(9, "progress", kind="fetch", build="b9", fetch=m.Fetching(bytes=1)))
    assert list(board.rows) == ["b1"]


def test_lines_tell_of_mirrors_and_waits_only(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TextProgress()
    heard: list[dict[str, Any]] = [
        {},
        {"mirror": "https://a"},
        {"bytes": 5, "mirror": "https://a"},
        {"mirror": "https://b"},
        {"waiting": "waiting 2 s"},
    ]
    for fields in heard:
        progress.hear(event(7, "progress", kind="fetch", build="b1", fetch=m.Fetching(**{"bytes": 0, **fields})))
    assert capsys.readouterr().err.splitlines() == ["model: fetching https://a", "model: fetching https://b", "model: waiting 2 s"]


def test_objects_tell_all(capfd: pytest.CaptureFixture[str]) -> None:
    JsonProgress(Answers(True)).hear(event(7, "start", kind="fetch", build="b1", fetch=m.Fetching(bytes=3, total=4, mirror="https://a")))
    assert json.loads(capfd.readouterr().out) == {
        "kind": "fetching",
        "dref": DREF,
        "phase": "start",
        "bytes": 3,
        "total": 4,
        "mirror": "https://a",
    }


def test_a_board_counts_who_waits() -> None:
    board = Board()
    board.hear(m.Event(id=1, kind="wait", phase="start", time=1.0, text="2 for a CPU slot", total=2))
    assert (board.waiting, board.waiting_for) == (2, "2 for a CPU slot")
    board.hear(m.Event(id=1, kind="wait", phase="stop", time=1.0, total=0))
    assert board.waiting == 0


def test_a_build_that_ran_before_is_known_by_what_it_writes() -> None:
    board = Board()
    board.hear(m.LogPiece(operation="o", build="b1", dref=DREF, data=b"so far"))
    assert [(row.line, row.started) for row in board.shown(9)] == [("so far", None)]


def test_a_build_that_began_before_took_as_long_as_it_took() -> None:
    spans = Spans({DRef(DREF): 100.0})
    stop = m.Event(id=7, kind="build", phase="stop", time=106.5, dref=DREF, build="b1", ok=True)
    assert spans.event(stop) == BuildFinished(DRef(DREF), 6.5)
