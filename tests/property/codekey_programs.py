"""Programs whose stage reaches code in one of the many ways that Python has, each with an edit that changes what it gives."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["PROGRAMS", "Program", "edited"]


@dataclass(frozen=True)
class Program:
    """A program and an edit of it: in one of its files, old text becomes new text."""

    name: str
    old: str
    new: str
    files: Mapping[str, str]
    """Texts by module; `prog` has the stage."""
    must_be_told: bool = False
    """The code is found by a name made at run time, which a warning must tell."""


def program(
    name: str, old: str, new: str, prog: str, must_be_told: bool = False, package: Mapping[str, str] = {}, **modules: str
) -> Program:
    files = {"prog": textwrap.dedent(prog), **modules, **{f"package/{key}": text for key, text in package.items()}}
    return Program(name, old, new, files, must_be_told)


def edited(found: Program) -> tuple[dict[str, str], dict[str, str]]:
    """Return the files of a program, by path, and the same after its edit."""
    before = {f"{name}.py": text for name, text in found.files.items()}
    after = {path: text.replace(found.old, found.new) for path, text in before.items()}
    if before == after:
        raise AssertionError(f"{found.name}: {found.old!r} is not in it")
    return before, after


# fmt: off
FUNCTIONS: Final = [
    program("helper", "+ 1", "+ 2", """
        def stage(): return str(helper(1))
        def helper(x): return x + 1
        """),
    program("helper of a helper", "+ 1", "+ 2", """
        def stage(): return str(one(1))
        def one(x): return two(x)
        def two(x): return x + 1
        """),
    program("circle of helpers", "n - 2", "n - 3", """
        def stage(): return str(even(9))
        def even(n): return n <= 0 or odd(n - 1)
        def odd(n): return n > 0 and even(n - 2)
        """),
    program("lambda in a table", "x * 2", "x * 3", """
        TABLE = {"a": lambda x: x + 1, "b": lambda x: x * 2}
        def stage(): return str([f(5) for f in TABLE.values()])
        """),
    program("generator function", "yield 2", "yield 3", """
        def numbers():
            yield 1
            yield 2
        def stage(): return str(list(numbers()))
        """),
    program("async function", "return 1", "return 2", """
        import asyncio
        async def fetched(): return 1
        def stage(): return str(asyncio.run(fetched()))
        """),
    program("nested function", "+ 1", "+ 2", """
        def stage():
            def inner(x):
                return x + 1
            return str(inner(1))
        """),
    program("f-string", ":>4", ":<4", """
        def stage(): return f"[{7:>4}]"
        """),
    program("walrus", "> 2", "> 3", """
        def stage(): return str([y for x in range(5) if (y := x) > 2])
        """),
    program("match statement", "return 'pair'", "return 'two'", """
        def kind(x):
            match x:
                case [_, _]: return 'pair'
                case _: return 'other'
        def stage(): return kind([1, 2])
        """),
    program("constant in a pattern of match", "PAIR = 2", "PAIR = 3", """
        class Size:
            PAIR = 2
        def stage():
            match 2:
                case Size.PAIR: return 'pair'
                case _: return 'other'
        """),
    program("comprehension", "x * 2", "x * 3", """
        def stage(): return str({k: x * 2 for k, x in [('a', 1)]})
        """),
    program("global statement", "COUNT = 5", "COUNT = 6", """
        COUNT = 5
        def step():
            global COUNT
            COUNT = COUNT + 1
        def stage():
            step()
            return str(COUNT)
        """),
    program("global that another function sets", "LEVEL = 1", "LEVEL = 2", """
        LEVEL = 1
        def setting(n):
            global LEVEL
            LEVEL = n
        def stage(): return str(LEVEL)
        """),
    program("nonlocal", "n = 1", "n = 2", """
        def counter():
            n = 1
            def step():
                nonlocal n
                n += 1
                return n
            return step
        def stage(): return str(counter()())
        """),
    program("default of a helper", "by=1", "by=2", """
        def helper(x, by=1): return x + by
        def stage(): return str(helper(1))
        """),
    program("computed default of a helper", "BASE = 1", "BASE = 2", """
        BASE = 1
        def helper(x, by=BASE + 1): return x + by
        def stage(): return str(helper(1))
        """),
    program("keyword default of a helper", "by=BASE", "by=-BASE", """
        BASE = 1
        def helper(x, *, by=BASE): return x + by
        def stage(): return str(helper(1))
        """),
    program("operator as a value", "operator.add", "operator.sub", """
        import operator
        APPLY = operator.add
        def stage(): return str(APPLY(5, 3))
        """),
    program("helper called by map", "x * 2", "x * 3", """
        def double(x): return x * 2
        def stage(): return str(list(map(double, [1, 2])))
        """),
    program("reduce", "a - b", "b - a", """
        import functools
        def join(a, b): return a - b
        def stage(): return str(functools.reduce(join, [1, 2, 3]))
        """),
    program("builtin that is hidden", "* 10", "* 20", """
        def len(x): return 3 * 10
        def stage(): return str(len([]))
        """),
    program("exception class", "'bad'", "'worse'", """
        class Bad(Exception):
            def __str__(self): return 'bad'
        def stage():
            try:
                raise Bad
            except Bad as error:
                return str(error)
        """),
    program("context manager", "'in'", "'into'", """
        import contextlib
        @contextlib.contextmanager
        def place():
            yield 'in'
        def stage():
            with place() as found:
                return found
        """),
    program("name that is deleted and bound anew", "V = 2", "V = 3", """
        V = 1
        del V
        V = 2
        def stage(): return str(V)
        """),
]

DECORATORS: Final = [
    program("decorator", "+ 1", "+ 2", """
        import functools
        def more(f):
            @functools.wraps(f)
            def inner(*args): return f(*args) + 1
            return inner
        @more
        def helper(x): return x
        def stage(): return str(helper(1))
        """),
    program("what a decorator wraps", "x * 2", "x * 3", """
        import functools
        def more(f):
            @functools.wraps(f)
            def inner(*args): return f(*args) + 1
            return inner
        @more
        def helper(x): return x * 2
        def stage(): return str(helper(1))
        """),
    program("decorator without wraps", "x * 2", "x * 3", """
        def more(f):
            def inner(*args): return f(*args) + 1
            return inner
        @more
        def helper(x): return x * 2
        def stage(): return str(helper(1))
        """),
    program("argument of a decorator", "@plus(1)", "@plus(2)", """
        def plus(n):
            def decorate(f):
                def inner(x): return f(x) + n
                return inner
            return decorate
        @plus(1)
        def helper(x): return x
        def stage(): return str(helper(1))
        """),
    program("decorator that is a class", "self.n = 1", "self.n = 2", """
        class Plus:
            def __init__(self, f):
                self.f = f
                self.n = 1
            def __call__(self, x): return self.f(x) + self.n
        @Plus
        def helper(x): return x
        def stage(): return str(helper(1))
        """),
    program("decorator that registers", "return 'b'", "return 'c'", """
        KNOWN = {}
        def register(f):
            KNOWN[f.__name__] = f
            return f
        @register
        def first(): return 'a'
        @register
        def second(): return 'b'
        def stage(): return str([f() for f in KNOWN.values()])
        """),
    program("decorator that counts on a list", "return 'b'", "return 'c'", """
        KNOWN = []
        @KNOWN.append
        def first(): return 'b'
        def stage(): return 'x' if not KNOWN else str([f() for f in KNOWN])
        """),
    program("attribute of a function", "'m'", "'km'", """
        def helper(): return helper.unit
        helper.unit = 'm'
        def stage(): return helper()
        """),
]

CLASSES: Final = [
    program("method", "return 1", "return 2", """
        class A:
            def run(self): return 1
        def stage(): return str(A().run())
        """),
    program("inherited method", "return 1", "return 2", """
        class Base:
            def run(self): return 1
        class A(Base): pass
        def stage(): return str(A().run())
        """),
    program("order of bases", "(X, Y)", "(Y, X)", """
        class X:
            v = 'x'
        class Y:
            v = 'y'
        class A(X, Y): pass
        def stage(): return A.v
        """),
    program("property", "return 1", "return 2", """
        class A:
            @property
            def v(self): return 1
        def stage(): return str(A().v)
        """),
    program("cached property", "return 1", "return 2", """
        import functools
        class A:
            @functools.cached_property
            def v(self): return 1
        def stage(): return str(A().v)
        """),
    program("descriptor", "return 1", "return 2", """
        class Field:
            def __get__(self, owner, cls): return 1
        class A:
            v = Field()
        def stage(): return str(A().v)
        """),
    program("static method", "return 1", "return 2", """
        class A:
            @staticmethod
            def v(): return 1
        def stage(): return str(A.v())
        """),
    program("metaclass", "return 1", "return 2", """
        class Meta(type):
            def __len__(cls): return 1
        class A(metaclass=Meta): pass
        def stage(): return str(len(A))
        """),
    program("class decorator", "cls.v = 1", "cls.v = 2", """
        def mark(cls):
            cls.v = 1
            return cls
        @mark
        class A: pass
        def stage(): return str(A.v)
        """),
    program("__init_subclass__ registry", "return 1", "return 2", """
        class Plugin:
            known = {}
            def __init_subclass__(cls): Plugin.known[cls.__name__] = cls
        class A(Plugin):
            def run(self): return 1
        def stage(): return str(Plugin.known['A']().run())
        """),
    program("registry in a class attribute", "return 1", "return 2", """
        class Steps:
            known = []
            @classmethod
            def add(cls, f):
                cls.known.append(f)
                return f
        @Steps.add
        def step(): return 1
        def stage(): return str([f() for f in Steps.known])
        """),
    program("class attribute set from outside", "A.v = 2", "A.v = 3", """
        class A:
            v = 1
        A.v = 2
        def stage(): return str(A.v)
        """),
    program("method set from outside", "return 2", "return 3", """
        class A:
            def run(self): return 1
        def other(self): return 2
        A.run = other
        def stage(): return str(A().run())
        """),
    program("subclasses found at run time", "return 1", "return 2", """
        class Base: pass
        class A(Base):
            def run(self): return 1
        def stage(): return str([c().run() for c in Base.__subclasses__()])
        """),
    program("enum with a method", "* 2", "* 3", """
        import enum
        class Size(enum.Enum):
            S = 1
            def area(self): return self.value * 2
        def stage(): return str(Size.S.area())
        """),
    program("value of an enum", "S = 1", "S = 2", """
        import enum
        class Size(enum.IntEnum):
            S = 1
        def stage(): return str(Size.S.value)
        """),
    program("enum made by a call", "'S M'", "'M S'", """
        import enum
        Size = enum.Enum('Size', 'S M')
        def stage(): return str(Size.M.value)
        """),
    program("dataclass default", "v: int = 1", "v: int = 2", """
        import dataclasses
        @dataclasses.dataclass
        class A:
            v: int = 1
        def stage(): return str(A())
        """),
    program("dataclass factory", "[1]", "[2]", """
        import dataclasses
        def fresh(): return [1]
        @dataclasses.dataclass
        class A:
            v: list = dataclasses.field(default_factory=fresh)
        def stage(): return str(A().v)
        """),
    program("dataclass options", "order=True", "order=False", """
        import dataclasses
        @dataclasses.dataclass(order=True)
        class A:
            v: int = 1
        def stage(): return str(hasattr(A, '__lt__') and '__lt__' in vars(A))
        """),
    program("class made by make_dataclass", "'v'", "'w'", """
        import dataclasses
        A = dataclasses.make_dataclass('A', ['v'])
        def stage(): return str([f.name for f in dataclasses.fields(A)])
        """),
    program("class made by type", "'v': 1", "'v': 2", """
        A = type('A', (), {'v': 1})
        def stage(): return str(A.v)
        """),
    program("NamedTuple class", "v: int = 1", "v: int = 2", """
        from typing import NamedTuple
        class A(NamedTuple):
            v: int = 1
        def stage(): return str(A())
        """),
    program("abstract class", "return 1", "return 2", """
        import abc
        class Base(abc.ABC):
            @abc.abstractmethod
            def run(self): ...
            def twice(self): return self.run() * 2
        class A(Base):
            def run(self): return 1
        def stage(): return str(A().twice())
        """),
    program("total ordering", "self.v < other.v", "self.v > other.v", """
        import functools
        @functools.total_ordering
        class A:
            def __init__(self, v): self.v = v
            def __eq__(self, other): return self.v == other.v
            def __lt__(self, other): return self.v < other.v
        def stage(): return str(A(1) <= A(2))
        """),
    program("__getattr__ of a class", "name * 2", "name * 3", """
        class A:
            def __getattr__(self, name): return name * 2
        def stage(): return A().x
        """),
    program("attribute by getattr on self", "v = 1", "v = 2", """
        class A:
            v = 1
            def read(self, name): return getattr(self, name)
        def stage(): return str(A().read('v'))
        """),
]

MODULES: Final = [
    program("helper module", "+ 1", "+ 2", """
        import helpers
        def stage(): return str(helpers.f(1))
        """, helpers="def f(x): return x + 1\n"),
    program("name from a module", "+ 1", "+ 2", """
        from helpers import f as g
        def stage(): return str(g(1))
        """, helpers="def f(x): return x + 1\n"),
    program("star import", "+ 1", "+ 2", """
        from helpers import *
        def stage(): return str(f(1))
        """, helpers="def f(x): return x + 1\n"),
    program("re-export", "+ 1", "+ 2", """
        from package import f
        def stage(): return str(f(1))
        """, package={"__init__": "from package.inner import f\n", "inner": "def f(x): return x + 1\n"}),
    program("relative import", "+ 1", "+ 2", """
        from package.inner import g
        def stage(): return str(g(1))
        """, package={"__init__": "", "inner": "from .other import f as g\n", "other": "def f(x): return x + 1\n"}),
    program("submodule by attribute", "+ 1", "+ 2", """
        import package.inner
        def stage(): return str(package.inner.f(1))
        """, package={"__init__": "", "inner": "def f(x): return x + 1\n"}),
    program("import inside the stage", "+ 1", "+ 2", """
        def stage():
            import helpers
            return str(helpers.f(1))
        """, helpers="def f(x): return x + 1\n"),
    program("conditional import", "+ 1", "+ 2", """
        try:
            from nothing_here import f
        except ImportError:
            from helpers import f
        def stage(): return str(f(1))
        """, helpers="def f(x): return x + 1\n"),
    program("choice of modules", "import one as chosen", "import two as chosen", """
        import one as chosen
        def stage(): return chosen.name()
        """,
        one="def name(): return 'one'\n",
        two="def name(): return 'two'\n",
    ),
    program("__getattr__ of a module", "'lazy'", "'eager'", """
        import helpers
        def stage(): return helpers.anything()
        """, helpers="def __getattr__(name): return {'anything': found}[name]\ndef found(): return 'lazy'\n"),
    program("constant of a module that another sets", "helpers.LEVEL = 2", "helpers.LEVEL = 3", """
        import helpers
        helpers.LEVEL = 2
        def stage(): return str(helpers.read())
        """, helpers="LEVEL = 1\ndef read(): return LEVEL\n"),
    program("name in a loop at the top", "range(3)", "range(4)", """
        TABLE = {}
        for i in range(3):
            TABLE[i] = i * i
        def stage(): return str(TABLE)
        """),
]

# fmt: on

_LOOKUPS: Final = "import sys, importlib, operator, runpy\nimport helpers\nfrom helpers import f\nNAME = 'f'\ndef stage(): return str({})\n"
CONSTANT: Final = [
    program(f"{name} with a constant", "+ 1", "+ 2", _LOOKUPS.format(call), helpers="def f(x): return x + 1\n")
    for name, call in [
        ("getattr", "getattr(helpers, 'f')(1)"),
        ("getattr and a default", "getattr(helpers, 'f', None)(1)"),
        ("globals", "globals()['f'](1)"),
        ("import_module", "importlib.import_module('helpers').f(1)"),
        ("import_module and getattr", "getattr(importlib.import_module('helpers'), 'f')(1)"),
        ("__import__", "__import__('helpers').f(1)"),
        ("vars", "vars(helpers)['f'](1)"),
        ("__dict__", "helpers.__dict__['f'](1)"),
        ("sys.modules", "sys.modules['helpers'].f(1)"),
        ("eval", "eval('helpers.f(1)')"),
        ("exec", "(lambda box: (exec('import helpers; box.append(helpers.f(1))'), box)[1])([])"),
    ]
]
UNSEEN: Final = [
    program(name, "+ 1", "+ 2", _LOOKUPS.format(call).replace("from helpers import f\n", ""), must_be_told=True,
            helpers="def f(x): return x + 1\n")
    for name, call in [
        ("eval", "eval('help' + 'ers.f(1)')"),
        ("eval of a name", "eval('f', vars(helpers))(1)"),
        ("import_module kept", "(m := importlib.import_module('help' + 'ers')) and m.f(1)"),
        ("exec", "exec('import helpers; found = helpers.f(1)', space := {}) or space['found']"),
        ("import_module", "importlib.import_module('help' + 'ers').f(1)"),
        ("__import__", "__import__('help' + 'ers').f(1)"),
        ("globals", "globals()['help' + 'ers'].f(1)"),
        ("vars of a module", "vars(helpers)[NAME](1)"),
        ("__dict__ of a module", "helpers.__dict__[NAME](1)"),
        ("getattr of a module", "getattr(helpers, NAME)(1)"),
        ("sys.modules", "sys.modules['help' + 'ers'].f(1)"),
        ("attrgetter", "operator.attrgetter(NAME)(helpers)(1)"),
        ("methodcaller", "operator.methodcaller(NAME, 1)(helpers)"),
        ("run_module", "runpy.run_module('help' + 'ers')['f'](1)"),
        ("run_path", "runpy.run_path(helpers.__file__)['f'](1)"),
        ("module as an argument", "(lambda m: m.f(1))(helpers)"),
        ("names of a module", "[getattr(helpers, n)(1) for n in dir(helpers) if n == 'f']"),
    ]
]  # fmt: skip

PROGRAMS: Final = [*FUNCTIONS, *DECORATORS, *CLASSES, *MODULES, *CONSTANT, *UNSEEN]
