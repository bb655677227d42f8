"""The program in this very process: quick, for commands that leave nothing behind in it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.client.conftest import Ran

from pylightnix_client.cli import main


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


def run_here(*arguments: str) -> Ran:
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
        return Ran(status, output.read().decode("utf-8", "surrogateescape"), errors.read().decode("utf-8", "surrogateescape"))
