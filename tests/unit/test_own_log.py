"""The daemon's own log holds nobody who logs."""

from __future__ import annotations

import io
import logging
import os
import threading
import time

from pylightnixd.own_log import FLUSH_SECONDS, QueuedLog


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("pylightnixd", logging.INFO, "", 0, text, None, None)


def test_lines_are_written_in_order_and_whole_when_it_is_flushed() -> None:
    stream = io.BytesIO()
    log = QueuedLog(stream)
    for n in range(1000):
        log.emit(record(f"line {n}"))
    log.flush()
    assert stream.getvalue().decode().splitlines() == [f"line {n}" for n in range(1000)]


def test_a_pipe_that_nobody_reads_holds_nobody_and_says_what_it_lacks() -> None:
    reading, writing = os.pipe()
    file = io.FileIO(writing, "w")
    log = QueuedLog(file, lines_max=100)
    long = "x" * 10_000
    begun = time.monotonic()
    for _ in range(1000):
        log.emit(record(long))
    log.flush()
    assert FLUSH_SECONDS <= time.monotonic() - begun < 10 * FLUSH_SECONDS
    read: list[str] = []
    with os.fdopen(reading) as lines:
        reader = threading.Thread(target=lambda: read.extend(lines))
        reader.start()
        log.flush()
        log.emit(record("last"))
        log.flush()
        file.close()
        reader.join()
    notes = [line for line in read if line.startswith("(")]
    dropped = sum(int(line[1:].split()[0]) for line in notes)
    assert read[-1] == "last\n"
    assert len(read) - len(notes) - 1 + dropped == 1000
    assert dropped > 500


def test_a_stream_that_is_closed_ends_nothing() -> None:
    stream = io.BytesIO()
    log = QueuedLog(stream)
    stream.close()
    log.emit(record("lost"))
    log.flush()
    log.emit(record("lost, too"))
    log.flush()
