"""References as people spell them, and what errors say when they are misspelt."""

from __future__ import annotations

from typing import Any

import pytest

from pylightnix.errors import InvalidName, InvalidReference
from pylightnix.refs import (
    assert_valid_hash,
    assert_valid_hashpart,
    assert_valid_name,
    assert_valid_refpath,
    isrefpath,
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

PART = "0123456789abcdef" * 2
OTHER = "f" * 32


def test_made_and_taken_apart() -> None:
    assert mkdref(PART, "train-model_2") == f"dref:{PART}-train-model_2"
    assert undref(f"dref:{PART}-train-model_2") == (PART, "train-model_2")
    assert mkrref(OTHER, PART, "m") == f"rref:{OTHER}-{PART}-m"
    assert unrref(f"rref:{OTHER}-{PART}-m") == (OTHER, PART, "m")
    assert rref2dref(f"rref:{OTHER}-{PART}-m") == f"dref:{PART}-m"
    assert trimhash(PART + OTHER) == PART


def test_a_name_may_look_like_hashes_and_dashes() -> None:
    name = f"-{OTHER}-x-"
    assert undref(mkdref(PART, name)) == (PART, name)
    assert unrref(mkrref(OTHER, PART, name)) == (OTHER, PART, name)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "it has 0 characters"),
        ("n" * 212, "it has 212 characters"),
        ("name\n", r"it has the characters '\n'"),
        ("a b/c", "it has the characters ' ' '/'"),
        ("имя", "it has the characters"),
        ("n\u0308", "it has the characters"),
        (5, "it is an int, not text"),
        (None, "it is a NoneType, not text"),
        (b"name", "it is a bytes, not text"),
    ],
)
def test_a_bad_name_is_refused_saying_why(name: Any, problem: str) -> None:
    for check in (mkname, assert_valid_name, lambda name: mkdref(PART, name), lambda name: mkrref(OTHER, PART, name)):
        with pytest.raises(InvalidName) as caught:
            check(name)
        assert problem in str(caught.value)
        assert len(str(caught.value)) < 250
        assert isinstance(caught.value, AssertionError)


def test_the_longest_name_fits_a_folder_name() -> None:
    dref = mkdref(PART, mkname("n" * 211))
    assert len(dref.removeprefix("dref:")) == 244


@pytest.mark.parametrize("part", ["", PART[1:], PART + "0", PART.upper(), PART[:-1] + "g", PART[:-1] + "\n", PART + "\n", 5, None])
def test_a_bad_hash_part_is_refused(part: Any) -> None:
    for check in (assert_valid_hashpart, lambda part: mkdref(part, "n"), lambda part: mkrref(PART, part, "n"), assert_valid_hash, trimhash):
        with pytest.raises(InvalidReference, match="lower-case hexadecimal digits"):
            check(part)


def test_d11_a_bad_reference_is_refused_saying_what_was_expected() -> None:
    with pytest.raises(InvalidReference, match=r"expected a derivation reference dref:<32 hex digits>-<name>, found 'rref:"):
        undref(mkrref(OTHER, PART, "n"))
    with pytest.raises(InvalidReference, match=r"expected a realization reference .*, found 'dref:"):
        unrref(mkdref(PART, "n"))
    with pytest.raises(InvalidReference):
        undref(f"dref:{PART}-name\n")


def test_refpaths_and_self_paths() -> None:
    dref = mkdref(PART, "n")
    assert mkrefpath(dref) == [dref]
    assert mkrefpath(dref, ["a", "b"]) == [dref, "a", "b"]
    assert isrefpath([dref])
    assert not isrefpath([])
    assert isselfpath([selfref])
    assert not isselfpath([])
    assert not isselfpath(["a", selfref])
    assert_valid_refpath([dref, "file"])
    with pytest.raises(InvalidReference, match="expected a refpath"):
        assert_valid_refpath([dref, dref])
    with pytest.raises(InvalidReference):
        mkrefpath("nothing", ["a"])
