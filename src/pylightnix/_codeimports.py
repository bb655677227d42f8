"""What an import statement inside a function brings, without loading an installed package for it.

Must not know what is done with what is found.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pylightnix._origins import is_project_file, is_project_module, package_of

if TYPE_CHECKING:
    from pylightnix._references import Imported

__all__ = ["MISSING", "Leaf", "imported_value", "module_member"]

MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a function imports of an installed package."""

    name: str


def imported_value(imported: Imported, namespace: dict[str, Any]) -> tuple[Any, str]:
    """Return what an import statement inside a function brings, and what is wrong if it brings nothing."""
    name = imported.module
    try:
        if imported.level:
            package = str(namespace.get("__package__") or "")
            name = importlib.util.resolve_name("." * imported.level + imported.module, package)
        if not _is_project_top(package_of(name)):
            # By what is written, for it may be loaded or not.
            return Leaf(f"{name}:{imported.name}" if imported.name else name), ""
        module = importlib.import_module(name)
        return (module_member(module, imported.name) if imported.name else module), f"there is no {name}.{imported.name}"
    except (Exception, SystemExit) as error:  # noqa: BLE001  # code of other people's modules
        return MISSING, f"importing {name or '.'} raises {type(error).__name__}: {error}"[:200]


def _is_project_top(name: str) -> bool:
    if name in sys.stdlib_module_names:
        return False
    if name in sys.modules:
        return is_project_module(name)
    spec = importlib.util.find_spec(name)
    if spec is None:
        return True  # so that importing it says what is wrong
    places: Iterable[str] = [spec.origin] if spec.origin else spec.submodule_search_locations or ()
    return any(is_project_file(f"{place}{os.sep}") or is_project_file(place) for place in places)


def module_member(module: types.ModuleType, name: str) -> Any:
    """Return a member of a module, which may be a module that is not loaded yet; `MISSING` if there is none."""
    if name in vars(module):
        return vars(module)[name]
    try:
        return getattr(module, name)
    except Exception:  # noqa: BLE001  # a module may compute its members
        pass
    try:
        return importlib.import_module(f"{module.__name__}.{name}")
    except (Exception, SystemExit):  # noqa: BLE001  # code of other people's modules
        return MISSING
