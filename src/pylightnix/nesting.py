"""Realizers that run inside realizers: which ones run here, one inside the other, and what they have realized.

A realizer may realize other stages while it runs. What it has got of them is a dependency of what it makes
as much as what its config names: its *dynamic* dependencies. Kept per context of execution (`contextvars`),
so a thread that a realizer starts by itself is not inside it, unless the process is there for that realizer
only. Must not know who runs realizers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Optional

from pylightnix.errors import Misuse
from pylightnix.types import DRef, RRef

__all__ = [
    "RunningRealizer",
    "being_built",
    "build_token",
    "loading_script",
    "nesting",
    "note_realized",
    "refuse_while_loading",
    "running_realizer",
]


@dataclass(slots=True, eq=False)
class RunningRealizer:
    """A realizer that runs here."""

    dref: DRef
    storage: str
    """The folder of the store's derivations."""
    token: Optional[str]
    """What the store's daemon knows the build by; None if none does."""
    outer: Optional[RunningRealizer]
    found: dict[DRef, set[RRef]] = field(default_factory=dict)

    @property
    def dynamic(self) -> dict[DRef, list[RRef]]:
        """What it has realized so far, as a context has it."""
        return {dref: sorted(rrefs) for dref, rrefs in sorted(self.found.items())}


_innermost: ContextVar[Optional[RunningRealizer]] = ContextVar("pylightnix_running_realizer", default=None)
_of_process: Optional[RunningRealizer] = None
"""The realizer that this process is there for, if it is there for one."""


@contextmanager
def running_realizer(dref: DRef, storage: str, token: Optional[str] = None, *, for_process: bool = False) -> Iterator[RunningRealizer]:
    """Enter that what runs in the block is the realizer of `dref`; `for_process` says that threads without a context are its own.

    Raises:
        Misuse: that very realizer runs around the block already: it would wait for itself.
    """
    around = being_built(storage)
    if dref in around:
        raise nesting([*around[around.index(dref) :], dref])
    global _of_process  # noqa: PLW0603  # state of the process
    running = RunningRealizer(dref, storage, token, _innermost.get())
    reset, before = _innermost.set(running), _of_process
    _of_process = running if for_process else before
    try:
        yield running
    finally:
        _innermost.reset(reset)
        _of_process = before


def _here(storage: str) -> Iterator[RunningRealizer]:
    running = _innermost.get() or _of_process
    while running is not None:
        if running.storage == storage:
            yield running
        running = running.outer


def being_built(storage: str) -> list[DRef]:
    """Return the derivations of a store whose realizers run here, the outermost first."""
    return [running.dref for running in _here(storage)][::-1]


def build_token(storage: str) -> Optional[str]:
    """Return what the daemon of a store knows the build by whose realizer runs here; None if there is none."""
    return next((running.token for running in _here(storage)), None)


def note_realized(storage: str, matched: Mapping[DRef, Optional[Sequence[RRef]]]) -> None:
    """Enter that the realizer that runs here, if there is one, has got these realizations."""
    running = next(_here(storage), None)
    if running is not None:
        for dref, rrefs in matched.items():
            if rrefs:
                running.found.setdefault(dref, set()).update(rrefs)


_loading: list[str] = []
"""Why scripts are being loaded in this process that are not run, outermost first."""


@contextmanager
def loading_script(why: str) -> Iterator[None]:
    """Load a script in the block for what it defines. What it would realize may be waiting for the block."""
    _loading.append(why)
    try:
        yield
    finally:
        _loading.pop()


def refuse_while_loading() -> None:
    """Raise if a script is only being loaded, here or as a process of `multiprocessing` does.

    Raises:
        Misuse: it is.
    """
    processes = sys.modules.get("multiprocessing.process")
    is_child = processes is not None and getattr(processes.current_process(), "_inheriting", False)
    if _loading or is_child:
        why = _loading[0] if _loading else "the script is loaded by a process that multiprocessing has started"
        raise Misuse(f'{why}; put what it does when it is run below: if __name__ == "__main__":')


def nesting(path: Sequence[DRef]) -> Misuse:
    """Return the error of a realizer that wants its own derivation, directly or through those on the way."""
    way = f": {' → '.join(path)}" if len(path) > 2 else ""
    return Misuse(f"the realizer of {path[0]} asks for its own derivation to be realized, which would never end{way}")
