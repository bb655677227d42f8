"""Stages made of other stages: the same derivations with another config, matcher or realizer.

The old stage registers in a draft of a registry, so that what it is replaced by is all that reaches the real one
and the store. Must not know what the stages do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Optional, cast

from pylightnix.config import cfgdict, mkconfig
from pylightnix.errors import ForeignDerivation, Misuse, NoRegistry
from pylightnix.planner.graph import dependency_order
from pylightnix.query import drefcfg_
from pylightnix.refusing import Refusing
from pylightnix.registry import RegisteredDerivation, Registry, closure_deps, drafted, mkdrv, tlregistry
from pylightnix.results import map_drefs, result_drefs
from pylightnix.types import Derivation, DRef, Matcher, Realizer, Stage, StageResult

__all__ = ["MustBeRealized", "Redefined", "realized", "redefine"]


def _unchanged(config: dict[str, Any]) -> None:
    """Leave the config as it is."""


@dataclass(frozen=True, slots=True)
class MustBeRealized(Refusing):
    """A realizer that refuses. Holds nothing, so that it is equal wherever it is made."""

    why: ClassVar[str] = "realized(…) forbids building it; realize the stage without realized(…) first"


@dataclass(frozen=True, slots=True)
class Redefined:
    """A stage that registers what another one does, changed. An instance, so that it can be pickled by name."""

    stage: Stage
    new_config: Callable[[dict[str, Any]], Any]
    new_matcher: Optional[Matcher]
    new_realizer: Optional[Realizer]

    def __call__(self, *args: Any, r: Optional[Registry] = None, **kwargs: Any) -> StageResult:
        by_position = r is None and bool(args) and isinstance(args[0], Registry)
        registry = tlregistry(args[0] if by_position else r)
        if registry is None:
            raise NoRegistry(repr(self.stage))
        with drafted(registry) as draft:
            result = self.stage(draft, *args[1:], **kwargs) if by_position else self.stage(*args, r=draft, **kwargs)
        targets = result_drefs(result)
        if not targets:
            raise Misuse(f"redefine expects a stage that returns DRefs, found {result!r:.200}")
        derivations = _with_returned(draft, registry, targets)
        renamed = self._register(set(targets), derivations, registry)
        _drop_replaced({old: new for old, new in renamed.items() if old not in draft.builders}, registry)
        return map_drefs(result, lambda dref: renamed[dref])

    def _register(self, targets: set[DRef], derivations: Mapping[DRef, Derivation], registry: Registry) -> dict[DRef, DRef]:
        """Register what was drafted, dependencies first, so that a changed reference reaches whatever has it in its config."""
        configs = {dref: _config_of(derivation, registry) for dref, derivation in derivations.items()}
        deps = {dref: [dep for dep in result_drefs(config) if dep in configs] for dref, config in configs.items()}
        renamed: dict[DRef, DRef] = {}
        for dref in dependency_order(list(configs), deps):
            old = derivations[dref]
            config = map_drefs(configs[dref], lambda dep: renamed.get(dep, dep))
            if dref in targets:
                self.new_config(config)
                old = Derivation(dref, self.new_matcher or old.matcher, self.new_realizer or old.realizer)
            renamed[dref] = mkdrv(mkconfig(config), old.matcher, old.realizer, registry)
        return renamed


def _with_returned(draft: Registry, registry: Registry, targets: list[DRef]) -> dict[DRef, Derivation]:
    """Return what the old stage registered, and what it merely returned of what the registry had already."""
    found = dict(draft.builders)
    for target in targets:
        where: Optional[Registry] = registry
        while target not in found:
            if where is None:
                raise ForeignDerivation(target, None)
            if target in where.builders:
                found[target] = where.builders[target]
            where = where.draft_of
    return found


def _config_of(derivation: Derivation, registry: Registry) -> dict[str, Any]:
    if isinstance(derivation, RegisteredDerivation) and derivation.config is not None:
        return cast("dict[str, Any]", json.loads(derivation.config))
    return cfgdict(drefcfg_(derivation.dref, registry.S))


def _drop_replaced(renamed: Mapping[DRef, DRef], registry: Registry) -> None:
    """Take out of the registry what was replaced in it, unless something else there depends on it."""
    replaced = {old for old, new in renamed.items() if old != new}
    if replaced:
        deps = closure_deps(registry.builders.values(), registry.S)
        for old in replaced.difference(*deps.values()):
            registry.builders.pop(old, None)  # it may be in what this is a draft of


def redefine(
    stage: Stage,
    new_config: Callable[[dict[str, Any]], Any] = _unchanged,
    new_matcher: Optional[Matcher] = None,
    new_realizer: Optional[Realizer] = None,
) -> Stage:
    """Return a stage that registers what `stage` does, with other configs, matchers or realizers.

    All derivations that `stage` returns are redefined. Where that changes a reference, whatever the stage
    registered on top of it refers to the new one. What is replaced is neither registered nor written.

    Args:
        stage: any stage.
        new_config: is given each config as a dict, to change in place; what it returns does not matter.
        new_matcher: the matcher, None for the old one.
        new_realizer: the realizer, None for the old one.

    The stage takes the arguments of the old one, and raises:
        NoRegistry: there is none, neither as ``r`` nor current.
        Misuse: the old stage returns no DRef.
    """
    for name, given in (("stage", stage), ("new_config", new_config)):
        if not callable(given):
            raise Misuse(f"redefine expects for {name} a function, found {given!r:.100}")
    return Redefined(stage, new_config, new_matcher, new_realizer)


def realized(stage: Stage) -> Stage:
    """Return a stage like `stage` that must have been realized already.

    Where a build is needed, `NotRealized` is raised instead, as it is.
    """
    return Redefined(stage, _unchanged, None, MustBeRealized())
