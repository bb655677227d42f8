"""References taken apart and put together again are the same; other texts are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pylightnix.errors import InvalidName, InvalidReference
from pylightnix.refs import (
    assert_valid_dref,
    assert_valid_refpath,
    assert_valid_rref,
    isdref,
    isrefpath,
    isrref,
    isselfpath,
    mkdref,
    mkname,
    mkrefpath,
    mkrref,
    rref2dref,
    selfref,
    trimhash,
    undref,
    unrref,
)
from pylightnix.types import DRef, Hash, HashPart, Name, RRef

hashparts = st.text("0123456789abcdef", min_size=32, max_size=32).map(HashPart)
names = st.text("abcxyzABCXYZ0189_-", min_size=1, max_size=211).map(Name)
drefs = st.builds(mkdref, hashparts, names)
rrefs = st.builds(mkrref, hashparts, hashparts, names)


@given(hashparts, names)
def test_a_dref_has_one_spelling(dhash: HashPart, name: Name) -> None:
    dref = mkdref(dhash, name)
    assert dref == f"dref:{dhash}-{name}"
    assert type(dref) is DRef
    assert undref(dref) == (dhash, name)
    assert undref(str(dref)) == (dhash, name)
    assert [type(part) for part in undref(dref)] == [HashPart, Name]
    assert isdref(dref)
    assert not isrref(dref)
    assert_valid_dref(dref)


@given(hashparts, hashparts, names)
def test_an_rref_has_one_spelling(rhash: HashPart, dhash: HashPart, name: Name) -> None:
    rref = mkrref(rhash, dhash, name)
    assert rref == f"rref:{rhash}-{dhash}-{name}"
    assert type(rref) is RRef
    assert unrref(rref) == (rhash, dhash, name)
    assert [type(part) for part in unrref(str(rref))] == [HashPart, HashPart, Name]
    assert rref2dref(rref) == mkdref(dhash, name)
    assert type(rref2dref(rref)) is DRef
    assert isrref(rref)
    assert not isdref(rref)
    assert_valid_rref(rref)


@given(st.text("0123456789abcdef", min_size=64, max_size=64))
def test_trimhash_keeps_the_first_half(digits: str) -> None:
    assert trimhash(Hash(digits)) == digits[:32]
    assert mkdref(trimhash(digits), "n") == f"dref:{digits[:32]}-n"


@given(st.one_of(st.text(), st.text("dref:-0a\n", max_size=60), drefs, rrefs, drefs.map(lambda d: d + "\n"), rrefs.map(str.upper)))
@example("dref:" + "0" * 32 + "-")
@example("dref:" + "0" * 32)
@example("dref:" + "0" * 31 + "-name")
@example("dref:" + "A" * 32 + "-name")
@example("dref:" + "٠" * 32 + "-name")
@example(" dref:" + "0" * 32 + "-name")
@example("dref:" + "0" * 32 + "-naïve")
@example("dref:" + "0" * 32 + "-" + "n" * 212)
@example("rref:" + "0" * 32 + "-" + "0" * 31 + "-name")
def test_what_is_a_reference_is_told_by_its_spelling(text: str) -> None:
    is_dref = re.fullmatch(r"dref:[0-9a-f]{32}-[a-zA-Z0-9_-]{1,211}", text, re.ASCII) is not None
    is_rref = re.fullmatch(r"rref:[0-9a-f]{32}-[0-9a-f]{32}-[a-zA-Z0-9_-]{1,211}", text, re.ASCII) is not None
    assert (isdref(text), isrref(text)) == (is_dref, is_rref)
    for holds, take_apart in ((is_dref, undref), (is_rref, unrref)):
        if holds:
            assert "".join(take_apart(text)[-1:]) == text.split("-", 1 if take_apart is undref else 2)[-1]
        else:
            with pytest.raises(InvalidReference) as caught:
                take_apart(text)
            assert repr(text) in str(caught.value)


@given(st.text() | st.text("aZ0_-\n", max_size=5))
@example("")
@example("\n")
@example("name\n")
@example("na\x00me")
@example("n" * 211)
@example("n" * 212)
@example("имя")
@example("a/b")
@example("..")
def test_a_name_is_made_of_its_characters_or_refused(text: str) -> None:
    if re.fullmatch(r"[a-zA-Z0-9_-]{1,211}", text, re.ASCII):
        assert mkname(text) == text
    else:
        with pytest.raises(InvalidName):
            mkname(text)


junk: st.SearchStrategy[Any] = st.one_of(st.none(), st.integers(), st.binary(), st.lists(st.integers()), st.floats())


@given(junk)
def test_what_is_no_text_is_no_reference(value: Any) -> None:
    assert not isdref(value)
    assert not isrref(value)
    assert not isrefpath(value)
    assert not isselfpath(value)
    for check in (assert_valid_dref, assert_valid_rref, assert_valid_refpath):
        with pytest.raises(InvalidReference):
            check(value)


@settings(deadline=None)
@given(drefs, st.lists(st.text()))
def test_refpaths(dref: DRef, items: list[str]) -> None:
    path = mkrefpath(dref, items)
    assert path == [dref, *items]
    assert isrefpath(path) == (not any(isdref(item) for item in items))
    assert not isselfpath(path)
    assert isselfpath([selfref, *items])
    assert not isrefpath([selfref, *items])
    assert not isrefpath([dref, *items, dref])
    assert not isrefpath([dref, *items, 1])
    assert not isrefpath(tuple(path))
    assert not isselfpath([selfref, *items, None])
