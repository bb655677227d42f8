"""From build targets to one closure: imports what they name, calls the stages, registers the rest.

All targets share one registry, hence what they have in common is built once. Must not realize anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Union

from pylightnix.errors import TargetNotFound
from pylightnix.query import drefcfg_
from pylightnix.registry import Registry, instantiate, mkregistry, result_drefs
from pylightnix.storage import fsinit
from pylightnix.types import Closure, DRef, StageResult, StorageSettings
from pylightnix_client.errors import InvalidArgument
from pylightnix_client.loading import LoadedStage, choose_stage, load_file, load_module, users_code
from pylightnix_client.rebuild import ADVICE, can_rebuild, register_stored
from pylightnix_client.references import resolve_reference
from pylightnix_client.target import FileTarget, StoredTarget, Target

__all__ = ["instantiate_targets"]

Found = Union[LoadedStage, DRef]


def instantiate_targets(
    targets: Sequence[Target], arguments: Mapping[str, Any], S: StorageSettings, *, force: bool
) -> tuple[StageResult, Closure]:
    """Return the result of the targets (a list of theirs, if there are several) and their closure.

    Raises:
        TargetNotFound, TargetFailed, InvalidArgument: a target or an argument is wrong.
        MissingDerivation, ForeignDerivation, CycleError: the closure cannot be made.
    """
    fsinit(S)
    found = [_find(target, arguments, S, force) for target in targets]
    # Again, for users' files may call fsinit themselves, and the store is the command line's to choose.
    fsinit(S)
    _check_arguments([item for item in found if isinstance(item, LoadedStage)], arguments)

    def all_targets(r: Registry) -> StageResult:
        results = {}
        for i, item in enumerate(found):
            if isinstance(item, LoadedStage):
                results[i] = _call(item, targets[i].text, arguments, r)
        # Afterwards, for what a stage has registered has its realizer, and needs no stand-in.
        for i, item in enumerate(found):
            if not isinstance(item, LoadedStage):
                register_stored(item, r)
                results[i] = item
        return results[0] if len(found) == 1 else [results[i] for i in range(len(found))]

    return instantiate(all_targets, r=mkregistry(S))


def _find(target: Target, arguments: Mapping[str, Any], S: StorageSettings, force: bool) -> Found:
    if isinstance(target, StoredTarget):
        dref = resolve_reference(target.text, S, kinds=("dref",))
        if force and not can_rebuild(drefcfg_(DRef(dref), S)):
            raise TargetNotFound(f"cannot build {dref} again, for {ADVICE}")
        return DRef(dref)
    if isinstance(target, FileTarget):
        return choose_stage(load_file(target.path), target.path, target.stage, arguments.keys())
    return choose_stage(load_module(target.module), target.module, target.stage, arguments.keys())


def _check_arguments(stages: Sequence[LoadedStage], arguments: Mapping[str, Any]) -> None:
    for name in arguments:
        if not any(stage.takes(name) for stage in stages):
            known = sorted({known for stage in stages for known in stage.required + stage.optional})
            takes = f"known are {', '.join(known)}" if known else "none of them takes arguments"
            raise InvalidArgument(f"--arg {name}: no target takes an argument of that name; {takes}")


def _call(stage: LoadedStage, target: str, arguments: Mapping[str, Any], r: Registry) -> StageResult:
    taken = {name: value for name, value in arguments.items() if stage.takes(name)}
    with users_code(target, f"the stage {stage.name}"):
        result = stage.call(r=r, **taken)
    if not result_drefs(result):
        raise TargetNotFound(f"the stage {stage.name} of {target} returned {result!r:.100}; expected the DRefs of what it registered")
    return result
