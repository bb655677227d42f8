from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylightnix.errors import AmbiguousMatch, CommandFailed
from pylightnix.events import (
    BuildFailed,
    BuildFinished,
    BuildJoined,
    BuildSkipped,
    BuildStarted,
    BuildWaiting,
    Event,
)
from pylightnix.types import DRef, RRef
from pylightnix_client.output import Answers
from pylightnix_client.progress import JsonProgress, TextProgress, event_fields, human_seconds

DREF = DRef("dref:" + "0" * 32 + "-thing")
OTHER = DRef("dref:" + "1" * 32 + "-other")
RREF = RRef("rref:" + "2" * 32 + "-" + "0" * 32 + "-thing")
EVENTS: list[Event] = [
    BuildWaiting(DREF, ("pid 7 (pylightnix)",)),
    BuildStarted(DREF, 2, 12),
    BuildFinished(DREF, 1.234),
    BuildJoined(DREF),
    BuildFailed(DREF, AmbiguousMatch("match_only()", [RREF], "one")),
    BuildFailed(DREF, ValueError(str(RREF))),
    BuildSkipped(OTHER, DREF),
]


def test_events_as_objects() -> None:
    assert [event_fields(event) for event in EVENTS] == [
        {"kind": "build-waiting", "dref": DREF, "holders": ["pid 7 (pylightnix)"]},
        {"kind": "build-started", "dref": DREF, "done": 2, "total": 12},
        {"kind": "build-finished", "dref": DREF, "seconds": 1.234},
        {"kind": "build-joined", "dref": DREF},
        {"kind": "build-failed", "dref": DREF, "code": "ambiguous-match"},
        {"kind": "build-failed", "dref": DREF, "code": "build-failed"},
        {"kind": "build-skipped", "dref": OTHER, "because": DREF},
    ]


def test_progress_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    show = TextProgress()
    for event in EVENTS:
        show(event)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "thing: waiting, the same is being built by pid 7 (pylightnix)",
        "[ 3/12] building thing …",
        "[ 3/12] thing: done in 1.2 s",
        "thing: another process has built it",
        "[ 3/12] thing: failed",
        "[ 3/12] thing: failed",
    ]


def test_no_event_carries_an_rref(capfd: pytest.CaptureFixture[str]) -> None:
    observers: list[Callable[[Event], None]] = [TextProgress(), JsonProgress(Answers(True))]
    for observer in observers:
        for event in EVENTS:
            observer(event)
    printed = capfd.readouterr()
    assert "rref" not in printed.out + printed.err
    assert len(printed.out.splitlines()) == len(EVENTS)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (1.24, "1.2 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def run(source: str, **extra: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", source], capture_output=True, check=True, **extra)


@given(st.dictionaries(st.from_regex(r"[a-z]+", fullmatch=True), st.text() | st.floats(allow_nan=False) | st.lists(st.integers())))
def test_objects_are_one_line_of_ascii_each(fields: dict[str, Any]) -> None:
    class Gathered(Answers):
        def raw(self, content: bytes | memoryview) -> None:
            content = bytes(content)
            assert content.isascii()
            assert content.count(b"\n") == 1
            assert json.loads(content) == {"kind": "k", **fields}

    fields.pop("kind", None)
    fields.pop("self", None)
    Gathered(True).object("k", **fields)


def test_diverted_output_is_only_ours() -> None:
    done = run(
        "import atexit, ctypes, os, sys\n"
        "from pylightnix_client.output import Answers\n"
        "print('before')\n"
        "answers = Answers(False)\n"
        "answers.divert(); answers.divert()\n"
        "print('printed'); os.system('echo by a child'); os.write(1, b'written\\n')\n"
        "ctypes.CDLL(None).printf(b'by C, flushed at the end\\n')\n"
        "atexit.register(print, 'by an exit handler')\n"
        "answers.text('answer \\udcff')\n"
    )
    assert done.stdout == b"before\nanswer \xff\n"
    assert sorted(re.findall(rb"^(\w+ ?\w*)", done.stderr, re.MULTILINE)) == [b"by C", b"by a", b"by an", b"printed", b"written"]


def test_closed_descriptors_are_held() -> None:
    done = run(
        "import os\n"
        "os.closerange(0, 3)\n"
        "from pylightnix_client.output import hold_standard_descriptors\n"
        "hold_standard_descriptors()\n"
        "fd = os.open('/dev/null', os.O_RDONLY)\n"
        "assert fd > 2 and all(os.fstat(i) for i in range(3))\n"
    )
    assert done.returncode == 0


def test_failed_commands_keep_their_code() -> None:
    assert event_fields(BuildFailed(DREF, CommandFailed(["x"], "1", "")))["code"] == "command-failed"
