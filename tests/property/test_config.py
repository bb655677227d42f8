"""Configs: canonical bytes stand for exactly one value, and what JSON cannot hold is refused with its path."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Union

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pylightnix.config import (
    Config,
    RConfig,
    assert_rref_deps,
    assert_valid_config,
    canonical_bytes,
    canonical_deps,
    cfgdeps,
    cfgdict,
    cfghash,
    cfgserialize,
    cfgsp,
    mkconfig,
    readable_text,
    resolve,
)
from pylightnix.errors import InvalidConfig
from pylightnix.refs import mkdref, mkrref, selfref
from pylightnix.types import DRef

Step = Union[str, int]

HEX = "0123456789abcdef"
hashparts = st.text(HEX, min_size=32, max_size=32)
drefs = st.builds(mkdref, hashparts, st.text("ab-_", min_size=1, max_size=5))
rrefs = st.builds(mkrref, hashparts, hashparts, st.text("ab-_", min_size=1, max_size=5))

scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**50), 10**50), st.floats(), st.text(), st.text('ab\n"\\é☃😀\x00\u2028')
)
keys = st.text(max_size=5) | st.sampled_from(["a", "b", "name2", "é", "\U0001f600", "\uffff", "0", ""])


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12)


def config_dicts(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(keys.filter(lambda key: key != "name"), nested(leaves), max_size=5)


def typed(value: Any) -> Any:
    """Return something that is equal for two values exactly when they are the same JSON value.

    In Python 1 == 1.0 == True and -0.0 == 0.0, which are four values here, while NaN is one and equals itself.
    """
    if isinstance(value, dict):
        return ("dict", frozenset((key, typed(item)) for key, item in value.items()))
    if isinstance(value, list):
        return ("list", tuple(map(typed, value)))
    return ("str", str(value)) if isinstance(value, str) else (type(value).__name__, repr(value))


def reordered(value: Any, data: st.DataObject) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key], data) for key in data.draw(st.permutations(list(value)))}
    return [reordered(item, data) for item in value] if isinstance(value, list) else value


# --- canonical bytes --------------------------------------------------------------------------------

_DREF = f"dref:{'0' * 32}-a"
near_drefs = st.lists(st.sampled_from([_DREF, "dref:", '"', "\\", ":", ",", "[", "a"]), max_size=6).map("".join)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(near_drefs | drefs, nested(near_drefs | drefs)))
@example({"a": [_DREF, f'"{_DREF}', f'{_DREF}"', f'\\"{_DREF}"', f"{_DREF}\n", f"{_DREF}é", f"{_DREF}-b"]})
@example({_DREF: {_DREF: _DREF.replace("-a", "-c")}})
def test_the_canonical_form_gives_the_dependencies(value: dict[str, Any]) -> None:
    config = mkconfig(value)
    assert canonical_deps(canonical_bytes(config.val)) == tuple(sorted(cfgdeps(config)))


@settings(deadline=None, max_examples=50)
@given(config_dicts(scalars))
def test_canonical_bytes_parse_to_the_value(value: dict[str, Any]) -> None:
    config = mkconfig(value)
    data = canonical_bytes(config.val)
    assert typed(config.val) == typed(value)
    assert typed(json.loads(data)) == typed(value)
    assert canonical_bytes(json.loads(data)) == data, "canonical is a fixed point"
    assert readable_text(config.val) == json.dumps(config.val, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    assert cfgserialize(config).encode() == data
    assert cfghash(config) == hashlib.sha256(data).hexdigest()
    assert assert_valid_config(config) is config


@settings(deadline=None, max_examples=50)
@given(config_dicts(scalars), st.data())
def test_the_order_of_keys_does_not_matter(value: dict[str, Any], data: st.DataObject) -> None:
    assert canonical_bytes(mkconfig(reordered(value, data)).val) == canonical_bytes(mkconfig(value).val)


alike = st.sampled_from([0, 0.0, -0.0, False, 1, 1.0, True, "1", "", None, "null", float("nan"), "NaN", float("inf"), 10**20, 1e20])


@settings(deadline=None, max_examples=50)
@given(nested(alike), nested(alike))
@example(1, True)
@example(1, 1.0)
@example(0.0, -0.0)
@example(float("nan"), float("nan"))
@example([1, [2]], [[1], 2])
@example({"a": [], "b": 1}, {"b": 1, "a": []})
@example({"a": None}, {})
@example("é", "e\u0301")
def test_equal_bytes_mean_equal_values_and_the_reverse(one: Any, other: Any) -> None:
    assert (canonical_bytes({"v": one}) == canonical_bytes({"v": other})) == (typed(one) == typed(other))


@settings(deadline=None, max_examples=50)
@given(config_dicts(scalars))
def test_a_config_shares_nothing_with_what_it_was_made_of(value: dict[str, Any]) -> None:
    config = mkconfig(value)
    before = typed(config.val)
    exported = cfgdict(config)
    spoil(value)
    spoil(exported)
    assert typed(config.val) == before


def spoil(value: Any) -> None:
    if isinstance(value, dict):
        for item in value.values():
            spoil(item)
        value["spoilt"] = True
    elif isinstance(value, list):
        for item in value:
            spoil(item)
        value.append("spoilt")


# --- what is refused --------------------------------------------------------------------------------


class Scalar:
    """Looks like a number of numpy."""

    dtype = "int64"

    def item(self) -> int:
        return 1


class Odd:
    def __repr__(self) -> str:
        return "Odd()"


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: (1, 2), "give a list: list(x)"),
    (tuple, "give a list"),
    (lambda: {1}, "give a sorted list: sorted(x)"),
    (frozenset, "give a sorted list"),
    (lambda: b"bytes", "give text: x.hex()"),
    (bytearray, "give text: x.hex()"),
    (lambda: "\ud800", "has a lone surrogate at position 0"),
    (lambda: "ok \udfff", "has a lone surrogate at position 3"),
    (lambda: "\ud83d\ude00", "has a lone surrogate"),
    (lambda: 10**4300, "too many digits"),
    (lambda: -(10**5000), "too many digits"),
    (Scalar, "give a Python number: x.item()"),
    (Odd, "Odd() is an Odd, which JSON cannot hold"),
    (lambda: 1j, "is a complex"),
    (lambda: Decimal(1), "is a Decimal"),
    (lambda: range(3), "is a range"),
    (lambda: Config({}), "give its dict: cfgdict(x)"),
    (lambda: int, "which JSON cannot hold"),
]
BAD_KEYS: list[tuple[Any, str]] = [
    (1, "the key 1 is an int; keys are text"),
    (None, "the key None is a NoneType"),
    (True, "the key True is a bool"),
    (1.5, "the key 1.5 is a float"),
    (b"k", "the key b'k' is a bytes"),
    (("a",), "the key ('a',) is a tuple"),
]

paths = st.lists(st.one_of(st.sampled_from(["a", "deep", "with space", "é", "1", "", "'quoted\""]), st.integers(0, 3)), max_size=8)


def around(inner: Any, path: list[Step], surroundings: Any) -> dict[str, Any]:
    """Return a config with `inner` at `path`, below the key ``top``, and other values beside it."""
    for step in reversed(path):
        if isinstance(step, int):
            inner = [*[surroundings] * step, inner, surroundings]
        else:
            inner = {"other": surroundings, step: inner}
    return {"first": surroundings, "top": inner}


def spelt(path: list[Step]) -> str:
    return "config.top" + "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" if step.isidentifier() else f"[{step!r}]" for step in path
    )


@settings(deadline=None, max_examples=120)
@given(st.sampled_from(BAD), paths, nested(scalars))
def test_what_json_cannot_hold_is_refused_with_its_path(bad: tuple[Callable[[], Any], str], path: list[Step], beside: Any) -> None:
    make, message = bad
    with pytest.raises(InvalidConfig) as caught:
        mkconfig(around(make(), path, beside))
    assert caught.value.where == spelt(path)
    assert f"invalid config: {spelt(path)}: " in str(caught.value)
    assert message in str(caught.value)
    assert isinstance(caught.value, AssertionError)
    str(caught.value).encode()


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(BAD_KEYS), paths, nested(scalars))
def test_keys_that_are_no_text_are_refused_with_their_path(bad: tuple[Any, str], path: list[Step], beside: Any) -> None:
    key, message = bad
    with pytest.raises(InvalidConfig) as caught:
        mkconfig(around({"fine": 1, key: 2}, path, beside))
    assert caught.value.where == spelt(path)
    assert message in str(caught.value)


@settings(deadline=None, max_examples=50)
@given(paths, nested(scalars))
def test_keys_with_a_lone_surrogate_are_refused_with_their_path(path: list[Step], beside: Any) -> None:
    with pytest.raises(InvalidConfig) as caught:
        mkconfig(around({"a\udc80": 2}, path, beside))
    assert caught.value.where == f"{spelt(path)} (a key)"
    assert r"'a\udc80' has a lone surrogate at position 1" in str(caught.value)
    str(caught.value).encode()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 3), st.booleans())
def test_what_holds_itself_is_refused(width: int, as_dict: bool) -> None:
    loop: Any = {} if as_dict else []
    if as_dict:
        loop.update({str(i): loop for i in range(width)})
    else:
        loop.extend([loop] * width)
    with pytest.raises(InvalidConfig, match="nested deeper than 100 levels; flatten it, or check for a list that holds itself"):
        mkconfig({"a": loop})


# --- what stands in a config ------------------------------------------------------------------------

texts = st.one_of(
    drefs,
    rrefs,
    drefs.map(lambda dref: f" {dref}"),
    drefs.map(lambda dref: f"{dref}\n"),
    st.sampled_from(["dref:", "dref:x", selfref, "file", ""]),
    scalars,
)


def leaves_of(value: Any) -> list[Any]:
    if isinstance(value, (dict, list)):
        return [leaf for item in (value.values() if isinstance(value, dict) else value) for leaf in leaves_of(item)]
    return [value]


@settings(deadline=None, max_examples=50)
@given(config_dicts(texts | st.builds(lambda d: [d, "file"], drefs)), st.lists(drefs, max_size=2))
def test_dependencies_are_the_drefs_that_stand_as_values(value: dict[str, Any], as_keys: list[DRef]) -> None:
    value |= dict.fromkeys(as_keys, 1)
    config = mkconfig(value)
    expected = {leaf for leaf in leaves_of(value) if isinstance(leaf, DRef)}
    assert cfgdeps(config) == expected
    assert all(type(dep) is DRef for dep in cfgdeps(config))


@settings(deadline=None, max_examples=50)
@given(config_dicts(drefs | scalars), rrefs, paths)
def test_an_rref_is_refused_with_its_path(value: dict[str, Any], rref: str, path: list[Step]) -> None:
    assert_rref_deps(mkconfig(value))
    with pytest.raises(InvalidConfig) as caught:
        assert_rref_deps(mkconfig(around(rref, path, value)))
    assert caught.value.where == spelt(path)
    assert f"{rref} is a realization; depend on its derivation: rref2dref(…)" in str(caught.value)


self_paths = st.lists(st.sampled_from(["a", "b", "", "dir"]), max_size=3).map(lambda items: [selfref, *items])


@settings(deadline=None, max_examples=50)
@given(config_dicts(texts | self_paths), drefs)
def test_self_paths_are_found_and_resolved(value: dict[str, Any], dref: DRef) -> None:
    config = mkconfig(value)
    before = copy.deepcopy(config.val)
    assert cfgsp(config) == list(walk_self_paths(value))
    resolved = resolve(config, dref)
    assert type(resolved) is RConfig
    assert cfgsp(resolved) == []
    assert typed(resolved.val) == typed(replace_self(value, dref))
    assert cfgdeps(resolved) == cfgdeps(config) | ({dref} if cfgsp(config) else set())
    assert typed(config.val) == typed(before), "the config itself is left alone"


def is_self_path(value: Any) -> bool:
    return isinstance(value, list) and value[:1] == [selfref] and all(isinstance(item, str) for item in value)


def walk_self_paths(value: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += [(str(key), item)] if is_self_path(item) else walk_self_paths(item)
    return found


def replace_self(value: Any, dref: DRef) -> Any:
    if is_self_path(value):
        return [str(dref), *value[1:]]
    if isinstance(value, dict):
        return {key: replace_self(item, dref) for key, item in value.items()}
    return [replace_self(item, dref) for item in value] if isinstance(value, list) else value
