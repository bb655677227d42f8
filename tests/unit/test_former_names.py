"""Names that `pylightnix` had of others, and modules that it had: they resolve, and say where they are from."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import pylightnix
from pylightnix._formerly import FORMERLY, MODULES

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def meaning(place: str) -> Any:
    module, _, own = place.rpartition(".")
    return getattr(importlib.import_module(module), own)


def test_names_of_others_are_not_ours() -> None:
    assert set(FORMERLY) <= set(pylightnix.__all__)
    assert not set(FORMERLY) & set(vars(pylightnix)), "what is there already gives no warning"


def test_each_name_means_what_it_meant_and_says_so() -> None:
    for name, place in FORMERLY.items():
        with pytest.warns(DeprecationWarning, match=f"^{name} is not of pylightnix; ") as caught:
            assert getattr(pylightnix, name) is meaning(place), name
        assert (len(caught), caught[0].filename) == (1, __file__), "of the line that asked"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("from pylightnix import deepcopy", "import deepcopy from copy"),
        ("import pylightnix; pylightnix.sha256sum", "import sha256 from hashlib"),
        ("from pylightnix import re_sub as sub", "import sub from re"),
        ("from pylightnix.types import Dict", "import Dict from typing"),
        ("from pylightnix import mkdrv, WGET", "nothing of it is used any more"),
        ("import pylightnix; getattr(pylightnix, 'join')", "import join from os.path"),
    ],
)
def test_who_names_one_is_told_once(line: str, told: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(line, {})
    assert [(w.category, str(w.message).endswith(told)) for w in caught] == [(DeprecationWarning, True)], [str(w.message) for w in caught]


def star(module: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(f"from {module} import *", namespace)  # and warnings are errors here
    return namespace


def test_a_star_import_brings_all_of_them_and_warns_of_none() -> None:
    namespace = star("pylightnix")
    recorded = set((GOLDEN / "star_names.txt").read_text().split())
    assert recorded - set(namespace) == set()
    assert set(namespace) - recorded - {"__builtins__", "__version__"} == set(pylightnix.__all__) - recorded - {"__version__"}
    for name in MODULES:
        assert inspect.ismodule(namespace[name]), name
    assert namespace["PYLIGHTNIX_REPL_HELPER"] is pylightnix.repl.PYLIGHTNIX_REPL_HELPER
    assert namespace["fetch"].fetchurl is namespace["fetchurl"] is namespace["stages"].fetchurl


def test_d66_a_star_import_warns_of_nothing() -> None:
    script = "from pylightnix import *\nprint(deepcopy([join('a', 'b')]), Optional[int], gc.__module__, core.mkdrv is mkdrv)"
    child = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)
    assert (child.stdout, child.stderr) == ("['a/b'] typing.Optional[int] pylightnix.garb True\n", "")


@pytest.mark.parametrize("module", ["core", "utils", "deco", "imports"])
def test_modules_of_0x_have_every_name(module: str) -> None:
    namespace = star(f"pylightnix.{module}")
    assert {*(GOLDEN / "star_names.txt").read_text().split()} - set(namespace) == set()
    assert namespace["mkconfig"] is pylightnix.mkconfig


@pytest.mark.parametrize(
    "line",
    [
        "from pylightnix.types import Build, BuildError, Config, Path, Registry, PromiseException",
        "from pylightnix.build import build_wrapper, repl_build, repl_buildargs, repl_continueBuild, repl_cancelBuild",
        "from pylightnix.bashlike import catref, diff, du, find, linkrref, rmref, shell",
        "from pylightnix.lens import mklens, val2rref",
        "from pylightnix.stages import fetchurl, fetchurl2, mknode, realized, redefine, unpack",
        "from pylightnix.stages.fetch import fetchlocal, fetchurl",
        "from pylightnix.stages.fetch2 import fetchurl2, unpack",
        "from pylightnix.stages.trivial import mknode, realized, redefine",
        "from pylightnix.core import fsinit, instantiate, mkdrv, realize1",
        "from pylightnix.utils import dirhash, readjson, timestring, tryread",
        "from pylightnix.deco import autodrv, autostage, realizeU",
        "from pylightnix.imports import deepcopy, join, Optional",
        "from pylightnix.tz import tzlocal",
        "from pylightnix import Either, mkdrvE, realizeE, spack, sunpack, copyclosure, gc, diskspace_h, repl_realize, ReplHelper",
    ],
)
def test_where_0x_had_names(line: str) -> None:
    script = f"{line}\nprint('ok')"
    namespace: dict[str, Any] = {}
    exec(script, namespace)


@pytest.mark.parametrize("module", ["either", "arch", "garb", "repl"])
def test_all_names_of_a_module_are_those_of_the_package_too(module: str) -> None:
    inner = importlib.import_module(f"pylightnix.{module}")
    internal = {"collect", "failed_candidates", "sweep"}  # of garb, and no part of the language
    for name in set(inner.__all__) - internal:
        assert getattr(pylightnix, name) is getattr(inner, name), name


@pytest.mark.parametrize("name", ["nothing", "ast", "__path", "dump", "logger"])
@pytest.mark.parametrize("module", ["pylightnix", "pylightnix.types"])
def test_any_other_name_is_an_attribute_error(module: str, name: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute '{name}'") as caught:
        getattr(importlib.import_module(module), name)
    assert caught.value.name == name
    with pytest.raises(ImportError, match=f"cannot import name '{name}'"):
        exec(f"from {module} import {name}")


def test_a_program_that_has_nothing_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from pylightnix._relics import try_executable

    monkeypatch.setenv("MY_SHELL", "/bin/my-shell")
    assert try_executable("sh", "MY_SHELL", "no shell", "")() == "/bin/my-shell"
    assert try_executable("sh", "UNSET_SHELL", "no shell", "")().endswith("/sh")
    with pytest.raises(AssertionError, match=r"^no shell$"):
        try_executable("not-a-program", "UNSET_SHELL", "no shell", "")()
