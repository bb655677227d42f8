"""Others' words on a terminal: file names, logs, errors and tracebacks with what a terminal would act upon. It is shown, never sent."""

from __future__ import annotations

import logging
import os
import pty
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.client import daemons
from tests.client.conftest import SECONDS, Program
from tests.zygote import zygote

from pylightnix import BuildError
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors_on_wire import WireError, error_from_wire
from pylightnix.sanitize import escaped, escaped_fields
from pylightnix_client.outcomes import failure
from pylightnix_client.plain import ShownBytes
from pylightnixd.main import _Escaping

STAGES = r"""
import os, sys
from pylightnix import build_outpath, build_wrapper, match_latest, mkconfig, mkdrv

CLIPBOARD = "\x1b]52;c;ZXZpbA==\x07"
HIDDEN = "\x1b[8mhidden\x9b2J\u202ebackwards"


class Bad(Exception):
    pass


def _fills(b):
    sys.stdout.write("plain\n10%\r20%\r\n" + CLIPBOARD + HIDDEN + "\n")
    sys.stdout.flush()
    os.write(1, b"\xff\xc3")
    os.write(1, b"\xa9\n")
    for name in (CLIPBOARD.encode() + b"\xff", b"two\nlines", b"plain"):
        with open(os.path.join(os.fsencode(build_outpath(b)), name), "w") as file:
            file.write(HIDDEN)


def _fails(b):
    print(CLIPBOARD)
    raise Bad(CLIPBOARD + HIDDEN)


def nasty(r):
    return mkdrv(mkconfig({"name": "nasty"}), match_latest(), build_wrapper(_fills), r)


def failing(r):
    return mkdrv(mkconfig({"name": "failing"}), match_latest(), build_wrapper(_fails), r)
"""
ACTS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@given(
    st.text() | st.text(st.sampled_from("\x00\x07\x08\r\x1b\x7f\x85\x9b\u061c\u200e\u202e\u2066\u2028\ufeff\ud800\udcff\U000e0041a\n\t"))
)
@example("\x1b]52;c;!\x07")
def test_nothing_that_acts_is_left_and_nothing_is_lost(text: str) -> None:
    shown = escaped(text)
    assert ACTS.search(shown) is None
    shown.encode("utf-8")  # it can be written anywhere
    assert shown.count("\n") == text.count("\n")
    assert len(shown) >= len(text)
    assert escaped(shown) == shown


@pytest.mark.parametrize("text", ["", "plain\ttext\n", "naïve", "日本語", "👩‍👩‍👧 می‌خواهم"])
def test_text_of_people_stays_as_it_is(text: str) -> None:
    assert escaped(text) == text


def test_texts_inside_of_values_are_escaped() -> None:
    assert escaped_fields({"a\x1b": [1, None, True, ("\x9b", 1.5)]}) == {"a\\x1b": [1, None, True, ["\\x9b", 1.5]]}


@given(st.binary(max_size=60), st.integers(0, 60))
@example(b"10%\r\n20%", 4)
@example(b"\xc3\xa9\x1b", 1)
def test_a_log_in_two_pieces_is_shown_as_in_one(data: bytes, at: int) -> None:
    whole, pieces = ShownBytes(), ShownBytes()
    shown = whole.take(data, is_last=True)
    assert pieces.take(data[:at]) + pieces.take(data[at:], is_last=True) == shown
    assert ACTS.search(shown.decode()) is None
    assert b"\r" not in shown


def test_what_stands_in_for_anothers_error_acts_nowhere() -> None:
    nasty = "\x1b]52;c;!\x07"
    row = m.FailedRow(code="build-failed", message=nasty, type=nasty, traceback=nasty, fields={"exception": {"type": nasty, "text": nasty}})
    error = failure(row, trusted=True)
    assert isinstance(error, BuildError)
    for text in (str(error), repr(error), str(error.exception), str(error.exception.__cause__)):
        assert ACTS.search(text) is None, text
    assert ACTS.search(str(error_from_wire(WireError(code="store-io", message=nasty)))) is None
    assert ACTS.search(str(error_from_wire(WireError(code="of-tomorrow", message=nasty)))) is None


def test_the_daemons_log_acts_nowhere() -> None:
    record = logging.LogRecord("pylightnixd", logging.ERROR, "x", 1, "BUG: %s", ("\x1b[2J",), None)
    assert _Escaping("%(message)s").format(record) == "BUG: \\x1b[2J"


# --- the program ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    top = Path(tempfile.mkdtemp(prefix="pyl-"))
    (top / "project").mkdir()
    made = Program(top / "project", top / "s", daemon=True)
    made.write("stages.py", STAGES)
    assert made("build", "stages.py:nasty").status == 0
    yield made
    daemons.end_started_daemon(made.store)
    subprocess.run(["chmod", "-R", "u+w", top], check=True)
    shutil.rmtree(top)


def on_terminal(program: Program, *arguments: str) -> tuple[int, str]:
    """Run the program with all its output on a terminal; return its status, and what that was sent."""
    ours, theirs = pty.openpty()
    seen = bytearray()

    def read() -> None:
        try:
            while data := os.read(ours, 1 << 16):
                seen.extend(data)
        except OSError:
            pass  # how Linux tells that nobody has the other end any more

    reader = threading.Thread(target=read)
    environment = {**program.environment, "TERM": "xterm", "NO_COLOR": "1"}
    with open(os.devnull, "rb") as null:
        child = zygote().start(
            "pylightnix",
            *arguments,
            environment=environment,
            folder=str(program.folder),
            streams=(null.fileno(), theirs, theirs),
            warnings=["error"],
        )
    os.close(theirs)
    reader.start()
    status = child.wait(SECONDS)
    reader.join(SECONDS)
    os.close(ours)
    return status, seen.decode("utf-8", "surrogateescape").replace("\r\n", "\n")


NASTY = r"\x1b]52;c;ZXZpbA==\x07"


def test_a_log_on_a_terminal(program: Program) -> None:
    status, shown = on_terminal(program, "log", "nasty")
    assert (status, ACTS.search(shown)) == (0, None), shown
    assert shown == f"plain\n10%\n20%\n{NASTY}\\x1b[8mhidden\\x9b2J\\u202ebackwards\n\\xffé\n"


def test_a_log_as_it_is(program: Program) -> None:
    assert "\x1b]52;c;ZXZpbA==\x07" in on_terminal(program, "log", "--raw", "nasty")[1]
    assert "10%\r20%\r\n\x1b]52;c;ZXZpbA==\x07" in program("log", "nasty").stdout, "through a pipe"


def test_names_and_contents_of_files(program: Program) -> None:
    status, shown = on_terminal(program, "ls", "nasty")
    assert (status, ACTS.search(shown)) == (0, None), shown
    assert f"{NASTY}\\udcff\n" in shown
    assert "\ntwo\\nlines\n" in shown
    assert "\x1b]52;c;ZXZpbA==\x07\udcff\n" in program("ls", "nasty").stdout, "for scripts they are what they are"
    status, shown = on_terminal(program, "cat", "nasty", "plain")
    assert (status, shown) == (0, "\\x1b[8mhidden\\x9b2J\\u202ebackwards")


@pytest.mark.parametrize("how", [(), ("--no-daemon",)], ids=["daemon", "embedded"])
def test_errors_and_tracebacks(program: Program, how: tuple[str, ...]) -> None:
    store = ("--store", f"{program.store}-apart") if how else ()
    ran = program(*store, "build", *how, "stages.py:failing")
    assert ran.status == 1
    told = ran.stderr.replace("\x1b]52;c;ZXZpbA==\x07\n", "", 1) if how else ran.stderr  # what the stage itself prints here
    assert ACTS.search(told) is None, told
    assert f"Bad: {NASTY}" in told


def test_a_mistake_on_the_command_line(program: Program) -> None:
    for arguments in (("ls", "x\x1b[2J"), ("log", "--\x1b[2J"), ("build", "--arg", "\x1b[2J=1", "stages.py:nasty")):
        status, shown = on_terminal(program, *arguments)
        assert status != 0
        assert ACTS.search(shown) is None, shown
