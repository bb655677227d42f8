"""The program in this very process: quick, for commands that leave nothing behind in it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pylightnix_client.cli import main


class Answer(NamedTuple):
    """How one run ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    @property
    def last(self) -> dict[str, Any]:
        return self.objects[-1]


@contextmanager
def _standard_file(fd: int, stream: Any) -> Iterator[Any]:
    """Have a standard descriptor lead to a file for a while."""
    with tempfile.TemporaryFile() as file:
        saved = os.dup(fd)
        stream.flush()
        os.dup2(file.fileno(), fd)
        try:
            yield file
        finally:
            stream.flush()
            os.dup2(saved, fd)
            os.close(saved)


def run_here(*arguments: str) -> Answer:
    """Run the program with these arguments and no terminal."""
    saved = sys.stdout, sys.stderr
    with _standard_file(2, sys.stderr) as errors, _standard_file(1, sys.stdout) as output:
        # Pytest has put its own in their places.
        with open(1, "w", closefd=False) as sys.stdout, open(2, "w", closefd=False) as sys.stderr:
            try:
                status = main(arguments)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                sys.stdout, sys.stderr = saved
        output.seek(0)
        errors.seek(0)
        return Answer(status, output.read().decode("utf-8", "surrogateescape"), errors.read().decode("utf-8", "surrogateescape"))
