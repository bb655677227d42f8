"""Code that is found by a name made at run time is told at the line that does it; what is known of the name is followed."""

from __future__ import annotations

import importlib
import linecache
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pylightnix.codekey import UnseenCode, code_manifest, source_digest

HELPERS = "def alpha(x):\n    return x + 1\n\ndef beta(x):\n    return x - 1\n"
HEAD = "import builtins, importlib, operator, pkgutil, runpy, sys\nimport helpers\nfrom importlib import import_module as load\n"


class Project:
    """A module `main`, a module `helpers` and a package with a module `inner`, the last two with the same text."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, main: str, helpers: str = HELPERS) -> ModuleType:
        self.forget()
        files = {"main": main, "helpers": helpers, "package/__init__": "", "package/inner": helpers}
        for name, text in files.items():
            path = self._folder / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        linecache.clearcache()
        importlib.invalidate_caches()
        return importlib.import_module("main")

    def forget(self) -> None:
        for name in ("main", "helpers", "package", "package.inner"):
            sys.modules.pop(name, None)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = Project(tmp_path)
    yield made
    made.forget()


@pytest.mark.parametrize(
    "expression",
    [
        "eval(name)",
        "exec(name)",
        "builtins.eval(name)",
        "eval('alpha(1)', vars(helpers))",
        "importlib.import_module(name).alpha(1)",
        "load(name)",
        "importlib.import_module('.h', name)",
        "__import__(name)",
        "__import__('package.inner')",
        "globals()[name]",
        "globals().get(name)",
        "vars(helpers)[name]",
        "helpers.__dict__[name]",
        "helpers.__dict__.get('alpha')",
        "getattr(helpers, name)",
        "getattr(helpers, name, None)",
        "getattr(importlib.import_module('helpers'), name)",
        "sys.modules[name]",
        "sys.modules.get('helpers')",
        "operator.attrgetter(name)(helpers)",
        "operator.methodcaller(name, 1)(helpers)",
        "runpy.run_path(name)",
        "helpers.alpha.__globals__[name]",
        "runpy.run_module('helpers')",
        "pkgutil.resolve_name(name)",
        "[m.alpha(1) for m in [helpers]]",
        "dir(helpers)",
        "map(eval, name)",
    ],
)
def test_what_finds_code_by_name_is_told_at_its_line(project: Project, expression: str) -> None:
    module = project.load(f"{HEAD}\ndef stage(name):\n    one = 1\n    two = (one,\n        {expression})\n    return two\n")
    with pytest.warns(UnseenCode, match="name it directly") as caught:
        source_digest(module.stage)
    assert {(Path(one.filename).name, one.lineno) for one in caught} == {("main.py", 8)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        source_digest(module.stage)
    assert all(sentence.startswith("main.stage, line 8: ") for sentence in code_manifest([module.stage]).unresolved)
    assert code_manifest([module.stage]).unresolved


@pytest.mark.parametrize(
    "statements",
    [
        "from runpy import run_path as run\n    return run(name)",
        "from importlib import import_module\n    return import_module(name)",
        "import importlib as i\n    return i.import_module(name)",
        "import pydoc\n    return pydoc.locate(name)",
        "from sys import modules\n    return modules[name]",
        "found = eval\n    return found(name)",
    ],
)
def test_what_a_stage_imports_itself_is_told(project: Project, statements: str) -> None:
    manifest = code_manifest([project.load(f"def stage(name):\n    {statements}\n").stage])
    [told] = manifest.unresolved
    assert told.startswith("main.stage, line ")


def test_line_is_that_of_the_helper_that_does_it(project: Project) -> None:
    loader = "class Loader:\n    def load(self, name):\n        return eval(name)\n"
    helpers = f"import importlib\n\ndef found(name):\n    return importlib.import_module(name)\n\n{loader}"
    module = project.load("import helpers\ndef stage():\n    return helpers.found('x'), helpers.Loader()\n", helpers)
    with pytest.warns(UnseenCode) as caught:
        source_digest(module.stage)
    assert sorted((Path(one.filename).name, one.lineno) for one in caught) == [("helpers.py", 4), ("helpers.py", 8)]


def test_line_of_data_is_that_of_its_first_use(project: Project) -> None:
    module = project.load("import sqlite3\nX = sqlite3.connect(':memory:')\ndef stage():\n    y = 1\n    return y, X\n")
    with pytest.warns(UnseenCode, match="main.X: it is of the type") as caught:
        source_digest(module.stage)
    assert [(Path(one.filename).name, one.lineno) for one in caught] == [("main.py", 5)]


@pytest.mark.parametrize(
    "body",
    [
        "return getattr(helpers, 'alpha')(1)",
        "return getattr(helpers, 'alpha', None)(1)",
        "return hasattr(helpers, 'alpha') and helpers.alpha(1)",
        "return globals()['helpers'].alpha(1)",
        "return vars(helpers)['alpha'](1)",
        "return helpers.__dict__['alpha'](1)",
        "return sys.modules['helpers'].alpha(1)",
        "return importlib.import_module('helpers').alpha(1)",
        "return __import__('helpers').alpha(1)",
        "return getattr(importlib.import_module('package.inner'), 'alpha')(1)",
        "m = importlib.import_module('helpers')\n    return m.alpha(1)",
        "m = importlib.import_module('package.inner')\n    return [m.alpha(x) for x in [1]]",
        "return eval('helpers.alpha(1)')",
        "return eval('(lambda n: helpers.alpha(n))(1)')",
        "exec('import helpers as h; h.alpha(1)')",
        "from package import inner\n    return inner.alpha(1)",
        "import package.inner\n    return package.inner.alpha(1)",
    ],
)
def test_name_that_is_a_constant_is_followed(project: Project, body: str) -> None:
    main = f"{HEAD}\ndef stage():\n    {body}\n"
    before = code_manifest([project.load(main).stage])
    assert before.unresolved == ()
    assert code_manifest([project.load(main, HELPERS.replace("x - 1", "x - 2")).stage]).digest == before.digest, "beta is not reached"
    assert code_manifest([project.load(main, HELPERS.replace("x + 1", "x + 2")).stage]).digest != before.digest


@pytest.mark.parametrize(
    "body",
    [
        "return getattr(self, name)",
        "return getattr(name, name), getattr(Box(), name), getattr(Box, name)",
        "return vars(name)[name], vars(Box())['a'], name.__dict__[name]",
        "return '{name}'.format(**locals())",
        "return 'helpers' in sys.modules, name not in sys.modules",
        "return name.eval('x'), name.import_module('x'), name.exec()",
        "return operator.attrgetter('a.b')(name), operator.attrgetter(name)(name)",
        "return sys.path, importlib.metadata, runpy.__name__, helpers.__name__, helpers.__file__",
        "import helpers\n    import importlib.util\n    return helpers.alpha",
        "import os\n    return getattr(os, name), getattr(operator, name)(1, 2)",
        "m = {'helpers': 1}\n    return m['helpers']",
        "def eval(text): return text\n    return eval(name)",
    ],
)
def test_nothing_is_told_of_data_and_installed_packages(project: Project, body: str) -> None:
    main = f"{HEAD}import importlib.metadata\nclass Box:\n    a = 1\n\ndef stage(self, name):\n    {body}\n"
    assert code_manifest([project.load(main).stage]).unresolved == ()


def test_own_function_of_the_name_counts(project: Project) -> None:
    main = "def eval(text):\n    return text + '1'\n\ndef stage():\n    return eval('helpers.alpha')\n"
    before, after = (code_manifest([project.load(main.replace("1", number)).stage]) for number in "12")
    assert before.digest != after.digest


def test_module_that_may_be_either_is_told(project: Project) -> None:
    body = "m = importlib.import_module('helpers')\n    if x:\n        m = importlib.import_module('package.inner')\n    return m.alpha(1)"
    manifest = code_manifest([project.load(f"import importlib\n\ndef stage(x):\n    {body}\n").stage])
    assert len(manifest.unresolved) == 2
