"""Python's garbage collector, kept from looking through a large closure again and again while that grows.

A closure of 100,000 derivations is some million objects, none of them garbage, and the collector visits all of
them whenever their number has grown by a quarter: a third of the time that planning takes. What is done
without it must make no cycles, and must call no code of users, who may need it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Uncollected"]


class Uncollected:
    """A block without garbage collection, in which `interrupted` has one for code of users.

    It belongs to the whole process, so two threads may disturb each other: then there is collection where none
    was wanted, or for seconds none where it was. Whoever leaves last leaves it as it was found.
    """

    def __init__(self) -> None:
        self._was_on = False

    def __enter__(self) -> Uncollected:
        self._was_on = gc.isenabled()
        gc.disable()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._was_on:
            gc.enable()

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Collect inside the block, if it was so before; what users switch there counts from then on."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()
