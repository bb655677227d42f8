"""Configs as people write them."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import pathlib
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest

from pylightnix.autostage import autostage
from pylightnix.config import (
    Config,
    RConfig,
    assert_rref_deps,
    assert_valid_config,
    canonical_bytes,
    cfgcattrs,
    cfgdeps,
    cfgdict,
    cfghash,
    cfgname,
    cfgserialize,
    cfgsp,
    mkconfig,
    readable_text,
    resolve,
)
from pylightnix.errors import InvalidConfig, InvalidName
from pylightnix.lens import mklens
from pylightnix.refs import mkdref, mkrref, selfref
from pylightnix.registry import Registry
from pylightnix.stages import realized
from pylightnix.types import DRef

D1, D2 = mkdref("1" * 32, "one"), mkdref("2" * 32, "two")
R1 = mkrref("a" * 32, "1" * 32, "one")


# --- canonical form ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "canonical"),
    [
        ({}, "{}"),
        ({"b": 1, "a": [1.0, True, None]}, '{"a":[1.0,true,null],"b":1}'),
        ({"a": float("nan"), "b": [float("inf"), float("-inf")]}, '{"a":NaN,"b":[Infinity,-Infinity]}'),
        ({"é": "☃ \u2028\x7f"}, '{"é":"☃ \u2028\x7f"}'),
        ({"a": '"\\/\n\t\x00'}, r'{"a":"\"\\/\n\t\u0000"}'),
        ({"x": -0.0, "y": 1e22, "z": 0.1}, '{"x":-0.0,"y":1e+22,"z":0.1}'),
        ({"n": 2**70}, '{"n":1180591620717411303424}'),
        ({"\U0001f600": 1, "\uffff": 2, "Z": 3, "a": 4}, '{"Z":3,"a":4,"\uffff":2,"\U0001f600":1}'),
    ],
)
def test_canonical_form(value: dict[str, Any], canonical: str) -> None:
    config = mkconfig(value)
    assert canonical_bytes(config.val) == canonical.encode()
    assert cfgserialize(config) == canonical


def test_one_one_point_zero_and_true_are_three_configs() -> None:
    assert len({cfghash(mkconfig({"a": value})) for value in (1, 1.0, True, "1", [1])}) == 5


def test_nan_is_one_value() -> None:
    assert cfghash(mkconfig({"a": float("nan")})) == cfghash(mkconfig({"a": -float("nan")}))


def test_the_readable_form_is_sorted_and_ends_in_a_newline() -> None:
    assert readable_text({"b": [1], "a": "é"}) == '{\n  "a": "é",\n  "b": [\n    1\n  ]\n}\n'


def test_the_greatest_integer_that_python_will_read_back() -> None:
    config = mkconfig({"a": 10**4299})
    assert json.loads(canonical_bytes(config.val)) == {"a": 10**4299}
    with pytest.raises(InvalidConfig, match=r"config\.a: the integer has too many digits; give it as text"):
        mkconfig({"a": 10**4300})


def test_nesting_up_to_a_hundred() -> None:
    def nest(depth: int) -> list[Any]:
        value: list[Any] = []
        for _ in range(depth - 1):
            value = [value]
        return value

    config = mkconfig({"a": nest(100)})
    assert json.loads(canonical_bytes(config.val)) == config.val == resolve(config, D1).val
    for depth in (101, 2_000, 50_000):
        with pytest.raises(InvalidConfig, match="nested deeper than 100 levels"):
            mkconfig({"a": nest(depth)})


# --- what is taken and what is not ------------------------------------------------------------------


class Colour(enum.StrEnum):
    red = "r"


class Level(enum.IntEnum):
    high = 3


def test_subclasses_become_plain_values() -> None:
    class Text(str):
        __slots__ = ()

    config = mkconfig({"a": D1, Text("b"): Colour.red, "c": Level.high, "d": OrderedDict(x=1)})
    assert config.val == {"a": D1, "b": "r", "c": 3, "d": {"x": 1}}
    assert [type(value) for value in config.val.values()] == [str, str, int, dict]
    assert [type(key) for key in config.val] == [str] * 4


def test_numbers_of_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    config = mkconfig({"a": numpy.float64(0.5)})
    assert type(config.val["a"]) is float
    for value in (numpy.int64(1), numpy.float32(1), numpy.bool_(True)):
        with pytest.raises(InvalidConfig, match=r"give a Python number: x\.item\(\)"):
            mkconfig({"a": [value]})
    with pytest.raises(InvalidConfig, match=r"config\.a: .* is a ndarray, which JSON cannot hold; give a list: x\.tolist\(\)"):
        mkconfig({"a": numpy.zeros(2)})


@autostage
def some_stage() -> None: ...


@dataclass
class Sizes:
    width: int


class Scale(enum.Enum):
    large = 3


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (some_stage, "call it, and give the DRef that it returns: x(r=r)"),
        (realized(some_stage), "if it is a stage, call it, and give the DRef that it returns: x(r=r); if not, the config says what"),
        (lambda x: x, "if it is a stage, call it"),
        (len, "if it is a stage, call it"),
        (Sizes, "give its name"),
        (Sizes(1), "a config holds dicts"),
        (Scale.large, "give what it stands for: x.value"),
        (Scale, "give its name"),
        (datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "give text: x.isoformat()"),
        (datetime.date(2026, 1, 2), "give text: x.isoformat()"),
        (datetime.time(1, 2), "give text: x.isoformat()"),
        (datetime.timedelta(1), "give a number: x.total_seconds()"),
        (pathlib.Path("/"), "give text: str(x); for a file whose contents count, depend on source(x)"),
        (pathlib.PureWindowsPath("/"), "give text: str(x)"),
        (decimal.Decimal(1), "give text: str(x)"),
        (uuid.UUID(int=1), "give text: str(x)"),
        (1j, "give a list: [x.real, x.imag]"),
        (range(3), "give a list: list(x)"),
        (Config({}), "give its dict: cfgdict(x)"),
        (mklens({"a": 1}).a, "give what it points at: x.val"),
        (object(), "a config holds dicts"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_what_to_write_instead(value: Any, advice: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        mkconfig({"items": [value]})
    assert caught.value.where == "config.items[0]"
    assert caught.value.advice.startswith(advice)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({1: 2}, "the key 1 is an int; keys are text"),
        ({"a": object()}, "is an object, which"),
        ([], "is a list"),
        (1, "is an int; a config"),
    ],
)
def test_types_have_the_right_article(value: Any, told: str) -> None:
    with pytest.raises(InvalidConfig, match=told):
        mkconfig(value)


def test_d68_the_path_to_what_is_wrong() -> None:
    with pytest.raises(InvalidConfig) as caught:
        mkconfig({"layers": [{"size": 1}, {"shape of it": (28, 28)}]})
    assert str(caught.value) == (
        "invalid config: config.layers[1]['shape of it']: (28, 28) is a tuple, which JSON cannot hold; give a list: list(x)"
    )
    assert (caught.value.where, caught.value.code) == ("config.layers[1]['shape of it']", "invalid-config")


def test_a_large_value_is_not_shown_whole() -> None:
    with pytest.raises(InvalidConfig) as caught:
        mkconfig({"a": tuple(range(100_000))})
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("value", [None, [], "text", 1, [("a", 1)]])
def test_a_config_is_a_dict(value: Any) -> None:
    with pytest.raises(InvalidConfig, match="a config is a dict"):
        mkconfig(value)


def test_the_registry_of_locals_is_dropped() -> None:
    assert mkconfig({"a": 1, "r": Registry()}).val == {"a": 1}
    assert mkconfig({"a": 1, "r": 2}).val == {"a": 1, "r": 2}
    with pytest.raises(InvalidConfig, match=r"config\.reg: .* is a Registry, .*; leave it out, or name it 'r'"):
        mkconfig({"reg": Registry()})
    with pytest.raises(InvalidConfig, match="leave it out"):
        mkconfig({"a": {"r": Registry()}})


def test_which_registry_is_dropped() -> None:
    """Those of this package and of classes derived from it, not what happens to have the same name."""

    class Recording(Registry):
        pass

    assert mkconfig({"a": 1, "r": Recording()}).val == {"a": 1}
    with pytest.raises(InvalidConfig, match=r"config\.r: .* is a Registry"):
        mkconfig({"r": type("Registry", (), {})()})
    with pytest.raises(InvalidConfig, match="is a Recording, which JSON cannot hold; leave it out, or name it 'r'"):
        mkconfig({"reg": Recording()})


# --- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"), [("model", "model"), (5, "5"), (-5, "-5"), ("n" * 211, "n" * 211), (None, "None"), (True, "True")]
)
def test_a_name_is_taken_as_text(name: Any, text: str) -> None:
    config = mkconfig({"name": name})
    assert cfgname(config) == text
    assert config.val == {"name": name}, "the config keeps what was given"


def test_without_a_name() -> None:
    assert cfgname(mkconfig({})) == "unnamed"


@pytest.mark.parametrize("name", ["", "name\n", "\n", "n" * 212, "имя", "a b", "a/b", "..", 1.5, [], {"a": 1}, 10**250])
def test_a_bad_name_is_refused(name: Any) -> None:
    with pytest.raises(InvalidName):
        mkconfig({"name": name})
    with pytest.raises(InvalidName):
        assert_valid_config(Config({"name": name}))


# --- Config -----------------------------------------------------------------------------------------


def test_config_copies_what_it_is_given() -> None:
    inner = [1]
    config = Config({"a": inner})
    inner.append(2)
    assert config.val == {"a": [1]}
    assert repr(config) == "Config({'a': [1]})"
    assert repr(RConfig({})) == "RConfig({})"
    assert config == Config({"a": [1]}) != RConfig({"a": [1]})


def test_cfgdict_and_cfgcattrs_are_copies() -> None:
    config = mkconfig({"a": [1], "b": "x"})
    cfgdict(config)["a"].append(2)
    attributes = cfgcattrs(config)
    attributes.a.append(3)
    assert (attributes.a, attributes.b) == ([1, 3], "x")
    assert config.val == {"a": [1], "b": "x"}


def test_assert_valid_config() -> None:
    config = mkconfig({"a": 1})
    assert assert_valid_config(config) is config
    with pytest.raises(InvalidConfig, match=r"config\.a"):
        assert_valid_config(Config({"a": {1}}))
    wrong: Any = {"a": 1}
    with pytest.raises(InvalidConfig, match="make one with mkconfig"):
        assert_valid_config(wrong)


# --- references in configs --------------------------------------------------------------------------


def test_dependencies() -> None:
    config = mkconfig({"a": D1, "b": [[D2, "file"], {"c": D1}], D2: "a key does not count", "d": f"see {D2}", "e": f"{D2}\n"})
    assert cfgdeps(config) == {D1, D2}
    assert all(type(dep) is DRef for dep in cfgdeps(config))
    assert cfgdeps(mkconfig({D2: f"x{D2}"})) == set()


def test_an_rref_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"config\.a\[1\]: rref:.* is a realization; depend on its derivation"):
        assert_rref_deps(mkconfig({"a": [D1, R1]}))
    assert_rref_deps(mkconfig({R1: "a key does not count", "b": f"{R1}\n"}))


def test_self_paths() -> None:
    config = mkconfig(
        {
            "out": [selfref, "out.bin"],
            "many": [[selfref, "a"], [selfref, "dir", "b"], "text"],
            "deep": {"er": {"in": [selfref]}},
            "not": [selfref, 1],
            "nor": ["x", selfref],
        }
    )
    assert cfgsp(config) == [
        ("out", [selfref, "out.bin"]),
        ("0", [selfref, "a"]),
        ("1", [selfref, "dir", "b"]),
        ("in", [selfref]),
    ]
    assert resolve(config, D1).val == {
        "out": [D1, "out.bin"],
        "many": [[D1, "a"], [D1, "dir", "b"], "text"],
        "deep": {"er": {"in": [D1]}},
        "not": [selfref, 1],
        "nor": ["x", selfref],
    }
