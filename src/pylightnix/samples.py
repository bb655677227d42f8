"""Stages whose samples do not depend on each other, so that they may be made side by side: which they are, and how to.

Must not know who makes them, nor in what processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from pylightnix.build import Build, BuildRealizer
from pylightnix.options import SteeredRealizer, options_of
from pylightnix.stagebody import RunSamples, StageBody
from pylightnix.types import Realizer

__all__ = ["run_by", "samples_of"]


def samples_of(realizer: Realizer) -> int:
    """Return how many samples a run of a realizer makes that may be made side by side; 1 if that cannot be told.

    A function that gets the `Build` may do with it what it likes, and so is called in order; and so is one that needs a new
    interpreter, for its modules may take no fork.
    """
    found = _found(realizer)
    if found is None or options_of(realizer).worker == "fresh" or found[1].nouts == 1 or found[1].takes_build:
        return 1
    return found[1].nouts


def run_by(realizer: Realizer, run: RunSamples) -> Realizer:
    """Return a realizer that does the same, but leaves it to `run` how its samples are made; itself if it has none."""
    found = _found(realizer)
    if found is None:
        return realizer
    built, body = found
    return BuildRealizer(_Sampled(body, run), built.nouts, built.starttime, built.stoptime, built.ctr)


def _found(realizer: Any) -> Optional[tuple[BuildRealizer[Any], StageBody]]:
    if isinstance(realizer, SteeredRealizer):
        realizer = realizer.realizer
    if type(realizer) is BuildRealizer and isinstance(realizer.f, StageBody):
        return realizer, realizer.f
    return None


@dataclass(frozen=True, slots=True)
class _Sampled:
    body: StageBody
    run: RunSamples

    def __call__(self, b: Build) -> None:
        self.body.make(b, self.run)
