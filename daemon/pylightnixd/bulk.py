"""What is large and lives long, kept off the garbage collector: that looks at all there is, and stops the daemon meanwhile.

A closure of 20,000 derivations is more than a million objects, and one look at them took 150 ms. None of them is in a
circle, so all go when nobody refers to them any more, frozen or not. What is in a circle and was alive when they
were frozen stays until nothing is under way: a few frames for each thousand derivations. Must not know what they are.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Bulk"]

FREEZE_EVERY: Final = 1000


@dataclass(slots=True)
class Bulk:
    """Counts what has come, and freezes it by the thousand."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _makers: int = 0
    """How many threads are in such a block."""
    _new: int = 0
    _frozen: bool = False

    def begin(self) -> None:
        """Freeze the program itself, which is there as long as the process."""
        gc.collect()
        gc.freeze()

    def grew(self, number: int) -> None:
        """Enter that so many derivations, or builds of them, have come."""
        self._new += number
        if self._new >= FREEZE_EVERY:
            gc.collect(1)  # what has died young would else be frozen, too
            gc.freeze()
            self._new, self._frozen = 0, True

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Do not look while much is made at a time."""
        with self._lock:
            self._makers += 1
            gc.disable()
        try:
            yield
        finally:
            with self._lock:
                self._makers -= 1
                if not self._makers:
                    gc.enable()

    def shrank(self) -> None:
        """Enter that nothing is under way: look for what was frozen and is in circles that nobody refers to."""
        self._new = 0
        if self._frozen:
            self._frozen = False
            gc.unfreeze()
            self.begin()
