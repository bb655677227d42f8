"""Registering derivations from their configs in the store, for targets that are given as DRefs.

What a config says alone can be built again: commands, and nodes without artifacts. A Python function
cannot; for such a derivation its realizations count, and building it is refused with advice.
"""

from __future__ import annotations

from typing import ClassVar

from pylightnix.config import Config, cfgdeps
from pylightnix.matchers import match_latest, match_only
from pylightnix.query import drefcfg_
from pylightnix.refusing import Refusing
from pylightnix.registry import Registry, mkdrv
from pylightnix.types import DRef

__all__ = ["StoredRealizer", "can_rebuild", "register_stored"]

ADVICE = "its realizer is a Python function; build it from its file: pylightnix build FILE.py:STAGE"


class StoredRealizer(Refusing):
    """Stands for a realizer that the store does not have."""

    why: ClassVar[str] = ADVICE


def can_rebuild(config: Config) -> bool:
    """Tell whether a derivation can be built from its config alone."""
    return _is_command(config) or _is_plain_node(config)


def _is_command(config: Config) -> bool:
    return isinstance(config.val.get("__command__"), dict)


def _is_plain_node(config: Config) -> bool:
    return config.val.get("__artifacts__") == {}


def register_stored(dref: DRef, r: Registry) -> None:
    """Register the derivation `dref` and everything below it in `r`. What is registered already stays as it is.

    Raises:
        MissingDerivation: one of them is not in the store.
    """
    seen = {dref}
    stack = [dref]
    while stack:
        at = stack.pop()
        if at in r.builders:
            continue
        config = drefcfg_(at, r.S)
        for dep in sorted(cfgdeps(config) - seen):
            seen.add(dep)
            stack.append(dep)
        _register(at, config, r)


def _register(dref: DRef, config: Config, r: Registry) -> None:
    if _is_command(config):
        from pylightnix.stages.command import CommandRealizer

        found = mkdrv(config, match_only(), CommandRealizer(), r)
    elif _is_plain_node(config):
        from pylightnix.stages.node import NodeRealizer

        found = mkdrv(config, match_only(), NodeRealizer(()), r)
    else:
        found = mkdrv(config, match_latest(), StoredRealizer(), r)
    if found != dref:
        raise AssertionError(f"BUG: the config of {dref} was registered as {found}")
