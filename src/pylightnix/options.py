"""Options of a realizer: how its code is identified, what it needs, how it is run. No part of any config.

They travel with the realizer, as a wrapper around it. Must not know who acts on them; only what must never be
left undone, a sandbox, is seen to here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, Optional, get_args

from pylightnix.codekey import CodeTerms, Track
from pylightnix.errors import Misuse, SandboxUnavailable, shown
from pylightnix.types import Context, DRef, Path, RealizeArg, Realizer, StorageSettings

__all__ = ["Options", "SteeredRealizer", "options_of", "steered", "with_options"]

_TRACKS: Final = get_args(Track)
_WORKERS: Final = ("warm", "fresh")
_SANDBOXES: Final = ("bwrap",)
_PRIORITY_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Options:
    """How a realizer is identified and run. Every field is checked when it is made.

    `version` and `track` count everywhere, and so does `sandbox`. All others are for a daemon that builds in its own workers: what is
    built in the calling process, without a daemon or because the realizer cannot travel, is built there and
    then, for as long as it takes. None is part of the config. Where several programs want the same build, it is run as
    the first of them has it.

    Raises:
        Misuse: a field is of another type, or out of its range.
    """

    version: Optional[str] = None
    """Stands in place of the code: as long as it is the same, the code counts as the same."""
    track: Track = "closure"
    """What counts as the code: ``closure``, the function and all that it reaches in the project's files;
    ``strict``, the same, and what cannot be seen is an error; ``packages``, the same and the versions of the installed
    packages it reaches; ``function``, the function alone."""
    cpus: float = 1
    """How many processors a build keeps busy: so many CPU slots it takes, a fraction counting as a whole one. With
    several samples (`nouts`) it is what each takes. More than the daemon has is refused with `beyond-budget`."""
    memory: Optional[int] = None
    """How many bytes of memory a build takes, of what the daemon's setting `memory` gives to all; None for unknown, which
    counts as none. It is an estimate that nobody enforces."""
    tags: Mapping[str, int] = field(default_factory=dict)
    """What else a build takes, and how much of it: ``{'gpu': 1}``, of what the daemon's setting `tags` has. Names begin with a lower-case
    letter, and are of such letters, digits and underscores. Which ones it has got the build finds in
    ``PYLIGHTNIX_TAG_GPU``, as numbers from 0 with commas between them; those of ``gpu`` in ``CUDA_VISIBLE_DEVICES`` too."""
    timeout_seconds: Optional[float] = None
    """How many seconds a build may take, in place of the daemon's `timeout` and up to its `timeout-max`; None for what the daemon says."""
    silent_timeout_seconds: Optional[float] = None
    """How many seconds a build may print nothing, in place of the daemon's `silent-timeout` and up to its `silent-timeout-max`;
    None for what the daemon says."""
    env: Sequence[str] = ()
    """Names of environment variables that matter to the build. They reach it even if they look like a secret, and programs
    in which they differ do not share a running build. What was built once counts whatever they were: put into
    the config what is to tell one result from another."""
    sandbox: Optional[Literal["bwrap"]] = None
    """What a build is shut in; None for nothing. No sandbox is there yet: a realizer that asks for one fails with
    `SandboxUnavailable` and is not run."""
    worker: Literal["warm", "fresh"] = "warm"
    """Whether a build may be forked from a process that has imported packages ahead, or needs a new interpreter, as
    packages do that start threads or open devices when they are imported. In a new one, samples are made one
    after the other, in one process."""
    priority: int = 0
    """Builds of a higher one go first, -1000 to 1000. Among equals that with the longest way to go, then the first to come."""

    def __post_init__(self) -> None:
        _check(self.version is None or (isinstance(self.version, str) and self.version != ""), "version", "text, for example '3'", self)
        _check(self.track in _TRACKS, "track", f"one of {', '.join(_TRACKS)}", self)
        _check(_is_positive(self.cpus), "cpus", "a number above 0", self)
        _check(self.memory is None or (_is_whole(self.memory) and self.memory > 0), "memory", "a number of bytes above 0, or None", self)
        _check(_are_tags(self.tags), "tags", "whole numbers above 0 by lower-case name, for example {'gpu': 1}", self)
        for name in ("timeout_seconds", "silent_timeout_seconds"):
            value = getattr(self, name)
            _check(value is None or _is_positive(value), name, "a number of seconds above 0, or None", self)
        _check(_are_variables(self.env), "env", "a list of names of environment variables", self)
        _check(self.sandbox is None or self.sandbox in _SANDBOXES, "sandbox", f"None or one of {', '.join(_SANDBOXES)}", self)
        _check(self.worker in _WORKERS, "worker", f"one of {', '.join(_WORKERS)}", self)
        _check(_is_whole(self.priority) and abs(self.priority) <= _PRIORITY_MAX, "priority", "a whole number, -1000 to 1000", self)
        object.__setattr__(self, "tags", dict(sorted(self.tags.items())))
        object.__setattr__(self, "env", tuple(self.env))

    def __hash__(self) -> int:
        return hash(tuple(repr(getattr(self, each.name)) for each in fields(self)))


def _check(holds: bool, name: str, expected: str, options: Options) -> None:
    if not holds:
        raise Misuse(f"the option {name} is {expected}; found {shown(getattr(options, name))}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _are_tags(value: object) -> bool:
    return isinstance(value, Mapping) and all(_is_tag(k) and _is_whole(v) and v > 0 for k, v in value.items())


def _is_tag(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,63}", value) is not None


def _are_variables(value: object) -> bool:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    return all(isinstance(name, str) and name and "=" not in name and "\0" not in name for name in value)


# --- realizers that have them ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SteeredRealizer:
    """A realizer with options. An instance of an importable class, so that it can be pickled by name."""

    realizer: Realizer
    options: Options
    sourcedeps: tuple[Any, ...] = ()
    """Functions and classes whose code counts as this realizer's."""

    @property
    def __wrapped__(self) -> Realizer:
        return self.realizer

    @property
    def code_terms(self) -> CodeTerms:
        """How the code is to be identified."""
        return CodeTerms(self.options.version, self.options.track, self.sourcedeps)

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: RealizeArg) -> list[Path]:
        if self.options.sandbox is not None:
            raise SandboxUnavailable(self.options.sandbox, dref)
        return self.realizer(S, dref, context, rarg)

    def __getattr__(self, name: str) -> Any:
        # What realizers of this package tell of themselves is true of this one.
        if name.startswith("__") or name in ("realizer", "options", "sourcedeps"):  # half made, by copy or pickle
            raise AttributeError(name)
        return getattr(self.realizer, name)


_PLAIN: Final = Options()


def with_options(realizer: Realizer, options: Options) -> Realizer:
    """Return a realizer that does the same, with options in place of those that it has.

    Raises:
        Misuse: `options` is something else.
    """
    if not isinstance(options, Options):
        raise Misuse(f"with_options expects Options(…), found {shown(options)}")
    if isinstance(realizer, SteeredRealizer):
        return steered(realizer.realizer, options, realizer.sourcedeps)
    return steered(realizer, options, ())


def steered(realizer: Realizer, options: Options, sourcedeps: tuple[Any, ...]) -> Realizer:
    """Return a realizer with options and more code that counts as its own; itself if that changes nothing."""
    return realizer if options == _PLAIN and not sourcedeps else SteeredRealizer(realizer, options, sourcedeps)


def without_options(realizer: Any) -> Any:
    """Return the realizer that has no options of one that may have some."""
    return realizer.realizer if isinstance(realizer, SteeredRealizer) else realizer


def options_of(realizer: Any) -> Options:
    """Return the options of a realizer, or of a derivation's: those without any have the defaults."""
    return realizer.options if isinstance(realizer, SteeredRealizer) else _PLAIN
