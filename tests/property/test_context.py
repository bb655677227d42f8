"""Contexts: stored forms read back, keys that stand for content alone, and a lazy dict that nobody can tell from a plain one."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylightnix.context import (
    LazyContext,
    assert_valid_context,
    context_add,
    context_deref,
    context_eq,
    context_file_text,
    context_key,
    context_serialize,
    mkcontext,
    parse_context,
    realization_hash,
)
from pylightnix.refs import mkdref, mkrref, undref
from pylightnix.types import Context, DRef, RRef

Direct = dict[DRef, list[RRef]]

POOL = [mkdref(f"{i * 7919:032x}", f"n{i}") for i in range(8)]
STRANGER = mkdref("f" * 32, "stranger")


def rrefs_of(dref: DRef) -> list[RRef]:
    return [mkrref(f"{i * 104729:032x}", *undref(dref)) for i in range(5)]


@st.composite
def contexts(draw: st.DrawFn, min_size: int = 0) -> Direct:
    """Draw a context with its keys in any order and its lists sorted."""
    drefs = draw(st.lists(st.sampled_from(POOL), unique=True, min_size=min_size, max_size=6))
    return {dref: sorted(draw(st.sets(st.sampled_from(rrefs_of(dref)), min_size=1, max_size=3))) for dref in drefs}


def shuffled(context: Direct, data: st.DataObject) -> Direct:
    return {dref: data.draw(st.permutations(context[dref])) for dref in data.draw(st.permutations(list(context)))}


# --- stored forms -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(contexts(), contexts(), st.data())
def test_what_is_written_is_read_back(deps: Direct, dynamic: Direct, data: st.DataObject) -> None:
    text = context_file_text(shuffled(deps, data), shuffled(dynamic, data))
    assert text == context_file_text(deps, dynamic)
    assert parse_context(json.loads(text)) == (deps, dynamic)
    for part in parse_context(json.loads(text)):
        assert {type(dref) for dref in part} <= {DRef}
        assert {type(rref) for rrefs in part.values() for rref in rrefs} <= {RRef}
        assert list(part) == sorted(part)
        assert_valid_context({**part})


@settings(deadline=None, max_examples=50)
@given(contexts(), contexts(), st.data())
def test_keys_and_hashes_stand_for_the_content_alone(one: Direct, other: Direct, data: st.DataObject) -> None:
    tree = "0" * 64
    assert context_key(shuffled(one, data)) == context_key(one)
    assert (context_key(one) == context_key(other)) == (one == other)
    canonical = json.dumps(one, sort_keys=True, separators=(",", ":"))
    assert context_key(one) == hashlib.sha256(canonical.encode()).hexdigest()[:32]
    assert realization_hash(tree, shuffled(one, data), shuffled(other, data)) == realization_hash(tree, one, other)
    assert (realization_hash(tree, one, other) == realization_hash(tree, other, one)) == (one == other)
    assert realization_hash("1" * 64, one, other) != realization_hash(tree, one, other)


@settings(deadline=None, max_examples=50)
@given(contexts())
def test_the_key_is_the_hash_of_the_canonical_form(deps: Direct) -> None:
    canonical = json.dumps(deps, sort_keys=True, separators=(",", ":")).encode()
    assert context_key(deps) == hashlib.sha256(canonical).hexdigest()[:32]
    assert context_serialize({**deps}).encode() == canonical


@settings(deadline=None, max_examples=50)
@given(contexts(), st.data())
def test_contexts_are_compared_and_added_to_in_any_order(context: Direct, data: st.DataObject) -> None:
    grown = mkcontext()
    for dref, rrefs in shuffled(context, data).items():
        before = copy.deepcopy(grown)
        larger = context_add(grown, dref, iter(rrefs) if data.draw(st.booleans()) else rrefs)
        assert grown == before, "a new context is returned"
        grown = larger
    assert grown == context
    assert list(grown) == sorted(grown)
    assert context_eq(grown, {**shuffled(context, data)})
    for dref in context:
        assert context_deref(grown, dref) == context[dref]
        assert not context_eq(grown, {**context, dref: None})


# --- the lazy context -------------------------------------------------------------------------------


class Lazy:
    """A lazy context, the plain one it stands for, and how often the former was computed."""

    def __init__(self, transitive: Direct, direct: list[DRef]) -> None:
        self.plain: Context = {dref: list(transitive[dref]) for dref in sorted(transitive)}
        self.direct = direct
        self.computed = 0
        self._transitive = transitive
        self.lazy = LazyContext({dref: transitive[dref] for dref in direct}, self._compute)

    def _compute(self) -> Direct:
        self.computed += 1
        return self._transitive


@st.composite
def lazies(draw: st.DrawFn) -> Callable[[], Lazy]:
    transitive = draw(contexts())
    # What has anything below it has direct dependencies.
    direct = draw(st.lists(st.sampled_from(sorted(transitive)), unique=True, min_size=1)) if transitive else []
    return lambda: Lazy(transitive, direct)


READS: dict[str, Callable[[Context], Any]] = {
    "len": len,
    "bool": bool,
    "iter": list,
    "next": lambda context: next(iter(context), None),
    "sorted": sorted,
    "reversed": lambda context: list(reversed(context)),
    "in": lambda context: [dref in context for dref in [*POOL, STRANGER]],
    "not in": lambda context: [dref not in context for dref in [STRANGER, *POOL]],
    "get": lambda context: [context.get(dref) for dref in [*POOL, STRANGER]],
    "get default": lambda context: [context.get(dref, []) for dref in [STRANGER, *POOL]],
    "getitem": lambda context: [context[dref] for dref in POOL if dref in context],
    "keys": lambda context: list(context.keys()),
    "keys as set": lambda context: context.keys() & {*POOL},
    "values": lambda context: list(context.values()),
    "items": lambda context: list(context.items()),
    "reversed items": lambda context: list(reversed(context.items())),
    "unpacked": lambda context: [*context],
    "==": lambda context: [context == other for other in ({}, {POOL[0]: rrefs_of(POOL[0])[:1]}, {**context}, 5)],
    "!=": lambda context: [context != other for other in ({}, {POOL[0]: rrefs_of(POOL[0])[:1]}, {**context}, 5)],
    "repr": repr,
    "str": str,
    "format": lambda context: f"{context}",
    "copy": lambda context: context.copy(),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "dict": dict,
    "{**}": lambda context: {**context},
    "f(**)": lambda context: dict[Any, Any](**context),
    "update": lambda context: _updated({}, context),
    "|": lambda context: context | {STRANGER: None},
    "reflected |": lambda context: {STRANGER: None} | context,
    "json": json.dumps,
    "json indented": lambda context: json.dumps(context, indent=1, sort_keys=True),
    "pickle": lambda context: pickle.loads(pickle.dumps(context)),
    "old pickle": lambda context: pickle.loads(pickle.dumps(context, protocol=0)),
    "context_serialize": context_serialize,
    "context_eq": lambda context: context_eq(context, {**context}),
    "context_add": lambda context: context_add(context, STRANGER, None),
    "assert_valid_context": assert_valid_context,
}


def _updated(target: Context, context: Context) -> Context:
    target.update(context)
    return target


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@settings(deadline=None, max_examples=12)
@given(make=lazies())
def test_reading_a_lazy_context_is_reading_the_dict_it_stands_for(read: Callable[[Context], Any], make: Callable[[], Lazy]) -> None:
    one = make()
    found, expected = read(one.lazy), read(one.plain)
    assert found == expected
    if isinstance(expected, dict):
        assert type(found) is dict
        assert list(found) == list(expected)
    assert read(one.lazy) == expected, "a second time too"
    assert one.computed <= 1


@settings(deadline=None, max_examples=50)
@given(make=lazies())
def test_two_lazy_contexts_are_equal_however_little_was_read(make: Callable[[], Lazy]) -> None:
    one, other = make(), make()
    assert one.lazy == other.lazy
    assert (make().lazy != make().lazy) is False
    assert make().plain == make().lazy == make().plain
    with pytest.raises(TypeError, match="unhashable"):
        hash(one.lazy)


@settings(deadline=None, max_examples=50)
@given(make=lazies(), data=st.data())
def test_any_sequence_of_reads(make: Callable[[], Lazy], data: st.DataObject) -> None:
    one = make()
    for name in data.draw(st.lists(st.sampled_from(sorted(READS)), max_size=6)):
        assert READS[name](one.lazy) == READS[name](one.plain)
    assert one.computed <= 1


@settings(deadline=None, max_examples=50)
@given(make=lazies())
def test_direct_dependencies_are_answered_without_the_computation(make: Callable[[], Lazy]) -> None:
    one = make()
    for dref in one.direct:
        assert one.lazy[dref] == one.lazy.get(dref) == context_deref(one.lazy, dref) == one.plain[dref]
        assert dref in one.lazy
    assert one.computed == 0
    for dref in set(one.plain) - set(one.direct):
        assert one.lazy[dref] == one.plain[dref]
    assert one.computed == (len(one.plain) > len(one.direct))
    with pytest.raises(KeyError, match=STRANGER):
        one.lazy[STRANGER]
    assert one.computed == 1


@settings(deadline=None, max_examples=50)
@given(make=lazies())
def test_lists_are_the_readers_own(make: Callable[[], Lazy]) -> None:
    one = make()
    for rrefs in one.lazy.values():
        assert rrefs is not None
        rrefs.clear()
    assert make().lazy == one.plain, "what the planner holds is not spoilt"
