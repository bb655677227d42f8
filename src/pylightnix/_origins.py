"""Whose code something is: the project's own, or an installed package's, the standard library's among them.

A project's files are all that lie neither among the installed packages, nor in the standard library, nor in
this package. Must not know what is done with the answer.
"""

from __future__ import annotations

import functools
import os
import site
import sys
import sysconfig
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pylightnix._version import __version__

__all__ = ["installed_roots", "is_project_class", "is_project_file", "is_project_module", "package_of", "package_versions"]

_OWN_FOLDER: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep
_INSTALLED_PARTS: Final = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


@functools.cache
def installed_roots() -> tuple[str, ...]:
    """Return the folders of the standard library and of installed packages, each with a slash at its end."""
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths.update(site.getsitepackages())
    if site.ENABLE_USER_SITE:
        paths.add(site.getusersitepackages())
    return tuple(sorted(path.rstrip(os.sep) + os.sep for path in paths if path))


@functools.lru_cache(maxsize=4096)
def is_project_file(filename: str) -> bool:
    """Tell whether code with this file name is a project's own: a notebook's cells and what was typed are."""
    if filename.startswith("<"):
        return not filename.startswith("<frozen ")
    if filename.startswith(_OWN_FOLDER) or any(part in filename for part in _INSTALLED_PARTS):
        return False
    return not filename.startswith(installed_roots())


def is_project_module(name: str) -> bool:
    """Tell whether a module is a project's own; one that is not loaded was made by hand, and is."""
    module = sys.modules.get(name)
    while module is None and "." in name:  # classes may say that they are of a module that shows them, and is not loaded
        name = name.rpartition(".")[0]
        module = sys.modules.get(name)
    if name in sys.builtin_module_names or name.partition(".")[0] == "pylightnix":
        return False
    return is_project_file(_file_of(module)) if module is not None else name.partition(".")[0] not in sys.stdlib_module_names


def is_project_class(cls: type) -> bool:
    """Tell whether a class is a project's own. `make_dataclass` of Python 3.11 says of all its classes that they are of `types`."""
    if cls.__module__ == "types":
        return cls.__name__ not in vars(types)
    return is_project_module(cls.__module__)


def _file_of(module: types.ModuleType) -> str:
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return file
    if getattr(module, "__name__", "") == "__main__":
        return "<stdin>"
    spec = getattr(module, "__spec__", None)
    # A folder without an __init__.py says only where its parts are searched.
    places: Iterable[Any] = getattr(spec, "submodule_search_locations", None) or ()
    if spec is None:  # made by hand
        return "<made>"
    return next((f"{place}{os.sep}" for place in places), "<frozen >")


def package_of(module: str) -> str:
    """Return the name of the package at the top that a module is in, the same in every Python where one moved its parts."""
    return module.partition(".")[0]


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of the distributions that packages come from, by the names of these; the standard library has none."""
    installed = sorted(set(packages) - sys.stdlib_module_names)
    return dict(pair for package in installed for pair in _versions(package))


@functools.lru_cache(maxsize=256)
def _versions(package: str) -> tuple[tuple[str, str], ...]:
    if package == "pylightnix":
        return ((package, __version__),)
    version = _installed().get(_normal(package))
    if version is not None:
        return ((package, version),)
    from importlib import metadata  # takes longer to import than all the rest, and to read what is installed

    return tuple((name, metadata.version(name)) for name in sorted(set(_distributions().get(package, []))))


@functools.cache
def _installed() -> dict[str, str]:
    """Return the versions of the distributions on the import path, as the names of their folders tell them."""
    found: dict[str, str] = {}
    for folder in dict.fromkeys(sys.path):
        try:
            entries = sorted(os.listdir(folder or "."))
        except OSError:
            continue
        for entry in entries:
            name, dash, rest = entry.partition("-")
            if dash and rest.endswith(".dist-info"):
                found.setdefault(_normal(name), rest.removesuffix(".dist-info"))
    return found


def _normal(name: str) -> str:
    return name.replace("-", "_").replace(".", "_").lower()


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    from importlib import metadata

    return metadata.packages_distributions()
