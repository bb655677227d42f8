"""Keys of matchers in use: what runs diverge to, what is no key, in this process and in that of a daemon's matchers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from tests.stores import output

from pylightnix import (
    Context,
    DRef,
    InvalidMatch,
    MatcherRefused,
    Path,
    Registry,
    RRef,
    StorageSettings,
    instantiate,
    match,
    match_some,
    mkconfig,
    mkdrv,
    mklens,
    realizeMany,
    selfref,
)

pytestmark = pytest.mark.language

SCORES = ("3.0", "nan", "10.0", "-1.0", "-inf")


def four(r: Registry, key: Any, n: int = 1, data: int = 0, trim: Any = None) -> DRef:
    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        return [output(S, {"score.txt": score + "\n" * data}) for score in SCORES]

    config = mkconfig({"name": "train", "data": data, "score": [selfref, "score.txt"]})
    return mkdrv(config, match(key, trim) if trim else match_some(n, key), realizer, r)


def text(S: StorageSettings, rref: RRef) -> str:
    contents: str = mklens(rref, S=S).score.contents
    return contents.strip()


def score(S: StorageSettings, rref: RRef) -> float:
    return float(text(S, rref))


def chosen(S: StorageSettings, key: Any, **arguments: Any) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(text(S, rref) for rref in realizeMany(instantiate(four, key=key, S=S, **arguments)))


@pytest.mark.parametrize("data", range(3))
def test_the_best_are_the_best_whatever_the_hashes(S: StorageSettings, data: int) -> None:
    assert chosen(S, score, n=1, data=data) == ["10.0"]
    assert chosen(S, score, n=3, data=data) == ["-1.0", "10.0", "3.0"]
    assert chosen(S, score, n=4, data=data) == ["-1.0", "-inf", "10.0", "3.0"]
    assert chosen(S, score, n=5, data=data) == sorted(SCORES)
    assert chosen(S, score, data=data, trim=lambda rrefs: rrefs[1:3]) == ["-1.0", "3.0"]
    assert chosen(S, lambda S, rref: -score(S, rref), n=2, data=data) == ["-1.0", "-inf"], "the least, NaN not among them"


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (lambda S, rref: [score(S, rref)], "has the key ["),
        (lambda S, rref: {"score": 1}, "has the key {'score': 1}"),
        (lambda S, rref: text(S, rref) if "n" in text(S, rref) else score(S, rref), "which cannot be compared"),
        (lambda S, rref: None if text(S, rref) == "3.0" else 1.0, "has the key None"),
    ],
    ids=["list", "dict", "mixed", "none"],
)
def test_what_is_no_key_is_told_with_stage_and_realization(S: StorageSettings, key: Any, told: str) -> None:
    with pytest.raises((InvalidMatch, MatcherRefused)) as caught:
        chosen(S, key)
    assert told in str(caught.value)
    assert "-train" in str(caught.value)
    assert "rref:" in str(caught.value)


def test_nan_is_told_to_who_asked_with_its_realization(S: StorageSettings) -> None:
    with pytest.warns(RuntimeWarning) as told:
        rrefs = realizeMany(instantiate(four, key=score, n=5, data=9, S=S))
    (nan,) = [rref for rref in rrefs if text(S, rref) == "nan"]
    assert [str(warning.message) for warning in told] == [f"the key of {nan} is not a number (NaN); it counts as less than all others"]
    assert [warning.category for warning in told] == [RuntimeWarning]


def test_what_a_matcher_of_ones_own_warns_of_reaches_who_asked(S: StorageSettings) -> None:
    def matcher(S: StorageSettings, rrefs: list[RRef]) -> list[RRef] | None:
        warnings.warn("look closer", FutureWarning, stacklevel=1)
        return rrefs or None

    def stage(r: Registry) -> DRef:
        return mkdrv(mkconfig({"name": "warned"}), matcher, lambda S, dref, context, rarg: [output(S)], r)

    with pytest.warns(FutureWarning, match="^look closer$"):
        realizeMany(instantiate(stage, S=S))
