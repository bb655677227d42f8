"""What a forked process changes about itself before it runs a user's code."""

from __future__ import annotations

import io
import os
import sys

from pylightnix.worker.linux import flush_c_streams

__all__ = ["flush_output", "print_whole_lines", "reseed", "send_output_to"]


def send_output_to(log_fd: int) -> None:
    """Make `log_fd` standard output and standard error, and close it."""
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)


def flush_output() -> None:
    """Write out what Python and C have printed and still hold. Never fails."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            pass  # the build closed it, or nobody reads it any more
    flush_c_streams()


def print_whole_lines() -> None:
    """Write each line at once, even if the user wants no buffering: other processes print into the same log."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)


def reseed() -> None:
    """Seed every global random generator that is loaded; else all children of one process would draw the same."""
    random = sys.modules.get("random")
    if random is not None:
        random.seed()  # from os.urandom
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None and hasattr(numpy_random, "seed"):
        fresh = os.urandom(32)
        numpy_random.seed([int.from_bytes(fresh[i : i + 4]) for i in range(0, len(fresh), 4)])
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "manual_seed"):
        torch.manual_seed(int.from_bytes(os.urandom(8)) >> 1)
