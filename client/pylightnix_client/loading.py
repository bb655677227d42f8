"""Finding stages in users' Python code: importing a file or a module, and choosing a stage in it.

Runs users' code, and turns what that raises into `TargetFailed`. Must not realize anything.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Optional

from pylightnix.bytecode import ProjectLoader, load_projects_from_source
from pylightnix.errors import StoreError, TargetNotFound
from pylightnix.shadowing import load_ahead_of
from pylightnix.workfolder import absolute, program_folder
from pylightnix_client.errors import InvalidArgument, TargetFailed

__all__ = ["LoadedStage", "choose_stage", "load_file", "load_module", "users_code"]


@dataclass(frozen=True, slots=True)
class LoadedStage:
    """A stage that a target names, and what `--arg` may give it."""

    name: str
    call: Callable[..., Any]
    required: tuple[str, ...]
    """Parameters without a default, in order."""
    optional: tuple[str, ...]
    takes_any: bool
    """Whether it takes arguments by any other name too."""

    def takes(self, name: str) -> bool:
        return self.takes_any or name in self.required or name in self.optional


@contextmanager
def users_code(target: str, doing: str) -> Iterator[None]:
    """Raise `TargetFailed` from whatever the code inside raises, `sys.exit` included.

    Interrupts pass, and so do the store's errors, which are not the code's fault.
    """
    try:
        yield
    except StoreError:
        raise
    except (Exception, SystemExit) as error:
        raise TargetFailed(target, doing, error) from error


def load_file(path: str) -> ModuleType:
    """Import the Python file at `path`, once, and return its module.

    Its folder becomes the first of the import path, as if Python had been started with it. The module is named after
    the file wherever that name is free, so that other modules (and other processes) import it as the same one. A file
    in a package (beside an ``__init__.py``) is imported as a part of that, from the folder in which the package lies.

    Raises:
        TargetNotFound: there is no such file.
        TargetFailed: it raised.
    """
    full = absolute(path)
    if not os.path.isfile(full):
        raise TargetNotFound(f"there is no file {path}")
    packaged = _load_in_package(full, path)
    if packaged is not None:
        return packaged
    folder, base = os.path.split(full)
    name = _module_name(full, base[: -len(".py")])
    known = sys.modules.get(name)
    if known is not None:
        return known
    _put_first(folder)
    spec = importlib.util.spec_from_file_location(name, full, loader=ProjectLoader(name, full))
    if spec is None or spec.loader is None:
        raise AssertionError(f"BUG: no loader for {full}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as imports do: dataclasses and pickles look there
    if name != base[: -len(".py")]:
        import cloudpickle  # type: ignore[import-untyped]  # it ships no type information

        # Nobody else can import it by that name, so what a daemon gets of it is the code itself.
        cloudpickle.register_pickle_by_value(module)
    try:
        with users_code(path, "importing it"):
            spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, TargetFailed) and "attempted relative import" in str(error.__cause__):
            raise TargetFailed(path, "importing it", error.__cause__, _advice_on_packages(full)) from error.__cause__
        raise
    return module


def _load_in_package(full: str, path: str) -> Optional[ModuleType]:
    """Import a file as the part of a package that it is; return None if it is in none, or the package's name is taken."""
    root, parts = os.path.dirname(full), [os.path.basename(full)[: -len(".py")]]
    while os.path.isfile(os.path.join(root, "__init__.py")):
        root, package = os.path.split(root)
        parts.insert(0, package)
    names = parts[:-1] if parts[-1] == "__init__" else parts
    if len(parts) < 2 or not all(map(str.isidentifier, names)) or names[0] in sys.stdlib_module_names:
        return None
    top = sys.modules.get(names[0])
    if top is not None and not _is_file(top, os.path.join(root, names[0], "__init__.py")):
        return None
    _put_first(root)
    if os.path.dirname(full) not in sys.path:
        sys.path.append(os.path.dirname(full))  # for what imports its neighbours by their bare names
    with users_code(path, "importing it"):
        module = importlib.import_module(".".join(names))
    return module if _is_file(module, full) else None


def _advice_on_packages(full: str) -> str:
    here = os.path.relpath(full, program_folder() or "/")
    parts = here[: -len(".py")].split(os.sep)
    init = os.path.join(os.path.dirname(here), "__init__.py")
    if len(parts) > 1 and all(map(str.isidentifier, parts)):
        return f"name it {'.'.join(parts)}:STAGE, or make {init}"
    return f"make {init}, so that it is part of a package"


def _module_name(full: str, stem: str) -> str:
    known = sys.modules.get(stem)
    if stem.isidentifier() and stem not in sys.stdlib_module_names and (known is None or _is_file(known, full)):
        return stem
    # Taken: random.py, or two files of one name. The path's hash keeps them apart, the same in every run.
    plain = re.sub(r"\W", "_", stem)
    return f"{plain}_{hashlib.sha256(os.fsencode(full)).hexdigest()[:8]}"


def _is_file(module: ModuleType, full: str) -> bool:
    found = getattr(module, "__file__", None)
    try:
        return isinstance(found, str) and os.path.samefile(found, full)
    except OSError:
        return False


def load_module(name: str) -> ModuleType:
    """Import the module `name`, with the current folder on the import path, and return it.

    Raises:
        TargetNotFound: there is no such module.
        TargetFailed: it raised.
    """
    _put_first(absolute("."))
    try:
        with users_code(name, "importing it"):
            return importlib.import_module(name)
    except TargetFailed as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and missing.name and f"{name}.".startswith(f"{missing.name}."):
            raise TargetNotFound(
                f"there is no module {name} ({missing}); modules are looked for in the current folder and on Python's import path"
            ) from missing
        raise


def _put_first(folder: str) -> None:
    if sys.path[:1] != [folder]:
        load_ahead_of([folder])
        sys.path.insert(0, folder)
    load_projects_from_source()


# --- stages -----------------------------------------------------------------------------------------


def choose_stage(module: ModuleType, where: str, name: Optional[str], given: Collection[str]) -> LoadedStage:
    """Return the stage `name` of a module; without a name its only stage, else the one called ``main``.

    Args:
        module: where to look.
        where: what the user calls it.
        name: the stage's name, if one was given.
        given: names of the arguments that `--arg` gives.

    Raises:
        TargetNotFound: there is none, or no telling which.
        InvalidArgument: it needs arguments that are not given.
    """
    if name is not None:
        stage = _as_stage(name, getattr(module, name, None))
        if stage is None:
            raise TargetNotFound(f"{where} has no stage {name!r}{_why_not(module, name)}; {_listing(_stages(module))}")
    else:
        stage = _only_stage(_stages(module), where, given)
    missing = [required for required in stage.required if required not in given]
    if missing:
        options = " ".join(f"--arg {required}=…" for required in missing)
        raise InvalidArgument(f"the stage {stage.name} of {where} needs arguments: give {options}")
    return stage


def _only_stage(stages: list[LoadedStage], where: str, given: Collection[str]) -> LoadedStage:
    # What would still lack arguments counts only where nothing else does: it is rather a part of other stages.
    ready = [stage for stage in stages if all(name in given for name in stage.required)] or stages
    distinct = {id(stage.call): stage for stage in ready}
    if len(distinct) == 1:
        return ready[0]
    for stage in ready:
        if stage.name == "main":
            return stage
    if not stages:
        raise TargetNotFound(
            f"{where} has no stages; a stage is a function decorated with @autostage, or a public one with a parameter named r"
        )
    example = f"{where}:{ready[0].name}"
    raise TargetNotFound(f"{where} has more than one stage and none called main; {_listing(stages)}; say which, for example {example}")


def _listing(stages: list[LoadedStage]) -> str:
    return f"its stages: {', '.join(stage.name for stage in stages)}" if stages else "it has no stages"


def _why_not(module: ModuleType, name: str) -> str:
    if not hasattr(module, name):
        return ""
    kind = type(getattr(module, name)).__name__
    return f": it is of type {kind}, without a parameter named r"


def _stages(module: ModuleType) -> list[LoadedStage]:
    """Return the public stages that were defined in `module` itself, in the order of their definition."""
    found = []
    for name, value in vars(module).items():
        if name.startswith("_") or inspect.isclass(value) or getattr(value, "__module__", None) != module.__name__:
            continue
        stage = _as_stage(name, value)
        if stage is not None:
            found.append(stage)
    return found


def _as_stage(name: str, value: Any) -> Optional[LoadedStage]:
    if not callable(value):
        return None
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return None
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.name == "r" for p in by_name):
        return None
    return LoadedStage(
        name,
        value,
        required=tuple(p.name for p in by_name if p.name != "r" and p.default is p.empty),
        optional=tuple(p.name for p in by_name if p.name != "r" and p.default is not p.empty),
        takes_any=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )
