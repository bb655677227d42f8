"""Kinds of values that a stage may read, each with an edit of its value, and the places where a program may hold one.

A kind is a line that imports or defines what the value needs, an expression, an edit (old text, new text), and a
probe: an expression in `V` that renders the value, so that the edit changes what the probe gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["CARRIERS", "KINDS", "Kind", "carried"]


@dataclass(frozen=True)
class Kind:
    """One kind of value, and an edit of it."""

    name: str
    expression: str
    old: str
    new: str
    probe: str = "repr(V)"
    setup: str = ""
    may_be_told: bool = False
    """A warning may stand in place of another digest: no rule can read the value."""


PLAIN: Final = [
    Kind("int", "41", "41", "42"),
    Kind("long int", "10**60", "60", "61"),
    Kind("float", "0.1", "0.1", "0.2"),
    Kind("sign of zero", "0.0", "0.0", "-0.0"),
    Kind("not a number", "float('nan')", "nan", "inf"),
    Kind("complex", "1j", "1j", "2j"),
    Kind("bool", "True", "True", "False"),
    Kind("true or one", "True", "True", "1"),
    Kind("int or float", "1", "1", "1.0"),
    Kind("str", "'a'", "'a'", "'b'"),
    Kind("str or bytes", "'a'", "'a'", "b'a'"),
    Kind("bytes", "b'a'", "b'a'", "b'b'"),
    Kind("lone surrogate", "'\\udc80'", "80", "81", "ascii(V)"),
    Kind("slashes", "'//'", "'//'", "'///'"),
    Kind("slash at the end", "'/tmp'", "'/tmp'", "'/tmp/'"),
    Kind("slash alone", "'/'", "'/'", "'//'"),
    Kind("ellipsis", "...", "...", "None"),
    Kind("range", "range(1, 9, 2)", "9", "11"),
    Kind("slice", "slice(1, 4)", "4", "5"),
    Kind("bytearray", "bytearray(b'abc')", "abc", "abd"),
    Kind("memoryview", "memoryview(b'abc')", "abc", "abd", "bytes(V)", may_be_told=True),
]

CONTAINERS: Final = [
    Kind("list", "[1, 2]", "[1, 2]", "[2, 1]"),
    Kind("list or tuple", "[1, 2]", "[1, 2]", "(1, 2)"),
    Kind("nested", "{'a': [1, (2, {3: 'x'})]}", "'x'", "'y'"),
    Kind("dict order", "{'a': 1, 'b': 2}", "'a': 1, 'b': 2", "'b': 2, 'a': 1", "list(V)"),
    Kind("dict key", "{1: 'a'}", "1:", "2:"),
    Kind(
        "dict of functions in order",
        "{'f': f, 'g': g}",
        "'f': f, 'g': g",
        "'g': g, 'f': f",
        "[h() for h in V.values()]",
        "def f(): return 1\ndef g(): return 2",
    ),
    Kind("set", "{1, 2, 3}", "3", "4", "sorted(V)"),
    Kind("set of strings", "{'a', 'b', 'c'}", "'c'", "'d'", "sorted(V)"),
    Kind("set or frozenset", "{1, 2}", "{1, 2}", "frozenset({1, 2})", "type(V).__name__"),
    Kind(
        "set of enum members",
        "{Colour.RED, Colour.BLUE}",
        "BLUE}",
        "GREEN}",
        "sorted(c.name for c in V)",
        "import enum\nclass Colour(enum.Enum):\n    RED = 1\n    BLUE = 2\n    GREEN = 3",
    ),
    Kind(
        "set of enum members, value",
        "{Colour.RED, Colour.BLUE, Colour.GREEN}",
        "3",
        "4",
        "sorted(c.value for c in V)",
        "import enum\nclass Colour(enum.Enum):\n    RED = 1\n    BLUE = 2\n    GREEN = 3",
    ),
    Kind(
        "set of flags",
        "{Mode.R, Mode.W | Mode.X}",
        "Mode.W | ",
        "",
        "sorted(m.value for m in V)",
        "import enum\nclass Mode(enum.Flag):\n    R = 1\n    W = 2\n    X = 4",
    ),
    Kind(
        "set of functions",
        "{f, g, h}",
        "return 3",
        "return 4",
        "sorted(k() for k in V)",
        "def f(): return 1\ndef g(): return 2\ndef h(): return 3",
    ),
    Kind("set of lambdas", "{f, g}", "lambda: 2", "lambda: 3", "sorted(k() for k in V)", "f = lambda: 1\ng = lambda: 2"),
    Kind("set of classes", "{A, B}", "x = 2", "x = 3", "sorted(k.x for k in V)", "class A:\n    x = 1\nclass B:\n    x = 2"),
    Kind(
        "set of partials",
        "{partial(f, 1), partial(f, 2)}",
        ", 2)",
        ", 3)",
        "sorted(p() for p in V)",
        "from functools import partial\ndef f(x): return x",
    ),
    Kind(
        "set of tuples with functions",
        "{('a', f), ('b', g)}",
        "'b'",
        "'c'",
        "sorted((n, k()) for n, k in V)",
        "def f(): return 1\ndef g(): return 2",
    ),
    Kind("set of frozensets", "{frozenset({'a', 'b'}), frozenset({'c'})}", "'c'", "'d'", "sorted(map(sorted, V))"),
    Kind(
        "set of instances",
        "{P(1), P(2)}",
        "P(2)",
        "P(3)",
        "sorted(p.x for p in V)",
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass P:\n    x: int",
    ),
    Kind(
        "set of times with zones",
        "{datetime(2024, 1, 1, tzinfo=timezone.utc), datetime(2025, 1, 1, tzinfo=timezone.utc)}",
        "2025",
        "2026",
        "sorted(map(str, V))",
        "from datetime import datetime, timezone",
    ),
    Kind(
        "keys that are functions",
        "{f: 1, g: 2}",
        "g: 2",
        "g: 3",
        "sorted((k(), n) for k, n in V.items())",
        "def f(): return 1\ndef g(): return 2",
    ),
    Kind("deque", "deque([1, 2])", "2]", "3]", setup="from collections import deque"),
    Kind("maxlen", "deque([1, 2], maxlen=2)", "maxlen=2", "maxlen=3", setup="from collections import deque"),
    Kind("default factory", "defaultdict(int)", "(int)", "(list)", "V.default_factory()", "from collections import defaultdict"),
    Kind(
        "default factory of the project",
        "defaultdict(seven)",
        "return 7",
        "return 8",
        "V.default_factory()",
        "from collections import defaultdict\ndef seven(): return 7",
    ),
    Kind("OrderedDict", "OrderedDict(a=1, b=2)", "a=1, b=2", "b=2, a=1", "list(V)", "from collections import OrderedDict"),
    Kind("Counter", "Counter('aab')", "aab", "abb", "sorted(V.items())", "from collections import Counter"),
    Kind("ChainMap", "ChainMap({'a': 1}, {'b': 2})", "'b': 2", "'b': 3", "sorted(V.items())", "from collections import ChainMap"),
    Kind("UserDict", "UserDict(a=1)", "a=1", "a=2", setup="from collections import UserDict"),
    Kind("read-only mapping", "MappingProxyType({'a': 1})", "'a': 1", "'a': 2", "V['a']", "from types import MappingProxyType"),
    Kind("SimpleNamespace", "SimpleNamespace(a=1)", "a=1", "a=2", "V.a", "from types import SimpleNamespace"),
    Kind("namedtuple", "P(1, 2)", "P(1, 2)", "P(1, 3)", setup="from collections import namedtuple\nP = namedtuple('P', 'x y')"),
    Kind("fields of a namedtuple", "P(1, 2)", "'x y'", "'y x'", "V.x", "from collections import namedtuple\nP = namedtuple('P', 'x y')"),
    Kind("array", "array('i', [1, 2])", "[1, 2]", "[1, 3]", setup="from array import array"),
    Kind("type of an array", "array('i', [1, 2])", "'i'", "'l'", setup="from array import array"),
    Kind("value that holds itself", "box()", "1", "2", "V[0]", "def box():\n    found = [1]\n    found.append(found)\n    return found"),
]

SUBCLASSES: Final = [
    Kind(f"subclass of {base}, {what}", f"{make}", old, new, probe, f"{imports}class Own({base}):\n    def read(self): return 'one'\n")
    for base, make, old_value, new_value, imports in [
        ("str", "Own('a')", "'a'", "'b'", ""),
        ("int", "Own(5)", "5", "6", ""),
        ("float", "Own(0.5)", "0.5", "0.6", ""),
        ("bytes", "Own(b'a')", "b'a'", "b'b'", ""),
        ("list", "Own([1, 5])", "5", "6", ""),
        ("dict", "Own({'a': 5})", "5", "6", ""),
        ("set", "Own({1, 5})", "5", "6", ""),
        ("tuple", "Own((1, 5))", "5", "6", ""),
        ("datetime.date", "Own(2024, 1, 1)", "2024", "2025", "import datetime\n"),
        ("decimal.Decimal", "Own('1.5')", "1.5", "1.6", "import decimal\n"),
        ("collections.deque", "Own([1, 5])", "5", "6", "import collections\n"),
        ("bytearray", "Own(b'a')", "b'a'", "b'b'", ""),
        ("ValueError", "Own('bad')", "bad", "worse", ""),
        ("pathlib.PurePosixPath", "Own('a/b')", "a/b", "a/c", "import pathlib\n"),
        ("array.array", "Own('i', [5])", "[5]", "[6]", "import array\n"),
        ("collections.OrderedDict", "Own(a=5)", "5", "6", "import collections\n"),
    ]
    for what, old, new, probe in [("value", old_value, new_value, "str(V)"), ("method", "'one'", "'two'", "V.read()")]
]
ATTRIBUTES: Final = [
    Kind(f"attribute of a {base}", "made()", "'north'", "'south'", "V.side",
         f"import datetime\nclass Own({base}): pass\ndef made():\n    own = Own({given})\n    own.side = 'north'\n    return own")
    for base, given in [("str", "'a'"), ("int", "5"), ("list", "[1]"), ("dict", "a=1"), ("set", "[1]"), ("datetime.date", "2024, 1, 1")]
]  # fmt: skip

CALLABLES: Final = [
    Kind("sub of a pattern", "re.compile('[0-9]').sub", "[0-9]", "[a-z]", "V('', 'a1b2')", "import re"),
    Kind("get of a dict", "{'a': 1}.get", "1", "2", "V('a')"),
    Kind("join of a str", "', '.join", "', '", "'; '", "V(['a', 'b'])"),
    Kind("format of a str", "'{:>4}'.format", ">4", "<4", "V(1)"),
    Kind("__getitem__ of a list", "[1, 2].__getitem__", "2", "3", "V(1)"),
    Kind("__contains__ of a set", "{1, 2}.__contains__", "2}", "3}", "V(2)"),
    Kind("itemgetter", "itemgetter('a')", "'a'", "'b'", "V({'a': 1, 'b': 2})", "from operator import itemgetter"),
    Kind("attrgetter", "attrgetter('real')", "real", "imag", "V(1+2j)", "from operator import attrgetter"),
    Kind("methodcaller", "methodcaller('split', 'a')", "'a'", "'b'", "V('xaybz')", "from operator import methodcaller"),
    Kind("partial of a builtin", "partial(int, base=2)", "base=2", "base=8", "V('10')", "from functools import partial"),
    Kind("partial of a partial", "partial(partial(f, 1), 2)", "1)", "3)", "V()", "from functools import partial\ndef f(a, b): return a, b"),
    Kind(
        "order of partial arguments", "partial(f, 1, 2)", "1, 2", "2, 1", "V()", "from functools import partial\ndef f(a, b): return a, b"
    ),
    Kind("cached function", "lru_cache(f)", "return 1", "return 2", "V()", "from functools import lru_cache\ndef f(): return 1"),
    Kind("function in a partial", "partial(f)", "return 1", "return 2", "V()", "from functools import partial\ndef f(): return 1"),
    Kind(
        "cmp_to_key",
        "cmp_to_key(f)",
        "a - b",
        "b - a",
        "sorted([1, 3, 2], key=V)",
        "from functools import cmp_to_key\ndef f(a, b): return a - b",
    ),
    Kind(
        "bound method",
        "Holder(1).get",
        "Holder(1)",
        "Holder(2)",
        "V()",
        "class Holder:\n    def __init__(self, x): self.x = x\n    def get(self): return self.x",
    ),
    Kind(
        "class method", "Holder.get", "x = 1", "x = 2", "V()", "class Holder:\n    x = 1\n    @classmethod\n    def get(cls): return cls.x"
    ),
    Kind(
        "callable instance",
        "Holder(1)",
        "Holder(1)",
        "Holder(2)",
        "V()",
        "class Holder:\n    def __init__(self, x): self.x = x\n    def __call__(self): return self.x",
    ),
    Kind("lambda", "lambda x: x + 1", "+ 1", "+ 2", "V(1)"),
    Kind(
        "composed by a closure",
        "compose(f, g)",
        "return 2",
        "return 3",
        "V()",
        "def f(): return 1\ndef g(): return 2\ndef compose(*fs): return lambda: [h() for h in fs]",
    ),
    Kind(
        "single dispatch",
        "show",
        "'int'",
        "'INT'",
        "V(1)",
        "from functools import singledispatch\n@singledispatch\ndef show(x): return 'any'\n@show.register(int)\ndef _(x): return 'int'",
    ),
]

LIBRARY: Final = [
    Kind("date", "date(2024, 1, 2)", "2024", "2025", setup="from datetime import date"),
    Kind("fold of a time", "datetime(2024, 1, 2, fold=0)", "fold=0", "fold=1", setup="from datetime import datetime"),
    Kind(
        "zone of a time",
        "datetime(2024, 1, 2, tzinfo=timezone(timedelta(hours=1)))",
        "hours=1",
        "hours=2",
        setup="from datetime import datetime, timedelta, timezone",
    ),
    Kind(
        "zone of the project",
        "datetime(2024, 1, 2, tzinfo=Zone())",
        "hours=1",
        "hours=2",
        "V.isoformat()",
        "from datetime import datetime, timedelta, tzinfo\nclass Zone(tzinfo):\n    def utcoffset(self, at): return timedelta(hours=1)",
    ),
    Kind("timedelta", "timedelta(seconds=5)", "5", "6", setup="from datetime import timedelta"),
    Kind("ZoneInfo", "ZoneInfo('UTC')", "UTC", "Etc/GMT+1", "V.key", "from zoneinfo import ZoneInfo", may_be_told=True),
    Kind("Decimal", "Decimal('1.50')", "1.50", "1.5", setup="from decimal import Decimal"),
    Kind("decimal context", "Context(prec=5)", "prec=5", "prec=6", "V.divide(1, 3)", "from decimal import Context"),
    Kind("Fraction", "Fraction(1, 3)", "3", "4", setup="from fractions import Fraction"),
    Kind("UUID", "UUID(int=5)", "5", "6", setup="from uuid import UUID"),
    Kind("pattern", "re.compile('a+')", "a+", "a*", "V.sub('-', 'baab')", "import re"),
    Kind("flags of a pattern", "re.compile('a', re.I)", "re.I", "re.S", "V.sub('-', 'A')", "import re"),
    Kind("struct", "struct.Struct('<i')", "<i", ">i", "V.pack(1)", "import struct"),
    Kind("path", "Path('a/b')", "a/b", "a/c", "str(V)", "from pathlib import Path"),
    Kind(
        "path of another system",
        "PureWindowsPath('a/b')",
        "PureWindowsPath('a",
        "PurePosixPath('a",
        "repr(V)",
        "from pathlib import PurePosixPath, PureWindowsPath",
    ),
    Kind("address", "ip_address('10.0.0.1')", "0.1'", "0.2'", setup="from ipaddress import ip_address"),
    Kind("template", "Template('$a!')", "!", "?", "V.substitute(a=1)", "from string import Template"),
    Kind("enum of the library", "HTTPStatus.OK", "OK", "NOT_FOUND", "V.value", "from http import HTTPStatus"),
    Kind("text wrapper", "TextWrapper(width=5)", "width=5", "width=9", "V.wrap('aaa bbb ccc')", "from textwrap import TextWrapper"),
    Kind("JSON encoder", "JSONEncoder(indent=1)", "indent=1", "indent=2", "V.encode([1])", "from json import JSONEncoder"),
    Kind("URL", "urlparse('http://a/b')", "a/b", "a/c", "V.geturl()", "from urllib.parse import urlparse"),
    Kind("normal distribution", "NormalDist(0, 1)", "0, 1", "0, 2", setup="from statistics import NormalDist"),
    Kind("generator of random numbers", "Random(1)", "1", "2", "V.random()", "from random import Random", may_be_told=True),
    Kind("counter", "count(1)", "1", "2", "next(V)", "from itertools import count", may_be_told=True),
    Kind("text file in memory", "StringIO('a')", "'a'", "'b'", "V.getvalue()", "from io import StringIO", may_be_told=True),
    Kind("generator", "(x for x in [1, 2])", "2]", "3]", "list(V)", may_be_told=True),
    Kind("iterator", "iter([1, 2])", "2]", "3]", "list(V)", may_be_told=True),
    Kind("hash", "sha256(b'a')", "b'a'", "b'b'", "V.hexdigest()", "from hashlib import sha256", may_be_told=True),
    Kind(
        "element",
        "fromstring('<a b=\"1\"/>')",
        '"1"',
        '"2"',
        "V.get('b')",
        "from xml.etree.ElementTree import fromstring",
        may_be_told=True,
    ),
    Kind("C integer", "c_int(1)", "1", "2", "V.value", "from ctypes import c_int", may_be_told=True),
    Kind("context variable", "ContextVar('v', default=1)", "default=1", "default=2", "V.get()", "from contextvars import ContextVar"),
    Kind(
        "context variable that was set",
        "made()",
        "set(1)",
        "set(2)",
        "V.get()",
        "from contextvars import ContextVar\ndef made():\n    v = ContextVar('v', default=0)\n    v.set(1)\n    return v",
    ),
    Kind("exception", "ValueError('bad')", "bad", "worse", "str(V)"),
    Kind("logger", "logging.getLogger('a')", "'a'", "'b'", "V.name", "import logging", may_be_told=True),
    Kind("code", "compile('1', 'c', 'eval')", "'1'", "'2'", "eval(V)", may_be_told=True),
]

TYPING: Final = [
    Kind("Literal", "Literal['a', 'b']", "'b'", "'c'", "get_args(V)", "from typing import Literal, get_args"),
    Kind("Annotated", "Annotated[int, 'm']", "'m'", "'km'", "V.__metadata__", "from typing import Annotated"),
    Kind("union", "int | str", "str", "bytes", "[t.__name__ for t in get_args(V)]", "from typing import get_args"),
    Kind("Optional", "Optional[int]", "int]", "str]", "[t.__name__ for t in get_args(V)]", "from typing import Optional, get_args"),
    Kind("alias", "list[int]", "int]", "str]", "V.__args__[0].__name__"),
    Kind("NewType", "NewType('N', int)", "int)", "str)", "V.__supertype__.__name__", "from typing import NewType"),
    Kind("TypeVar", "TypeVar('T', bound=int)", "=int", "=str", "V.__bound__.__name__", "from typing import TypeVar"),
    Kind("TypedDict", "TypedDict('D', {'a': int})", "'a'", "'b'", "sorted(V.__annotations__)", "from typing import TypedDict"),
    Kind(
        "class in a Literal",
        "Annotated[int, Unit('m')]",
        "Unit('m')",
        "Unit('km')",
        "V.__metadata__[0].name",
        "from typing import Annotated\nclass Unit:\n    def __init__(self, name): self.name = name",
    ),
]

NUMPY: Final = [
    Kind("array of numpy", "np.array([1, 2])", "2]", "3]", "V.tolist()", "import numpy as np"),
    Kind("type of an array of numpy", "np.array([1, 2], 'i4')", "i4", "i8", "V.dtype.str", "import numpy as np"),
    Kind(
        "names of fields",
        "np.array([(1., 2.)], dtype=[('lat', 'f8'), ('lon', 'f8')])",
        "('lat', 'f8'), ('lon', 'f8')",
        "('lon', 'f8'), ('lat', 'f8')",
        "V['lat'].tolist()",
        "import numpy as np",
    ),
    Kind("mask", "np.ma.array([1, 2], mask=[0, 1])", "[0, 1]", "[1, 0]", "V.tolist()", "import numpy as np"),
    Kind("fill value", "np.ma.array([1, 2], mask=[0, 1], fill_value=7)", "=7", "=8", "V.filled().tolist()", "import numpy as np"),
    Kind("matrix", "np.array([[1, 2]])", "np.array", "np.asmatrix", "(V * 2).__class__.__name__", "import numpy as np"),
    Kind("number of numpy", "np.float32(0.5)", "float32", "float64", "type(V).__name__", "import numpy as np"),
    Kind("date of numpy", "np.datetime64('2024-01-01')", "01-01", "01-02", "str(V)", "import numpy as np"),
    Kind("unit of a date of numpy", "np.array(['2024-01-01'], 'M8[D]')", "[D]", "[s]", "V.astype('i8').tolist()", "import numpy as np"),
    Kind("dtype", "np.dtype([('a', 'i4')])", "'a'", "'b'", "V.names", "import numpy as np"),
    Kind("array of objects", "np.array([{'a': 1}, None])", "1}", "2}", "V.tolist()", "import numpy as np", may_be_told=True),
    Kind("array of strings", "np.array(['a', 'b'])", "'b'", "'c'", "V.tolist()", "import numpy as np"),
    Kind("vectorize", "np.vectorize(f)", "x + 1", "x + 2", "V([1, 2]).tolist()", "import numpy as np\ndef f(x): return x + 1"),
    Kind(
        "frompyfunc", "np.frompyfunc(f, 1, 1)", "x + 1", "x + 2", "V([1, 2]).tolist()", "import numpy as np\ndef f(x): return x + 1", True
    ),
    Kind("poly1d", "np.poly1d([1, 2])", "2]", "3]", "V(1)", "import numpy as np"),
    Kind("generator of numpy", "np.random.default_rng(1)", "(1)", "(2)", "V.random()", "import numpy as np", may_be_told=True),
    Kind(
        "subclass of an array",
        "np.array([1.]).view(Own)",
        "'m'",
        "'km'",
        "V.unit()",
        "import numpy as np\nclass Own(np.ndarray):\n    def unit(self): return 'm'",
    ),
    Kind("ufunc", "np.add", "add", "multiply", "V(2, 3)", "import numpy as np"),
]

KINDS: Final = [*PLAIN, *CONTAINERS, *SUBCLASSES, *ATTRIBUTES, *CALLABLES, *LIBRARY, *TYPING, *NUMPY]

CARRIERS: Final[Mapping[str, Mapping[str, str]]] = {
    "global": {"prog": "{setup}\nV = {value}\ndef stage():\n    return str({probe})\n"},
    "list": {"prog": "{setup}\nBOX = [0, {value}]\ndef stage():\n    V = BOX[1]\n    return str({probe})\n"},
    "dict": {"prog": "{setup}\nBOX = {{'k': {{'v': {value}}}}}\ndef stage():\n    V = BOX['k']['v']\n    return str({probe})\n"},
    "default": {"prog": "{setup}\ndef stage(V={value}):\n    return str({probe})\n"},
    "keyword default": {"prog": "{setup}\ndef stage(*, V={value}):\n    return str({probe})\n"},
    "closure": {"prog": "{setup}\ndef make(V):\n    def stage():\n        return str({probe})\n    return stage\nstage = make({value})\n"},
    "class attribute": {"prog": "{setup}\nclass Box:\n    V = {value}\ndef stage():\n    V = vars(Box)['V']\n    return str({probe})\n"},
    "instance": {
        "prog": "{setup}\nclass Box:\n    def __init__(self, v): self.v = v\n"
        "BOX = Box({value})\ndef stage():\n    V = BOX.v\n    return str({probe})\n"
    },
    "slots": {
        "prog": "{setup}\nclass Box:\n    __slots__ = ('v',)\nBOX = Box()\nBOX.v = {value}\n"
        "def stage():\n    V = BOX.v\n    return str({probe})\n"
    },
    "dataclass": {
        "prog": "{setup}\nimport dataclasses\n@dataclasses.dataclass\nclass Box:\n    v: object\n"
        "BOX = Box({value})\ndef stage():\n    V = BOX.v\n    return str({probe})\n"
    },
    "partial": {"prog": "{setup}\nimport functools\ndef use(V):\n    return str({probe})\nstage = functools.partial(use, {value})\n"},
    "method": {
        "prog": "{setup}\nclass Box:\n    def __init__(self, v): self.v = v\n    def get(self): return self.v\n"
        "GET = Box({value}).get\ndef stage():\n    V = GET()\n    return str({probe})\n"
    },
    "module": {
        "prog": "import values\ndef stage():\n    return values.show(values.V)\n",
        "values": "{setup}\nV = {value}\ndef show(V): return str({probe})\n",
    },
    "import inside": {
        "prog": "def stage():\n    from values import V, show\n    return show(V)\n",
        "values": "{setup}\nV = {value}\ndef show(V): return str({probe})\n",
    },
    "star import": {"prog": "from values import *\ndef stage():\n    return str({probe})\n", "values": "{setup}\nV = {value}\n"},
    "registry": {
        "prog": "{setup}\nREGISTRY = {{}}\ndef register(name, v): REGISTRY[name] = v\nregister('v', {value})\n"
        "def stage():\n    V = REGISTRY['v']\n    return str({probe})\n"
    },
    "completed by the stage": {
        "prog": "{setup}\nBOX = {{'v': {value}}}\ndef stage():\n    BOX['more'] = 1\n    V = BOX['v']\n    return str({probe})\n"
    },
    "tuple in a namespace": {
        "prog": "{setup}\nimport types\nBOX = types.SimpleNamespace(inner=(0, {value}))\n"
        "def stage():\n    V = BOX.inner[1]\n    return str({probe})\n"
    },
}
"""Where a program may hold a value: texts of modules by name."""


def carried(kind: Kind, carrier: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return a program whose stage reads a value of this kind there, and the same after the edit."""
    before = f"{kind.setup}\0{kind.expression}"
    # The last one: what is edited mostly stands in the expression, and at the end of it.
    head, found, tail = before.rpartition(kind.old)
    if not found:
        raise AssertionError(f"{kind.name}: {kind.old!r} is not in it")

    def written(text: str) -> dict[str, str]:
        setup, _, value = text.partition("\0")
        return {f"{name}.py": lines.format(setup=setup, value=value, probe=kind.probe) for name, lines in CARRIERS[carrier].items()}

    return written(before), written(head + kind.new + tail)
