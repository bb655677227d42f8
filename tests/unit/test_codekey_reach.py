"""What code reaches counts: helpers, classes, data and closures of the project's own files, and nothing else."""

from __future__ import annotations

import importlib
import io
import itertools
import linecache
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pylightnix.codekey import CodeManifest, CodeTerms, code_manifest, pyobjhash
from pylightnix.errors import CodeKeyError, Misuse

Project = Callable[..., ModuleType]

numpy = pytest.importorskip("numpy")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Write files of a project to a folder of its own and import its module `main`."""
    numbers = itertools.count()

    def load(main: str, **files: str) -> ModuleType:
        folder = tmp_path / f"project{next(numbers)}"
        for name, text in {**files, "main": main}.items():
            path = folder / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text), encoding="utf-8")
        tops = {name.partition("__")[0] for name in files} | {"main"}
        for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
        return importlib.import_module("main")

    return load


def key(pyobj: Any) -> str:
    return pyobjhash([pyobj])


def entries(pyobj: Any) -> dict[str, str]:
    return {name: entry.kind for name, entry in code_manifest([pyobj]).entries.items()}


HELPER = "def scale(x):\n    return shift(x) * 2\n\ndef shift(x):\n    return x + {}\n\ndef other():\n    return {}\n"


# --- functions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "main",
    [
        "from helpers import scale\ndef f(x):\n    return scale(x)\n",
        "import helpers\ndef f(x):\n    return helpers.scale(x)\n",
        "import helpers as h\ndef f(x):\n    return [h.scale(y) for y in x]\n",
        "def f(x):\n    import helpers\n    return helpers.scale(x)\n",
        "def f(x):\n    import helpers as h\n    return h.scale(x)\n",
        "def f(x):\n    from helpers import scale as s\n    return s(x)\n",
        "import helpers\nclass f:\n    def m(self, x):\n        return (lambda: helpers.scale(x))()\n",
        "import helpers\ndef f(x, g=helpers.scale):\n    return g(x)\n",
        "import helpers\ndef f(x, *, g=(helpers.scale, 1)):\n    return g[0](x)\n",
        "import helpers\nTABLE = {'s': [helpers.scale]}\ndef f(x):\n    return TABLE['s'][0](x)\n",
        "import helpers, functools\ndef g(h, x):\n    return h(x)\nf = functools.partial(g, helpers.scale)\n",
        "import helpers\nclass C:\n    h = helpers.scale\n    def __call__(self): pass\nf = C()\n",
        "import helpers\ndef make():\n    h = helpers.scale\n    def f(x):\n        return h(x)\n    return f\nf = make()\n",
        "import helpers\ndef deco(g):\n    return lambda *a: helpers.scale(g(*a))\n@deco\ndef f(x):\n    return x\n",
    ],
)
def test_helper_two_levels_down_counts_and_its_neighbour_does_not(project: Project, main: str) -> None:
    digests = [key(project(main, helpers=HELPER.format(*numbers)).f) for numbers in [(1, 1), (1, 2), (2, 1)]]
    assert digests[0] == digests[1] != digests[2]


def test_layout_comments_docstrings_and_order_of_definitions_do_not_count(project: Project) -> None:
    main = "from helpers import scale\ndef f(x):\n    return scale(x)\n"
    other = 'def other():\n  return 0\ndef shift(x):\n  "Shift."\n  return (x  # so\n    + 1)\ndef scale(x):\n    return shift(x)*2\n'
    assert key(project(main, helpers=HELPER.format(1, 0)).f) == key(project(main, helpers=other).f)


def test_file_and_module_of_a_helper_do_not_count(project: Project) -> None:
    apart = project("from helpers import scale\ndef f(x):\n    return scale(x)\n", helpers=HELPER.format(1, 0)).f
    together = project(HELPER.format(1, 0) + "def f(x):\n    return scale(x)\n").f
    assert key(apart) == key(together)


def test_names_of_variables_count(project: Project) -> None:
    assert key(project("def f():\n    a = 1\n    return a\n").f) != key(project("def f():\n    b = 1\n    return b\n").f)


def test_packages_and_relative_imports(project: Project) -> None:
    def digest(number: int, inside: bool) -> str:
        line = "from .sub.deep import g\n"
        text = f"def f():\n    {line}    return g()\n" if inside else f"{line}def f():\n    return g()\n"
        files = {"pkg____init__": "", "pkg__sub____init__": "", "pkg__sub__deep": f"def g():\n    return {number}\n", "pkg__top": text}
        return key(project("from pkg.top import f\n", **files).f)

    assert digest(1, True) == digest(1, True) != digest(2, True)
    assert digest(1, False) != digest(2, False)
    main = "import pkg.sub.deep as deep\nimport pkg.sub.deep\ndef f():\n    return deep.g(), pkg.sub.deep.g()\n"
    deep = {"pkg____init__": "", "pkg__sub____init__": "", "pkg__sub__deep": "def g():\n    return 1\n"}
    assert "pkg.sub.deep.g" in entries(project(main, **deep).f)


def test_mutual_recursion_is_the_same_from_either_end(project: Project) -> None:
    text = "def even(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return n != {} and even(n - 1)\n"
    one, other, changed = (project(text.format(number)) for number in (0, 0, 1))
    assert key(one.even) == key(other.even) != key(one.odd) == key(other.odd)
    # Asked for in the other order, and together.
    assert pyobjhash([other.odd, other.even]) == pyobjhash([one.odd, one.even]) != pyobjhash([one.even, one.odd])
    assert key(changed.even) != key(one.even)
    assert set(entries(one.even)) == set(entries(one.odd)) == {"main.even", "main.odd"}


def test_circle_of_three_tells_its_members_apart(project: Project) -> None:
    text = "def a():\n    return b\ndef b():\n    return c\ndef c():\n    return a\ndef d():\n    return b\n"
    module = project(text)
    assert len({key(getattr(module, name)) for name in "abcd"}) == 4


def test_lambda_among_others_on_a_line(project: Project) -> None:
    main = "import helpers as h\nfs = [lambda x: h.shift(x), lambda x: h.other(), lambda x: h.scale(x)]\n"
    one, two = (project(main, helpers=HELPER.format(1, number)).fs for number in (1, 2))
    assert [key(f) == key(g) for f, g in zip(one, two, strict=True)] == [True, False, True]


def test_decorated_helpers(project: Project) -> None:
    main = """
        import functools
        def logged(times):
            def decorate(f):
                @functools.wraps(f)
                def wrapper(*a):
                    return [f(*a) for _ in range(times)]
                return wrapper
            return decorate
        @functools.lru_cache(maxsize=None)
        def cached(x):
            return {0}
        @logged({1})
        def chatty(x):
            return {2}
        def plain(x):
            return 0
        by_hand = logged({3})(plain)
        def f(x):
            return cached(x), chatty(x)
        def g(x):
            return by_hand(x)
        """
    base = project(main.format(1, 1, 1, 1))
    f, g = key(base.f), key(base.g)
    assert {name for name, kind in entries(base.f).items() if kind == "function"} >= {"main.cached", "main.chatty", "main.logged"}
    for numbers in [(2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1)]:
        changed = project(main.format(*numbers))
        assert (key(changed.f) != f, key(changed.g) != g) == (True, False)
    assert key(project(main.format(1, 1, 1, 2)).g) != g


def test_what_an_installed_decorator_holds_counts(project: Project) -> None:
    main = """
        import contextlib, functools
        @contextlib.contextmanager
        def opened():
            yield {}
        @functools.singledispatch
        def shown(x):
            return 0
        @shown.register
        def _(x: int):
            return {}
        def f():
            with opened() as x:
                return shown(x)
        """
    assert len({key(project(main.format(*numbers)).f) for numbers in [(1, 1), (2, 1), (1, 2)]}) == 3


# --- classes --------------------------------------------------------------------------------------------


def test_class_with_a_base_in_another_file(project: Project) -> None:
    main = "import models\nclass Net(models.Base):\n    def size(self):\n        return 1\ndef f():\n    return Net().forward()\n"
    base = "class Root:\n    def forward(self):\n        return {}\nclass Base(Root):\n    pass\nclass Unused:\n    x = {}\n"
    digests = [key(project(main, models=base.format(*numbers)).f) for numbers in [(1, 1), (1, 2), (2, 1)]]
    assert digests[0] == digests[1] != digests[2]


def test_dataclasses_enums_and_their_instances(project: Project) -> None:
    main = """
        import dataclasses, enum, typing, collections
        @dataclasses.dataclass(frozen=True)
        class Settings:
            rate: float = {}
            mode: str = 'a'
        class Mode(enum.Enum):
            FAST = {}
            SLOW = 9
        Pair = collections.namedtuple('Pair', 'a {}')
        class Typed(typing.NamedTuple):
            x: int = {}
        SETTINGS = Settings(mode={!r})
        CHOSEN = Mode.{}
        def f():
            return Settings(), Mode.FAST, Pair, Typed, SETTINGS, CHOSEN
        """
    base = (1, 1, "b", 1, "a", "FAST")
    cases = [base, *((*base[:i], other, *base[i + 1 :]) for i, other in enumerate([2, 2, "c", 2, "z", "SLOW"]))]
    assert len({key(project(main.format(*case)).f) for case in cases}) == len(cases)
    assert code_manifest([project(main.format(*base)).f]).unresolved == ()


# --- data -----------------------------------------------------------------------------------------------

VALUES = ["1", "True", "1.0", "-0.0", "0.0", "'1'", "b'1'", "None", "(1,)", "[1]", "{1}", "frozenset({1})", "{'a': 1}", "{1: 'a'}", "1j",
          "...", "range(3)", "__import__('decimal').Decimal('1')", "__import__('datetime').date(2020, 1, 1)", "[1, [2, {3: 4}]]",
          "__import__('re').compile('a')", "__import__('re').compile('a', 2)", "__import__('pathlib').Path('a')", "float('nan')",
          "__import__('numpy').arange(3)", "__import__('numpy').arange(3.0)", "__import__('numpy').arange(4)", "__import__('math').sin",
          "__import__('math').cos", "__import__('numpy').sin", "__import__('numpy').cos", "dict", "list",
          "__import__('collections').OrderedDict(a=1)", "__import__('collections').deque([1])",
          "__import__('types').SimpleNamespace(a=1)", "bytearray(b'1')"]  # fmt: skip


def test_every_value_counts(project: Project) -> None:
    digests: dict[str, str] = {}
    for value in VALUES:
        module = project(f"X = {value}\ndef f():\n    return X\n")
        digests.setdefault(key(module.f), value)
        assert code_manifest([module.f]).unresolved == ()
        assert key(project(f"X = {value}\ndef f():\n    return X\n").f) == key(module.f)
    assert sorted(digests.values()) == sorted(VALUES)


def test_order_counts_but_in_sets(project: Project) -> None:
    main = "def g(): return 1\ndef h(): return 2\nX = {}\ndef f():\n    return X\n"

    def same(one: str, other: str) -> bool:
        return key(project(main.format(one)).f) == key(project(main.format(other)).f)

    assert not same("{'a': 1, 'b': 2}", "{'b': 2, 'a': 1}")
    assert not same("{'a': g, 'b': h}", "{'b': h, 'a': g}")
    assert not same("{'a': g, 'b': h}", "{'a': h, 'b': g}")
    assert same("{'x', 'y', 1}", "{1, 'y', 'x'}")
    assert same("{g, h, 1}", "{h, 1, g}")
    assert not same("[1, 2]", "[2, 1]")


def test_data_that_holds_itself_that_is_deep_and_that_is_large(project: Project) -> None:
    texts = [
        "[{}]\nX.append(X)",
        "[{}]\nfor _ in range(10_000): X = [X]",
        "[{}, 'x' * (1 << 21)]",
        "list(range(100_000 + {}))",
        "[{}]\nfor _ in range(60): X = [X, X]",
    ]
    for text in texts:
        one, same, other = (project(f"X = {text.format(number)}\ndef f():\n    return X\n").f for number in (1, 1, 2))
        assert key(one) == key(same) != key(other)
        assert code_manifest([one]).unresolved == ()


def test_data_that_the_code_changes_is_state(project: Project) -> None:
    main = """
        def one(): return 1
        def two(): return 2
        CACHE = {0}
        COUNT = {1}
        TOTALS = {2}
        HANDLERS = {{'a': {3}}}
        def register(f):
            HANDLERS[f.__name__] = f
        def f(x):
            global COUNT
            COUNT += 1
            TOTALS.append(x)
            if x not in CACHE:
                CACHE[x] = x * 2
            register(x)
            return HANDLERS[x]
        """
    base = project(main.format("{}", 0, [], "one"))
    assert {name for name, kind in entries(base.f).items() if kind == "state"} == {
        f"main.{name}" for name in ("CACHE", "COUNT", "TOTALS", "HANDLERS")
    }
    before = key(base.f)
    vars(base).update(COUNT=7)
    base.CACHE[1] = 2
    base.TOTALS.append(3)
    assert key(base.f) == before == key(project(main.format("{}", 0, [], "one")).f)
    for values in [("{5: 5}", 0, [], "one"), ("{}", 3, [], "one"), ("{}", 0, [8], "one"), ("{}", 0, [], "two")]:
        assert key(project(main.format(*values)).f) != before, "what binds it counts"


def test_state_is_found_however_far_the_code_is_that_changes_it(project: Project) -> None:
    main = """
        CACHE = {0}
        class Settings:
            rate = {1}
            def tell(self):
                return self.rate
        SETTINGS = Settings()
        def fill(x):
            CACHE[x] = x
            SETTINGS.last = x
        HANDLERS = {{'fill': [fill]}}
        def f(x):
            return CACHE, HANDLERS, SETTINGS
        def g(x):
            return 1
        """
    one, same, filled, other = (project(main.format(*numbers)) for numbers in [({}, 1), ({}, 1), ({1: 2}, 1), ({}, 2)])
    assert len({key(module.f) for module in (one, filled, other)}) == 3
    assert pyobjhash([one.g, one.f]) == pyobjhash([same.g, same.f])
    one.fill(3)
    assert key(one.f) == key(same.f)
    one.CACHE["g"] = one.g
    assert key(one.f) != key(same.f)


def test_closure_cells_and_defaults_count_by_value(project: Project) -> None:
    main = "def make(n, m=[]):\n    def f(x, y=n, *, z=[n]):\n        return n, m\n    return f\n"
    module = project(main)
    assert key(module.make(1)) == key(module.make(1)) != key(module.make(2))
    assert key(module.make(1, [1])) != key(module.make(1, [2]))


def test_place_of_the_project_does_not_count(project: Project) -> None:
    main = "import os, pathlib\nHERE = os.path.dirname(__file__)\nROOT = os.path.dirname(HERE)\n"
    main += "DATA = pathlib.Path(__file__).parent / 'data'\ndef f():\n    return HERE, DATA, ROOT, __file__, __name__\n"
    one, other = project(main), project(main)
    assert one.HERE != other.HERE
    assert key(one.f) == key(other.f)
    assert key(project(main.replace("'data'", "'more'")).f) != key(one.f)


# --- leaves, and what cannot be seen ------------------------------------------------------------------------


def test_installed_packages_are_leaves_with_versions(project: Project) -> None:
    main = "import numpy as np, json, os.path\nfrom json import loads as load\n"
    main += "def f(x: np.ndarray):\n    import trio\n    return np.sin(x), load, os.path\n"
    found = code_manifest([project(main).f])
    assert {name for name, entry in found.entries.items() if entry.kind == "external"} == {"numpy", "trio", "json:loads", "os"}
    assert set(found.packages) == {"numpy", "trio"}
    assert found.packages["numpy"] == numpy.__version__
    assert key(project(main.replace("loads as", "dumps as")).f) != found.digest
    assert key(project(main.replace("numpy as np", "math as np").replace("np.ndarray", "int")).f) != found.digest


def test_it_does_not_matter_whether_a_package_is_loaded(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    main = "def f():\n    from colorsys import rgb_to_hsv as g\n    import colorsys, os.path as p, hypothesis.stateful as s\n"
    main += "    from hypothesis.stateful import rule\n    return g, colorsys.hsv_to_rgb, p, s, rule\n"
    for name in [name for name in sys.modules if name.partition(".")[0] in ("colorsys", "hypothesis")]:
        monkeypatch.delitem(sys.modules, name)
    before = code_manifest([project(main).f])
    assert "colorsys" not in sys.modules
    assert "hypothesis.stateful" not in sys.modules
    importlib.import_module("colorsys")
    importlib.import_module("hypothesis.stateful")
    assert code_manifest([project(main).f]) == before
    assert before.unresolved == ()


@pytest.mark.parametrize(
    ("main", "problem"),
    [
        ("def f():\n    return missing()\n", "main.f: there is nothing of the name missing"),
        ("import helpers\ndef f():\n    return helpers.missing()\n", "main.f: there is no helpers.missing"),
        (
            "import helpers\ndef f(name):\n    return getattr(helpers, name)\n",
            "main.f, line 3: the module helpers is used as a value, so any name of it may be read",
        ),
        ("def f():\n    import no_such_module\n", "main.f: importing no_such_module raises ModuleNotFoundError"),
        ("import sqlite3\nDB = sqlite3.connect(':memory:')\ndef f():\n    return DB\n", "main.DB: it is of the type sqlite3.Connection"),
        ("X = {'a': [open('/dev/null')]}\ndef f():\n    return X\n", "main.X: it holds something that is of the type _io.TextIOWrapper"),
        ("exec('def g(): return 1')\ndef f():\n    return g()\n", "main.g: its source <string> is not kept"),
    ],
)
def test_what_cannot_be_seen_is_named(project: Project, main: str, problem: str) -> None:
    f = project(main, helpers="def g():\n    return 1\n").f
    [told] = code_manifest([f]).unresolved
    assert told.startswith(problem)
    with pytest.raises(CodeKeyError, match="reaches what cannot be seen"):
        key(_Termed(f, CodeTerms(track="strict")))


class _Termed:
    """Stands for a wrapper of the package's."""

    __module__ = "pylightnix.test"

    def __init__(self, f: Any, terms: CodeTerms) -> None:
        self.__wrapped__, self.code_terms = f, terms

    def __call__(self) -> None: ...


def test_what_needs_no_word(project: Project) -> None:
    main = """
        from __future__ import annotations
        import logging, threading, typing, contextvars, weakref, abc
        if typing.TYPE_CHECKING:
            from nowhere import Thing
        log = logging.getLogger(__name__)
        LOCK = threading.Lock()
        MISSING = object()
        T = typing.TypeVar('T')
        Vector = list[float]
        VAR = contextvars.ContextVar('VAR')
        class Base(abc.ABC):
            x = 1
            y = x + 1
            z: Thing = None
        def f(a: Thing, b: Vector = None, c: typing.Optional[T] = None, d=MISSING) -> Thing:
            log.info('x')
            with LOCK as found, open('x') as (g, [h, *i]):
                try:
                    del h
                except ValueError as error:
                    print(error, VAR, found, g, i)
            match a:
                case {'k': k, **rest} | [k, *rest] if (w := k):
                    return k, rest, w
                case str() as s:
                    return s
            return Base, [n for m in a for n in m if (o := n)], o, __name__, (lambda *p, **q: (p, q, f))
        """
    assert code_manifest([project(main).f]).unresolved == ()


def test_names_inside_are_not_taken_for_those_outside(project: Project) -> None:
    main = """
        x = {0}
        y = {1}
        def f(x):
            class C:
                y = 1
                def m(self):
                    return y
            return C, x
        """
    digests = [key(project(main.format(*numbers)).f) for numbers in [(1, 1), (2, 1), (1, 2)]]
    assert digests[0] == digests[1] != digests[2]


# --- over time ------------------------------------------------------------------------------------------


def test_what_is_bound_anew_is_seen(project: Project) -> None:
    main = "import helpers\nN = 1\nTABLE = {'a': [1], 'f': helpers.shift}\n"
    main += "def f():\n    return helpers.scale(N), TABLE\ndef g():\n    return 1\n"
    module = project(main, helpers=HELPER.format(1, 1))
    seen = [key(module.f)]
    for change in (
        lambda: setattr(module, "N", 2),
        lambda: module.TABLE["a"].append(2),
        lambda: module.TABLE.update(f=module.helpers.other),
        lambda: setattr(module.helpers, "shift", module.g),
        lambda: setattr(module.helpers, "scale", module.g),
    ):
        change()
        seen.append(key(module.f))
        assert key(module.f) == seen[-1]
    assert len(set(seen)) == len(seen)


def test_helper_that_was_edited_after_it_was_loaded_is_refused(project: Project) -> None:
    module = project("import helpers\ndef f():\n    return helpers.scale(1)\n", helpers=HELPER.format(1, 1))
    before = key(module.f)
    path = Path(module.helpers.__file__)
    path.write_text(path.read_text() + "\ndef more():\n    return 1\n")
    assert key(module.f) == before
    path.write_text(path.read_text().replace("x + 1", "x + 22"))
    with pytest.raises(CodeKeyError, match="changed after it was loaded") as raised:
        key(module.f)
    assert raised.value.stale
    importlib.reload(module.helpers)
    assert key(module.f) != before


def test_cells_of_a_notebook_reach_each_other() -> None:
    cells = ["def g(x):\n    return x + {}\n", "class C:\n    def m(self):\n        return g(1)\n", "def f():\n    return C().m(), g(2)\n"]

    def digest(number: int, session: str) -> str:
        namespace: dict[str, Any] = {"__name__": "__main__"}
        for position, text in enumerate(cell.format(number) for cell in cells):
            name = f"<ipython-input-{position}-{session}>"
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
            exec(compile(text, name, "exec"), namespace)
        return key(namespace["f"])

    assert digest(1, "one") == digest(1, "another") != digest(2, "one")


# --- terms ----------------------------------------------------------------------------------------------


def test_version_stands_in_place_of_the_code(project: Project) -> None:
    module = project("def f():\n    return g\ndef g():\n    return 1\ndef h():\n    return 2\n")
    three = key(_Termed(module.f, CodeTerms(version="3")))
    assert three == key(_Termed(module.h, CodeTerms(version="3"))) == key(_Termed(len, CodeTerms(version="3")))
    assert len({three, key(module.f), key(_Termed(module.f, CodeTerms(version="4")))}) == 3
    assert key(_Termed(module.f, CodeTerms(version="3", sourcedeps=(module.g,)))) not in (three, key(module.f))


def test_function_alone(project: Project) -> None:
    main = "import helpers\nN = {}\ndef f(x=[N]):\n    return helpers.scale(N)\n"
    alone = CodeTerms(track="function")
    one, other = (project(main.format(n), helpers=HELPER.format(n, n)).f for n in (1, 2))
    assert key(_Termed(one, alone)) == key(_Termed(other, alone)) != key(one)
    [entry] = code_manifest([_Termed(one, alone)]).entries
    assert entry == "main.f"


def test_sourcedeps_count_as_if_they_were_reached(project: Project) -> None:
    module = project("def f(name):\n    return globals()[name]\ndef g():\n    return 1\n")
    assert key(_Termed(module.f, CodeTerms(sourcedeps=(module.g,)))) == pyobjhash([module.f, module.g])


def test_packages_count_if_asked_for(project: Project) -> None:
    f = project("import numpy\ndef f():\n    return numpy\n").f
    assert key(_Termed(f, CodeTerms(track="packages"))) not in (key(f), key(_Termed(f, CodeTerms(track="function"))))
    assert key(_Termed(f, CodeTerms(track="strict"))) == key(f)


# --- manifests ------------------------------------------------------------------------------------------


def test_manifest_names_what_changed(project: Project) -> None:
    main = "import helpers\nN = {}\ndef f(x):\n    return helpers.scale(N)\n"
    one, other = (code_manifest([project(main.format(n), helpers=HELPER.format(n, 1)).f]) for n in (1, 2))
    assert {name for name in one.entries if one.entries[name] != other.entries[name]} == {"main.N", "helpers.shift"}
    assert (one.entries["main.N"].shown, other.entries["main.N"].shown) == ("1", "2")
    assert set(one.entries) == {"main.f", "main.N", "helpers.scale", "helpers.shift"}


def test_manifest_is_json_and_back(project: Project) -> None:
    found = code_manifest([project("import json, numpy\nN = 'é'\ndef f():\n    return json, numpy, missing, N\n").f])
    assert CodeManifest.from_json(found.to_json()) == found
    for text in ("", "{}", "[]", '{"digest": 1, "entries": [], "unresolved": [], "packages": {}}'):
        with pytest.raises(Misuse, match="expected the manifest"):
            CodeManifest.from_json(text)


def test_long_chains_of_helpers(project: Project) -> None:
    text = "\n".join(f"def g{i}():\n    return g{i + 1}()\n" for i in range(3000)) + "def g3000():\n    return {}\n"
    one, other = (project(text.format(n)) for n in (1, 2))
    assert key(one.g0) != key(other.g0)


def test_objects_that_bite_are_no_obstacle(project: Project) -> None:
    main = """
        class Proxy:
            @property
            def __class__(self):
                raise RuntimeError('not now')
            def __getattr__(self, name):
                raise RuntimeError('not now')
        PROXY = Proxy()
        class Table(dict):
            def items(self):
                raise RuntimeError('not now')
        TABLE = Table()
        def f():
            return PROXY, TABLE
        """
    f = project(main).f
    assert key(f) == key(f) != key(project(main.replace("Table()", "Table(a=1)")).f), "no method of a project's class is run"
    assert code_manifest([f]).unresolved == ()


def test_known_digest_is_found_again_without_a_walk(project: Project) -> None:
    text = "".join(f"def g{i}(x):\n    return g{i + 1}(x) + N\n" for i in range(50)) + "def g50(x):\n    return x\nN = 1\n"
    module = project(text)

    def calls() -> int:
        count = 0

        def note(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            key(module.g0)
        finally:
            sys.setprofile(None)
        return count

    first, again = calls(), calls()
    assert again < first / 50
    assert again < 20 * 51


def test_what_changes_beside_something_that_does_not_count_is_noticed(project: Project) -> None:
    """A realizer that keeps an exception, for example, is given another value: it is other code from then on."""
    text = "import io\nclass Switch:\n    def __call__(self):\n        return self.on\n\n"
    main = project(text + "switch = Switch()\nswitch.error, switch.on = io.TextIOWrapper(io.BytesIO(b'x')), 0\n")
    switch = main.switch
    first = key(switch)
    switch.on = 1
    second = key(switch)
    switch.error = None
    third = key(switch)
    assert len({first, second, third}) == 3
    switch.error, switch.on = io.TextIOWrapper(io.BytesIO(b"y")), 0
    assert key(switch) == first, "of the file, its type counts"
