from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import linecache
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pylightnix
from pylightnix.build import build_wrapper
from pylightnix.codekey import pyobjhash
from pylightnix.errors import CodeKeyError, Misuse

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "codekey.json"


def _other_pythons() -> list[str]:
    """Return an interpreter of each other version that the package is for: on the path, or installed beside this one."""
    beside = Path(sys.base_prefix).parent.glob("*/bin/python3.1[0-9]")
    found: dict[tuple[int, ...], str] = {}
    for name in [*(shutil.which(f"python3.{minor}") for minor in range(11, 20)), *sorted(map(str, beside))]:
        if name is not None:
            child = subprocess.run([name, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, timeout=30)
            version = tuple(map(int, child.stdout.split())) if child.returncode == 0 else (0,)
            if version >= (3, 11) and version != sys.version_info[:2]:
                found.setdefault(version, name)
    return [found[version] for version in sorted(found)]


OTHER_PYTHONS = _other_pythons()
SAMPLES = [sample["source"] for sample in json.loads(GOLDEN.read_text(encoding="utf-8"))["samples"].values()]

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load source text as a module that lies in a file."""
    numbers = itertools.count()

    def load(text: str) -> ModuleType:
        path = tmp_path / f"sample{next(numbers)}.py"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, path.stem, module)
        spec.loader.exec_module(module)
        return module

    return load


def key(*pyobjs: Any) -> str:
    return pyobjhash(pyobjs)


def same(load: Load, *texts: str, name: str = "f") -> bool:
    return len({key(getattr(load(text), name)) for text in texts}) == 1


# --- what counts ----------------------------------------------------------------------------------------


def test_golden_digests(load: Load) -> None:
    recorded = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert recorded["version"] == 2
    found = {name: key(load(sample["source"]).sample) for name, sample in recorded["samples"].items()}
    assert found == {name: sample["digest"] for name, sample in recorded["samples"].items()}


def test_d8_digest_is_64_hex_digits_and_never_changes_between_processes(load: Load) -> None:
    module = load("def f(x):\n    return {x, 'a', 'b', ('c', frozenset({1, 2}))}\n")
    script = "import runpy, sys; from pylightnix.codekey import pyobjhash; print(pyobjhash([runpy.run_path(sys.argv[1])['f']]))"
    digests = {key(module.f)}
    for seed in ("0", "1"):
        child = subprocess.run(
            [sys.executable, "-c", script, str(module.__file__)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert child.returncode == 0, child.stderr
        digests.add(child.stdout.strip())
    assert len(digests) == 1
    assert re.fullmatch("[0-9a-f]{64}", digests.pop())


def test_layout_comments_and_docstrings_do_not_count(load: Load) -> None:
    assert same(
        load,
        "def f(a, b=1):\n    return a + b\n",
        "# head\n\ndef f(a,b = 1):   # why\n\n  # how\n  return (a+\n     b)\n",
        'def f(\n    a,\n    b=1,\n):\n    """Add."""\n    return a + \\\n        b\n',
        "if True:\n        def f(a, b=0x1): return a + b\n",
        "def f(a, b=1):  # type: ignore\n    return a + b  # type: int\n",
    )


def test_docstrings_inside_do_not_count_either(load: Load) -> None:
    assert same(
        load,
        'def f():\n    class C:\n        "doc"\n        def m(self):\n            "doc"\n            return 1\n    return C\n',
        "def f():\n    class C:\n        def m(self):\n            return 1\n    return C\n",
    )


@pytest.mark.parametrize(
    "other",
    [
        "def f(a, b=2):\n    return a + b\n",
        "def f(a, b=1.0):\n    return a + b\n",
        "def f(a, b=True):\n    return a + b\n",
        "def f(a, b='1'):\n    return a + b\n",
        "def f(a, b=b'1'):\n    return a + b\n",
        "def f(a, *, b=1):\n    return a + b\n",
        "def f(a, b=1):\n    return a - b\n",
        "def f(a, b=1):\n    return b + a\n",
        "def f(a, b=1):\n    return [a + b]\n",
        "def f(a, b=1):\n    a + b\n",
        "def f(a, b: int = 1):\n    return a + b\n",
        "async def f(a, b=1):\n    return a + b\n",
        "import functools\n@functools.lru_cache\ndef f(a, b=1):\n    return a + b\n",
        "f = lambda a, b=1: a + b\n",
    ],
)
def test_any_other_difference_counts(load: Load, other: str) -> None:
    assert not same(load, "def f(a, b=1):\n    return a + b\n", other)


def test_strings_that_only_look_like_other_strings_count(load: Load) -> None:
    assert not same(load, "def f():\n    return 'é'\n", "def f():\n    return 'e\\u0301'\n")
    assert not same(load, "def f():\n    return '\\x00'\n", "def f():\n    return '\\\\x00'\n")


def test_cuts_of_strings_do_not_count(load: Load) -> None:
    assert same(load, "def f(x):\n    return f'a{x}bc'\n", "def f(x):\n    return (f'a'\n      f'{x}b' 'c')\n")
    assert same(load, "def f():\n    return u'ab'\n", "def f():\n    return 'a' \"b\"\n")


def test_stage_decorator_does_not_count(load: Load) -> None:
    head = "def autostage(f=None, **kw):\n    return f if f else (lambda f: f)\nclass pylightnix:\n    autostage = autostage\n"
    assert same(
        load,
        head + "def f(build):\n    pass\n",
        head + "@autostage\ndef f(build):\n    pass\n",
        head + "@autostage(nouts=3, dep=lambda r: 1)\ndef f(build):\n    pass\n",
        head + "@pylightnix.autostage(lr=0.1)\ndef f(build):\n    pass\n",
    )


def test_other_decorators_count(load: Load) -> None:
    head = "def twice(n=2):\n    return lambda f: f\n"
    assert not same(load, head + "def f():\n    pass\n", head + "@twice()\ndef f():\n    pass\n")
    assert not same(load, head + "@twice()\ndef f():\n    pass\n", head + "@twice(3)\ndef f():\n    pass\n")


def test_order_and_grouping_of_a_list_count(load: Load) -> None:
    module = load("def f():\n    return 1\ndef g():\n    return 2\n")
    assert len({key(module.f, module.g), key(module.g, module.f), key(module.f), key(module.f, module.f), key()}) == 5


# --- finding the definition -----------------------------------------------------------------------------


def test_d9_backslashes_and_flush_left_strings(load: Load) -> None:
    module = load(
        'class C:\n    def f(self):\n        x = 1 + \\\n  2\n        return x, """flush\nleft\n"""\n\n'
        '    def g(self):\n        return """\n"""\n'
    )
    assert key(module.C.f) != key(module.C.g)


def test_lambdas_on_one_line_differ(load: Load) -> None:
    module = load("fs = [lambda: 0, lambda: 1, lambda x: x, lambda x: x + 1, lambda: (yield), lambda é='é': é + 'é', lambda y: x]\n")
    assert len({key(f) for f in module.fs}) == len(module.fs)


def test_nested_lambdas_on_one_line_differ(load: Load) -> None:
    module = load("f = lambda: lambda: 0\ng = (lambda x=lambda: 1: x); h = lambda: [lambda: i for i in 'ab']\n")
    outer_inner = [module.f, module.f(), module.g, module.g(), module.h, module.h()[0]]
    assert len({key(f) for f in outer_inner}) == len(outer_inner)
    assert key(module.h()[0]) == key(module.h()[1])


def test_lambda_is_the_same_wherever_it_stands(load: Load) -> None:
    alone = load("f = lambda x: (x,\n  1)\n").f
    among = load("g = (lambda: 0, lambda x: (x, 1), lambda: 0)\n").g[1]
    assert key(alone) == key(among)


def test_equal_lambdas_on_one_line_are_equal(load: Load) -> None:
    module = load("fs = [lambda: 0, lambda: 0]\n")
    assert key(module.fs[0]) == key(module.fs[1])


def test_constant_lambdas_without_columns_are_told_apart(load: Load) -> None:
    path = load("fs = [lambda: 0, lambda: 1, lambda a: 1]\nif __name__ == '__main__':\n    raise SystemExit(0)\n").__file__
    script = (
        "import runpy, sys; from pylightnix.codekey import pyobjhash; "
        "print(len({pyobjhash([f]) for f in runpy.run_path(sys.argv[1])['fs']}))"
    )
    child = subprocess.run([sys.executable, "-X", "no_debug_ranges", "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    assert (child.returncode, child.stdout.strip()) == (0, "3"), child.stderr


def test_decorated_methods_and_nested_functions(load: Load) -> None:
    module = load(
        """
        import functools

        def logged(f):
            @functools.wraps(f)
            def wrapper(*a, **k):
                return f(*a, **k)
            return wrapper

        class C:
            @logged
            @logged
            def f(self):
                return 1

            @staticmethod
            def s():
                return 2

            @property
            def p(self):
                return 3

            @functools.cached_property
            def q(self):
                return 4

        def outer(n):
            def inner():
                return n
            class Local:
                pass
            return inner, Local
        """
    )
    objects = [module.C.f, module.C.s, module.C.p.fget, module.C.q.func, *module.outer(1), module.C, module.outer]
    assert len({key(o) for o in objects}) == len(objects)
    assert key(module.outer(1)[0]) == key(module.outer(1)[0]) != key(module.outer(2)[0])


def test_classes_of_one_name_are_told_apart_by_their_methods(load: Load) -> None:
    module = load(
        "def make(n):\n    if n:\n        class A:\n            def m(self): return 1\n"
        "    else:\n        class A:\n            def m(self): return 2\n    return A\n"
    )
    assert key(module.make(0)) != key(module.make(1))


def test_generated_and_inherited_methods_do_not_mislead(load: Load) -> None:
    module = load(
        "from dataclasses import dataclass\nfrom json import JSONEncoder\n@dataclass\n"
        "class A(JSONEncoder):\n    x: int = 1\n    default = JSONEncoder.default\n"
    )
    assert key(module.A)


@pytest.mark.parametrize("python", OTHER_PYTHONS)
def test_every_python_finds_the_same(python: str, tmp_path: Path) -> None:
    for number, text in enumerate(SAMPLES):
        (tmp_path / f"sample{number}.py").write_text(text)
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]; from pylightnix.codekey import code_manifest; import json;"
        f"ms = [code_manifest([__import__(f'sample{{n}}').sample]) for n in range({len(SAMPLES)})];"
        "print(json.dumps([[m.digest, {n: e.digest for n, e in m.entries.items()}, m.unresolved] for m in ms]))"
    )
    found = []
    for interpreter in (sys.executable, python):
        # The package itself needs nothing that is not in the standard library to tell what code is.
        child = subprocess.run(
            [interpreter, "-c", script, str(Path(pylightnix.__file__).parents[1]), str(tmp_path)],
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert child.returncode == 0, child.stderr
        found.append(json.loads(child.stdout))
    assert found[0] == found[1]


def test_notebook_cells_are_sources() -> None:
    text = "def f(x):\n    return x + 1\n"
    name = "<ipython-input-1-cell>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    try:
        namespace: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(text, name, "exec"), namespace)
        assert key(namespace["f"])
    finally:
        del linecache.cache[name]


def test_edited_and_reloaded_file_is_read_again(load: Load) -> None:
    module = load("def f():\n    return 1\n")
    before = key(module.f)
    path = Path(str(module.__file__))
    path.write_text("def f():\n    return 22\n")
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    assert key(module.f) != before


# --- wrappers -------------------------------------------------------------------------------------------


class Stateful:
    def __init__(self, state: int) -> None:
        self.state = state

    def __call__(self) -> int:
        return self.state


class Wrapper:
    def __init__(self, f: Any) -> None:
        self.f = f

    @property
    def __wrapped__(self) -> Any:
        return self.f

    def __call__(self) -> None: ...


def plain(x: Any, y: int = 0) -> Any:
    return x, y


def test_wrapper_objects_of_installed_packages_are_looked_through() -> None:
    assert key(functools.lru_cache(plain)) == key(build_wrapper(functools.lru_cache(plain))) == key(plain)


def test_wrapper_objects_of_the_project_count_with_what_they_hold() -> None:
    assert len({key(Wrapper(plain)), key(plain), key(Wrapper), key(Wrapper(Wrapper(plain))), key(Wrapper(build_wrapper))}) == 5


def test_bound_method_counts_with_its_object() -> None:
    assert key(Stateful(1).__call__) == key(Stateful(1).__call__)
    assert len({key(Stateful(1).__call__), key(Stateful(2).__call__), key(Stateful.__call__)}) == 3


def test_callable_instance_counts_with_its_attributes() -> None:
    assert key(Stateful(1)) == key(Stateful(1))
    assert len({key(Stateful(1)), key(Stateful(2)), key(Stateful)}) == 3


def test_arguments_of_partial_calls_count() -> None:
    partials = [functools.partial(plain, 1), functools.partial(plain, 2), functools.partial(plain, x=1), functools.partial(plain, y=1)]
    assert len({key(p) for p in [plain, *partials]}) == 5
    assert key(functools.partial(plain, x=1, y=2)) != key(functools.partial(plain, y=2, x=1)), "the order of keywords is seen by **options"
    assert key(functools.partial(plain, {"a": 1, "b": 2})) != key(functools.partial(plain, {"b": 2, "a": 1}))


def test_arguments_of_partial_calls_that_are_no_json_count_too() -> None:
    assert key(functools.partial(plain, plain)) != key(functools.partial(plain, same))
    assert key(functools.partial(plain, {1, 2})) == key(functools.partial(plain, {2, 1}))
    assert len({key(functools.partial(plain, value)) for value in ({1, 2}, {3}, b"1")}) == 3


# --- no source ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pyobj", [len, [].append, int, "text", 3, functools.partial(print, 1), eval("lambda: 0")])
def test_what_has_no_source_is_refused_with_advice(pyobj: Any) -> None:
    with pytest.raises(CodeKeyError, match="define it in a file or a notebook cell") as raised:
        key(pyobj)
    assert isinstance(raised.value, AssertionError)


def test_lambdas_that_cannot_be_told_apart_are_refused(load: Load) -> None:
    path = load("x = y = 1\nfs = [lambda a=x: 0, lambda a=y: 0]\n").__file__
    script = "import runpy, sys; from pylightnix.codekey import pyobjhash; pyobjhash(runpy.run_path(sys.argv[1])['fs'])"
    child = subprocess.run([sys.executable, "-X", "no_debug_ranges", "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    assert child.returncode != 0
    assert "give each a line" in child.stderr


def test_file_that_changed_after_loading_is_refused(load: Load) -> None:
    module = load("x = 1\ndef f():\n    return 1\n")
    Path(str(module.__file__)).write_text("def g():\n    return 1\n\n")
    with pytest.raises(CodeKeyError, match="changed after it was loaded"):
        key(module.f)
    Path(str(module.__file__)).write_text("def (\n")
    with pytest.raises(CodeKeyError, match="cannot be parsed"):
        key(module.f)
    Path(str(module.__file__)).unlink()
    with pytest.raises(CodeKeyError, match="cannot be read"):
        key(module.f)


def test_circle_of_wrappers_is_refused() -> None:
    cached = functools.lru_cache(plain)
    cached.__wrapped__ = cached
    with pytest.raises(CodeKeyError, match="leads back"):
        key(cached)


def test_function_that_wraps_itself_counts_as_itself() -> None:
    def f() -> None: ...

    f.__wrapped__ = f  # type: ignore[attr-defined]
    assert key(f) == key(f)


def test_function_instead_of_a_list_is_refused() -> None:
    with pytest.raises(Misuse, match=re.escape("pyobjhash([…])")):
        pyobjhash(plain)  # type: ignore[arg-type]


def test_very_deep_expression_and_very_long_number(load: Load) -> None:
    sum_ = " + ".join(["x"] * 800)
    assert key(load(f"def f(x):\n    return {sum_} + {10**4000:#x}\n").f)
