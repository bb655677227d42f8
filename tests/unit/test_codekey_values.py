"""Data counts by what programs can see of it: an edit of a value changes the key, and running a stage does not.

Each case is a program with a function `f`, and one edit. Cases run in loops: there are many, and each takes milliseconds.
"""

# ruff: noqa: E501  # programs of one line each
from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pylightnix.codekey import code_manifest, pyobjhash

pytest.importorskip("numpy")

HEAD = """
import abc, argparse, array, collections, contextvars, ctypes, dataclasses, datetime, decimal, enum, fractions, functools
import io, ipaddress, itertools, json, logging, operator, pathlib, random, re, statistics, string, struct, types, typing, uuid
import weakref, zoneinfo
import numpy as np
def g(*a): return 1
"""
READ = "\ndef f():\n    return X\n"

Load = Callable[..., ModuleType]
Case = tuple[str, str, str]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    numbers = itertools.count()

    def load(text: str, **others: str) -> ModuleType:
        folder = tmp_path / f"project{next(numbers)}"
        folder.mkdir()
        for name, content in {**others, "subject": text}.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(content), encoding="utf-8")
            sys.modules.pop(name, None)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(folder))
            return importlib.import_module("subject")

    return load


def check(load: Load, cases: Iterable[Case], head: str = HEAD, read: str = READ) -> None:
    """Find that each edit changes the key, that two loads have the same, and that running `f` leaves it as it is."""
    for text, old, new in cases:
        assert old in text
        module = load(head + text + read)
        before = pyobjhash([module.f])
        assert code_manifest([module.f]).unresolved == (), text
        module.f()
        assert pyobjhash([module.f]) == before, f"another key once f has run: {text}"
        assert pyobjhash([load(head + text + read).f]) == before, f"another key in another process: {text}"
        assert pyobjhash([load(head + text.replace(old, new) + read).f]) != before, f"the edit is missed: {text}"


def values(*cases: tuple[str, str, str]) -> list[Case]:
    return [(f"X = {expression}", old, new) for expression, old, new in cases]


# --- values that differ ---------------------------------------------------------------------------------


def test_instances_of_subclasses_of_builtins(load: Load) -> None:
    made = {
        "str": ("'a'", "'b'"),
        "int": ("7", "8"),
        "float": ("1.5", "2.5"),
        "complex": ("1j", "2j"),
        "bytes": ("b'a'", "b'b'"),
        "bytearray": ("b'a'", "b'b'"),
        "tuple": ("(7,)", "(8,)"),
        "list": ("[7]", "[8]"),
        "dict": ("{7: 0}", "{8: 0}"),
        "set": ("{7}", "{8}"),
        "frozenset": ("{7}", "{8}"),
        "datetime.datetime": ("2020, 1, 7", "2020, 1, 8"),
        "datetime.timedelta": ("7", "8"),
        "decimal.Decimal": ("'7'", "'8'"),
        "fractions.Fraction": ("7", "8"),
        "collections.OrderedDict": ("a=7", "a=8"),
        "collections.defaultdict": ("int, a=7", "int, a=8"),
        "collections.deque": ("[7], 9", "[7], 8"),
        "collections.Counter": ("'aa'", "'ab'"),
        "collections.UserList": ("[7]", "[8]"),
        "array.array": ("'i', [7]", "'i', [8]"),
        "ValueError": ("'a'", "'b'"),
        "OSError": ("7, 'a'", "8, 'a'"),
        "uuid.UUID": ("int=7", "int=8"),
        "type(pathlib.PurePosixPath())": ("'/q/a'", "'/q/b'"),
    }
    text = "class C({}):\n    def way(self): return 1\nX = C({})\nX.mark = 3"
    for base, (one, other) in made.items():
        case = text.format(base, one)
        edits = [(f"X = C({one})", f"X = C({other})")]
        edits += [("return 1", "return 2")]
        edits += [("mark = 3", "mark = 4")] if base != "uuid.UUID" else []
        whole = case if base != "uuid.UUID" else case.replace("\nX.mark = 3", "")
        check(load, [(whole, old, new) for old, new in edits])


def test_slots_count_those_of_mangled_names_too(load: Load) -> None:
    text = "class C(float):\n    __slots__ = ('a', '__b')\n    def __init__(self, v): self.a, self.__b = 7, 8\nX = C(1)"
    check(load, [(text, "7", "9"), (text, "8", "9"), (text, "C(1)", "C(2)")])


def test_bound_methods_and_wrappers_of_callables(load: Load) -> None:
    check(
        load,
        values(
            ("re.compile('a').sub", "'a'", "'b'"),
            ("'-'.join", "'-'", "'+'"),
            ("{'a': 7}.get", "7", "8"),
            ("'{}a'.format", "}a", "}b"),
            ("datetime.date(2020, 1, 7).isoformat", "7", "8"),
            ("string.Template('$a b').substitute", "$a b", "$a c"),
            ("np.array([7, 8]).dot", "7", "9"),
            ("(7).__add__", "7", "8"),
            ("[7].__contains__", "7", "8"),
            ("operator.itemgetter('a')", "'a'", "'b'"),
            ("operator.attrgetter('a.b')", "a.b", "a.c"),
            ("operator.methodcaller('split', 'a')", "'a'", "'b'"),
            ("functools.partial(int, base=7)", "7", "8"),
            ("functools.cmp_to_key(lambda a, b: a - b)", "a - b", "b - a"),
            ("struct.Struct('<i').pack", "<i", ">i"),
            ("collections.Counter('aab').most_common", "aab", "abb"),
            ("logging.getLogger('a')", "'a'", "'b'"),
            ("functools.partial(g, [logging.getLogger('a')])", "'a'", "'b'"),
        ),
    )
    own = "\ndef h(x): return x + 7\n"
    for expression in (
        *("np.vectorize(h)", "np.frompyfunc(h, 1, 1)", "functools.partial(h, 1)", "functools.lru_cache(h)", "functools.cmp_to_key(h)"),
        *(
            "staticmethod(h)",
            "classmethod(h)",
            "property(h)",
            "property(None, h)",
            "functools.partialmethod(h, 1)",
            "[h].append",
            "map(h, [1])",
        ),
        *(
            "functools.singledispatch(h)",
            "functools.cached_property(h)",
            "collections.defaultdict(h)",
            "functools.partial(map, h)",
            "iter(h, 1)",
        ),
        *(
            "types.MethodType(h, 3)",
            "weakref.ref(h)",
            "types.MappingProxyType({'a': h})",
            "np.array([h], dtype=object)",
            "itertools.starmap(h, [])",
        ),
    ):
        check(load, [(f"{own}X = {expression}", "x + 7", "x + 8")])


def test_methods_of_classes_count_with_the_class(load: Load) -> None:
    text = "class A:\n    n = 7\n    @classmethod\n    def make(cls): return cls.n\nclass B(A):\n    n = 8\nX = B.make"
    check(load, [(text, "n = 8", "n = 9"), (text.replace("B.make", "A.make"), "n = 7", "n = 9")])
    check(load, [("class D(dict):\n    n = 7\nX = D.fromkeys", "7", "8")])


def test_registered_implementations_count(load: Load) -> None:
    text = "@functools.singledispatch\ndef X(a): return 0\n@X.register\ndef _(a: int): return 7\n@X.register\ndef _(a: str): return 8"
    check(load, [(text, "7", "9"), (text, "a: str", "a: bytes")])
    text = "class A:\n    @functools.singledispatchmethod\n    def m(self, a): return 0\n    @m.register\n    def _(self, a: int): return 7\nX = A()"
    check(load, [(text, "7", "9")])


def test_order_factories_and_limits_of_containers(load: Load) -> None:
    swapped = ("'a': 1, 'b': 2", "'b': 2, 'a': 1")
    check(
        load,
        values(
            ("{'a': 1, 'b': 2}", *swapped),
            ("[{'a': 1, 'b': 2}]", *swapped),
            ("types.MappingProxyType({'a': 1, 'b': 2})", *swapped),
            ("{'a': 1, 'b': 2}.keys()", *swapped),
            ("collections.OrderedDict({'a': 1, 'b': 2})", *swapped),
            ("types.SimpleNamespace(**{'a': 1, 'b': 2})", *swapped),
            ("collections.Counter({'a': 1, 'b': 2})", *swapped),
            ("collections.ChainMap({'a': 1}, {'a': 2})", "{'a': 1}, {'a': 2}", "{'a': 2}, {'a': 1}"),
            ("{str(n): n for n in range(99)}", "range(99)", "reversed(range(99))"),
            ("collections.defaultdict(int)", "int", "list"),
            ("collections.defaultdict(lambda: 7)", "7", "8"),
            ("collections.deque([1], maxlen=7)", "7", "8"),
            ("collections.deque([1])", "[1]", "[1], 7"),
            ("{g: 7, int: 8}", "g: 7, int: 8", "int: 8, g: 7"),
        ),
    )
    moved = "class C(collections.OrderedDict): pass\nX = C(a=1, b=2)\nX.move_to_end('a')"
    check(load, [(moved, "move_to_end('a')", "move_to_end('b')")])


def test_arrays_types_and_masks(load: Load) -> None:
    check(
        load,
        values(
            ("np.array([(1., 2.)], [('a', 'f8'), ('b', 'f8')])", "('a', 'f8'), ('b', 'f8')", "('b', 'f8'), ('a', 'f8')"),
            ("np.dtype([(('t', 'a'), 'i1')])", "'t'", "'u'"),
            ("np.dtype([('a', 'i1'), ('b', 'i4')], align=True)", "True", "False"),
            ("np.dtype({'names': ['a'], 'formats': ['i1'], 'offsets': [7], 'itemsize': 16})", "7", "8"),
            ("np.dtype('i4', metadata={'u': 7})", "7", "8"),
            ("np.array([1], '<i4')", "<i4", ">i4"),
            ("np.array([1, 2], '<i4')", "'<i4'", "'<u4'"),
            ("np.array(['2020'], 'M8[D]')", "[D]", "[h]"),
            ("np.array([[1, 2], [3, 4]], order='C')", "'C'", "'F'"),
            ("np.array([[1, 2]])", "[[1, 2]]", "[[1], [2]]"),
            ("np.rec.array([(7,)], names='a')[:]", "[:]", ".view(np.ndarray)"),
            ("np.rec.array([(7,)], names='a')", "names='a'", "names='b'"),
            ("np.ma.array([1, 2], mask=[0, 1])", "[0, 1]", "[1, 0]"),
            ("np.ma.array([1, 2], mask=[0, 1], fill_value=7)", "7", "8"),
            ("np.ma.array([1, 2], mask=[0, 1]).filled", "[0, 1]", "[1, 0]"),
            ("np.array([g, 7], object)", "7", "8"),
            ("np.float32(7)", "float32", "float64"),
            ("np.array([(7,)], [('a', 'i4')])[0]", "'a'", "'b'"),
            ("np.poly1d([7, 8])", "7", "9"),
            ("np.iinfo('i4')", "i4", "i8"),
            ("np.arange(3_000_000) + 7", "7", "8"),
            ("{'a': [np.arange(3)]}", "arange(3)", "arange(4)"),
        ),
    )
    text = "class C(np.ndarray):\n    def m(self): return 7\nX = np.arange(8).view(C)\nX.unit = 9"
    check(load, [(text, "7", "1"), (text, "8", "1"), (text, "9", "1")])


def test_objects_of_typing_that_programs_read(load: Load) -> None:
    check(
        load,
        values(
            ("typing.Literal['a', 'b']", "'b'", "'c'"),
            ("typing.Annotated[int, 7]", "7", "8"),
            ("typing.Annotated[int, {'a': [7]}]", "7", "8"),
            ("typing.Optional[int]", "int", "float"),
            ("int | float", "float", "None"),
            ("list[int]", "int", "float"),
            ("dict[str, list[typing.Literal[7]]]", "7", "8"),
            ("typing.Callable[[int], float]", "[int]", "[bytes]"),
            ("typing.NewType('A', int)", "int)", "float)"),
            ("typing.TypeVar('T', bound=int)", "bound=int", "bound=float"),
            ("typing.TypeVar('T', int, float)", "float", "bytes"),
            ("typing.ForwardRef('A')", "'A'", "'B'"),
            ("typing.TypedDict('T', {'a': int})", "int}", "float}"),
            ("typing.TypedDict('T', {'a': int}, total=True)", "True", "False"),
            ("typing.NamedTuple('T', [('a', int)])", "int)", "float)"),
            ("dataclasses.make_dataclass('D', [('a', int, 7)])", "7", "8"),
            ("dataclasses.make_dataclass('D', ['a'], namespace={'m': lambda self: 7})", "7", "8"),
            ("type('C', (), {'m': lambda self: 7})", "7", "8"),
            ("type('C', (), {'a': 7})", "7", "8"),
            ("enum.Enum('E', 'a b')", "a b", "a c"),
            ("enum.Enum('E', {'a': 7})", "7", "8"),
        ),
    )
    hints = "\nclass Inner:\n    a: int\nclass Outer:\n    inner: {}\ndef f():\n    return typing.get_type_hints(Outer)\n"
    for annotation in ("Inner", "'Inner'", "typing.Optional['Inner']"):
        check(load, [(hints.format(annotation), "a: int", "a: str")], read="")


def test_context_variables(load: Load) -> None:
    cases = [
        ("V = contextvars.ContextVar('V', default=7)", "7", "8"),
        ("V = contextvars.ContextVar('V', default=lambda: 7)", "7", "8"),
        ("V = contextvars.ContextVar('V')\nV.set(7)", "7", "8"),
        ("V = contextvars.ContextVar('V')\nX = [V]\nV.set([7])", "7", "8"),
    ]
    check(load, cases, read="\ndef f():\n    return V.get()\n")
    check(load, cases[:1], read="\ndef f():\n    V.set(9)\n    return V.get()\n")


def test_sets_of_code_have_no_order(tmp_path: Path) -> None:
    text = """
        import dataclasses, datetime, enum, functools
        class E(enum.Enum):
            A = 1; B = 2; C = 3; D = 4
        class P(enum.Flag):
            R = 1; W = 2; X = 4
        @dataclasses.dataclass(frozen=True)
        class D:
            a: object
        def one(): return 1
        def two(): return 2
        class Node:
            def __init__(self): self.near = set()
        ring = [Node() for _ in range(4)]
        for a, b in zip(ring, ring[1:] + ring[:1]): a.near |= {b, one}
        ZONES = {datetime.timezone(datetime.timedelta(hours=n)) for n in range(9)}
        MIXED = {'members': {E.A, E.B, E.C, E.D}, 'deep': [frozenset({('a', one), ('b', two), ('c', E.A)})]}
        MORE = (frozenset(P), {P.R | P.W, P.X}, {D(E.A), D(E.B), D(one)}, {functools.partial(one), functools.partial(two, 1)})
        KEYED = {frozenset({E.A, E.B, 'x', 'y', 3}): {one, two, len, E, D}}
        def f():
            return MIXED, MORE, KEYED, ZONES, ring
        """
    (tmp_path / "subject.py").write_text(textwrap.dedent(text), encoding="utf-8")
    script = "import subject; from pylightnix import code_manifest as m; x = m([subject.f]); print(x.digest, x.unresolved, x.entries)"
    found = {
        subprocess.run(
            [sys.executable, "-B", "-c", "import os;_=[object() for _ in range(int(os.environ['PYTHONHASHSEED']) * 999)];" + script],
            env=os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(1, 6)
    }
    assert len(found) == 1
    assert " () " in found.pop()


# --- what code changes ------------------------------------------------------------------------------------


def test_what_code_changes_counts_by_what_binds_it(load: Load) -> None:
    cases = {
        "P['n'] = 1\n    return dict(P)": "P = {'a': 7}",
        "P.update(n=1)\n    return dict(P)": "P = {'a': 7}",
        "P |= {'n': 1}\n    return dict(P)": "P = {'a': 7}\ndef other():\n    global P\n    P |= {'m': 1}",
        "P.sort()\n    return list(P)": "P = [9, 7]",
        "p = P\n    p.append(1)\n    return len(P)": "P = [7]",
        "for p in P.values():\n        p.append(1)\n    return P['a'][0]": "P = {'a': [7]}",
        "fill(P)\n    return P[0]": "P = [7]\ndef fill(p): grow(p)\ndef grow(q): q.append(1)",
        "fill(into=P)\n    return P[0]": "P = [7]\ndef fill(n=1, *, into): into.append(n)",
        "random.shuffle(P)\n    return sum(P)": "P = [7, 1]",
        "setattr(P, 'n', 1)\n    return P.a": "P = types.SimpleNamespace(a=7)",
        "P.add_to(1)\n    return P.items[0]": "class C:\n    def __init__(self, *a): self.items = [*a]\n    def add_to(self, n): self.items.append(n)\nP = C(7)",
        "ADD(1)\n    return P[0]": "P = [7]\nADD = P.append",
        "P.seen[1] = 1\n    return P.seen": "class P:\n    seen = {2: 7}",
        "P.n += 1\n    return P.n": "class P:\n    n = 7",
        "P.count = getattr(P, 'count', 0) + 1\n    return P.count": "def P(): return 7",
        "return P['x']": "P = collections.defaultdict(lambda: 7)",
        "return P.random()": "P = random.Random(7)",
        "return P()": "P = random.Random(7).random",
        "return P.random()  # of numpy": "P = np.random.default_rng(7)",
        "return next(P)": "P = itertools.count(7)",
        "return P()  # of a partial call": "P = functools.partial(next, itertools.count(7))",
        "return P[1]()": "P = {1: itertools.count(7).__next__}",
        "return list(P)": "def walk():\n    yield 7\nP = walk()",
        "return P()[0]": "def P(n=[7]):\n    n.append(1)\n    return n",
        "return P()[0]  # of a name": "START = [7]\ndef P(n=START):\n    n.append(1)\n    return n",
        "return P()  # a closure": "def make():\n    n = 7\n    def count():\n        nonlocal n\n        n += 1\n        return n\n    return count\nP = make()",
        "return P(3)": "def memo(h):\n    known = {1: 7}\n    def inner(n):\n        known[n] = h(n)\n        return known[n]\n    return inner\n@memo\ndef P(n): return n",
        "return load()": "P = None\ndef load():\n    global P\n    P = P or [7]\n    return P",
        "return P.get()": "class C:\n    def __init__(self): self.kept, self.n = None, 7\n    def get(self):\n        self.kept = [self.n]\n        return self.kept\nP = C()",
        "return P.twice": "class C:\n    def __init__(self, n): self.n = n\n    @functools.cached_property\n    def twice(self): return 2 * self.n\nP = C(7)",
        "return P.divide(1, 3)": "P = decimal.Context(prec=7)",
    }
    for body, text in cases.items():
        check(load, [(text, "7", "8")], read=f"\ndef f():\n    {body}\n" if "|=" not in body else f"\ndef f():\n    global P\n    {body}\n")


def test_statements_that_fill_a_value_count(load: Load) -> None:
    read = "\ndef f():\n    P['n'] = 1\n    return dict(P)\n"
    fills = [
        "P = {}\nP['a'] = 7",
        "P = {}\nP.update(a=7)",
        "P = {}\nfor n in range(7):\n    P[n] = n",
        "P = {}\nif len(HOST) == 7:\n    P['a'] = 1",
        "P = {}\ndef fill():\n    P['a'] = 7\nfill()",
        "P = {}\ndef fill(p, n): p['a'] = n\nfill(P, 7)",
        "P = dict(a=N)",
        "P = {}\nwith open('/dev/null') as file:\n    P['a'] = 7",
        "P = {}\ntry:\n    P['a'] = 7\nexcept ValueError:\n    pass",
        "P = {}\ndef keep(h):\n    P[h.__name__] = h\n    return h\n@keep\ndef run(): return 7",
        "P = {}\ndef keep(n):\n    P['a'] = n\n    return lambda h: h\n@keep(7)\ndef run(): return 1",
    ]
    check(load, [(f"HOST = 'here'\nN = 7\n{text}" if "N)" in text else f"HOST = 'here'\n{text}", "7", "8") for text in fills], read=read)
    for line in ("from held import P", "from held import Q as P", "from held import *", "import held\nP = held.P"):
        keys = []
        for n in (7, 7, 8):
            module = load(f"{line}{read}", held=f"P = Q = {{'a': {n}}}\n")
            keys.append(pyobjhash([module.f]))
            module.f()
            assert pyobjhash([module.f]) == keys[-1]
        assert keys[0] == keys[1] != keys[2]


def test_what_fills_while_modules_load_counts_as_it_is(load: Load) -> None:
    registries = {
        "class P:\n    known = {}\n    def __init_subclass__(cls): P.known[cls.__name__] = cls\nclass A(P):\n    def m(self): return 7": "P.known",
        "class P:\n    names = []\n    def __init_subclass__(cls, *, n): cls.names.append(n)\nclass A(P, n=7): pass": "P.names",
        "class M(type):\n    known = {}\n    def __init__(cls, *a): M.known[cls.__name__] = cls\nclass A(metaclass=M):\n    def m(self): return 7": "M.known",
        "class M(type):\n    def __new__(m, n, b, d): return super().__new__(m, n, b, {**d, 'keys': sorted(d)})\nclass A(metaclass=M):\n    key7 = 1": "A.keys",
        "class R:\n    known = []\n    @classmethod\n    def keep(cls, n):\n        cls.known.append(n)\n        return lambda h: h\n@R.keep(7)\ndef run(): pass": "R.known",
        "class D:\n    def __set_name__(self, owner, name): owner.found = name\nclass A:\n    key7 = D()": "A.found",
        "class A: pass\nA.limit = 7": "A.limit",
        "class A:\n    def m(self): return 1\nA.m = lambda self: 7": "A().m()",
        "def keep(cls):\n    cls.tags = [n for n in vars(cls) if 'key' in n]\n    return cls\n@keep\nclass A:\n    key7 = 1": "A.tags",
        "class P: pass\nclass A(P):\n    def m(self): return 7": "[c().m() for c in P.__subclasses__()]",
        "class P:\n    @classmethod\n    def all(cls): return cls.__subclasses__()\nclass A(P): pass\nclass B(A):\n    n = 7": "P.all()",
        "NAMES = []\ndef keep(h):\n    NAMES.append(h.__name__)\n    return h\n@keep\ndef run7(): pass": "NAMES",
        "def h(): return 1\nh.limit = 7": "h.limit",
        "import sys\nclass App:\n    def __init__(self): self.known = {}\n    def at(self, n):\n        def keep(h):\n            self.known[n] = h\n            return h\n        return keep\n"
        "app = App()\n@app.at('a')\ndef run(): return 7": "app.known",
    }
    for text, read in registries.items():
        check(load, [(text, "7", "8")], read=f"\ndef f():\n    return {read}\n")


def test_a_registry_that_other_modules_fill_counts(load: Load) -> None:
    core = "KNOWN = {}\ndef keep(h):\n    KNOWN[h.__name__] = h\n    return h\n"
    main = "import plugins\nfrom core import KNOWN\ndef f():\n    return KNOWN['run']()\n"
    one, other = (load(main, core=core, plugins=f"from core import keep\n@keep\ndef run(): return {n}\n") for n in (7, 8))
    assert pyobjhash([one.f]) != pyobjhash([other.f])


# --- texts that look like paths -----------------------------------------------------------------------------


def test_texts_of_slashes_are_texts_wherever_the_project_lies(tmp_path: Path) -> None:
    texts = ["/", "//", "///", "/tmp", "/tmp/", "/tmp//", "//tmp", "/home", "/usr/share/", "/.", "/..", "/ "]
    texts += [str(tmp_path), f"{tmp_path}/", f"{tmp_path}/x"]
    moved = """
        import pathlib
        HERE = pathlib.Path(__file__).parent
        DATA, UP = str(HERE / 'data') + '/', str(HERE.parent / 'data')
        def f(): return HERE, DATA, UP
        """
    script = "import subject, moved; from pylightnix import pyobjhash as h; [print(n, h([v])) for m in (subject, moved)"
    script += " for n, v in vars(m).items() if n[:1] == 'f']"
    keys: dict[str, set[str]] = {}
    for place in (tmp_path / "one", tmp_path / "one" / "two" / "three"):
        place.mkdir(parents=True)
        (place / "moved.py").write_text(textwrap.dedent(moved))
        (place / "subject.py").write_text("".join(f"X{n} = {text!r}\ndef f{n}(): return X{n}\n" for n, text in enumerate(texts)))
        child = subprocess.run([sys.executable, "-B", "-c", script], cwd=place, capture_output=True, text=True, check=True)
        for line in child.stdout.splitlines():
            keys.setdefault(line.split()[0], set()).add(line.split()[1])
    assert {name for name, found in keys.items() if len(found) > 1} == set()
    assert len(set().union(*keys.values())) == len(texts) + 1


# --- objects that bite -----------------------------------------------------------------------------------


def test_objects_that_answer_to_every_name_end(load: Load) -> None:
    stand_ins = """
        import unittest.mock
        class Everything:
            def __getattr__(self, name): return Everything()
            def __call__(self, *a): return Everything()
            def __iter__(self): return iter([Everything()])
        class Lazy:
            kept = 1
            def __getattribute__(self, name):
                if name == '__dict__': raise RuntimeError('not now')
                return Lazy()
        class Reduced:
            def __reduce_ex__(self, protocol): raise SystemError('no')
        class Raising:
            @property
            def __wrapped__(self): raise RuntimeError('no')
        X = [Everything(), Lazy(), Reduced(), Raising()]
        MOCKS = [unittest.mock.MagicMock(), unittest.mock.MagicMock().a.b]
        def f():
            return X
        def m():
            return MOCKS[0].py_func, MOCKS
        """
    module = load(stand_ins)
    assert pyobjhash([module.f]) == pyobjhash([load(stand_ins).f])
    assert code_manifest([module.f]).unresolved == ()
    [told] = code_manifest([module.m]).unresolved
    assert told.startswith("subject.MOCKS: it holds something that is of the type unittest.mock.MagicMock")


def test_deep_and_circular_data(load: Load) -> None:
    text = """
        class Node:
            def __init__(self, n): self.n, self.near = n, []
        nodes = [Node(n) for n in range(300)]
        for a, b in zip(nodes, nodes[1:]):
            a.near.append(b)
            b.near.append(a)
        nodes[150].n = {}
        deep = None
        for _ in range(10_000): deep = (deep, [Node])
        X = nodes[0], deep
        """
    one, same, other = (load(textwrap.dedent(text.format(n)) + READ) for n in (7, 7, 8))
    assert pyobjhash([one.f]) == pyobjhash([same.f]) != pyobjhash([other.f])


def test_manifest_names_the_value_that_differs(load: Load) -> None:
    text = "N = [7]\nSTEPS = [len, sum]\nclass C:\n    n = 8\n    def m(self, by={9: 1}): return self.n\ndef h(k=(1, 2)): return k\ndef f():\n    return N, STEPS, C().m(), h()\n"
    before = code_manifest([load(text).f]).entries
    for old, new, name in [
        ("[7]", "[6]", "subject.N"),
        ("len, sum", "sum, len", "subject.STEPS"),
        ("n = 8", "n = 6", "subject.C.n"),
        ("(1, 2)", "(1, 3)", "subject.h=k"),
    ]:
        after = code_manifest([load(text.replace(old, new)).f]).entries
        assert name in {each for each in before if before[each] != after[each]}, name
    assert before["subject.STEPS"].shown == "[<builtin_function_or_method>, <builtin_function_or_method>]"


def test_many_stages_of_one_module_are_walked_once(load: Load) -> None:
    helpers = "".join(f"def h{n}(x): return h{n + 1}(x) + N{n}\nN{n} = {n}\n" for n in range(100)) + "def h100(x): return x\n"
    module = load(helpers + "".join(f"def f{n}(): return h{n}({n})\n" for n in range(60)))
    calls = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_name in ("function_definitions", "_encoded", "_follow_function")

    sys.setprofile(note)
    try:
        keys = {pyobjhash([getattr(module, f"f{n}")]) for n in range(60)}
    finally:
        sys.setprofile(None)
    assert len(keys) == 60
    assert calls < 800, "each of 261 definitions and values is looked at once"
