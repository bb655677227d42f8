"""What the matchers made here pick, as pure functions of the candidates, and that they are values."""

from __future__ import annotations

import itertools
import math
import pickle
import warnings
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, Optional

import numpy as np
import pytest
from tests.loops import for_each

from pylightnix import _ranking
from pylightnix.config import mkconfig
from pylightnix.either import mkdrvE
from pylightnix.errors import AmbiguousMatch, InvalidMatch, InvalidReference, Misuse
from pylightnix.matchers import (
    BuiltinMatcher,
    check_matcher,
    exact,
    match,
    match_all,
    match_exact,
    match_latest,
    match_only,
    match_some,
    output_matcher,
    texthash,
)
from pylightnix.planner.messages import Candidate
from pylightnix.refs import mkrref
from pylightnix.registry import Registry, mkdrv
from pylightnix.storage import mkSS
from pylightnix.types import Matcher, Output, RRef, StorageSettings

S = mkSS("/nowhere")  # neither picks nor keys of one's own look at the store
R1, R2, R3, R4 = RREFS = [mkrref(digit * 32, "d" * 32, "name") for digit in "1234"]
# R2 and R3 were started at the same time.
STARTS = {R1: 40.0, R2: 30.0, R3: 30.0, R4: 10.0}


def offered(*rrefs: RRef) -> list[Candidate]:
    return [Candidate(rref, STARTS[rref]) for rref in rrefs]


def pick(matcher: Matcher, *rrefs: RRef) -> Optional[list[RRef]]:
    """Let `matcher` pick from the candidates in every order; the choice must not depend on it."""
    assert isinstance(matcher, BuiltinMatcher)
    answers = [matcher.pick(offered(*some)) for some in itertools.permutations(rrefs)]
    chosen = {None if answer is None else tuple(sorted(answer)) for answer in answers}
    assert len(chosen) == 1
    [choice] = chosen
    return None if choice is None else list(choice)


# --- picks ------------------------------------------------------------------------------------------


def test_match_only() -> None:
    assert pick(match_only()) is None
    assert pick(match_only(), R2) == [R2]
    with pytest.raises(
        AmbiguousMatch, match=rf"match_only\(\) on dref:{'d' * 32}-name: expected at most one realization, found 2"
    ) as caught:
        pick(match_only(), R1, R2)
    assert isinstance(caught.value, AssertionError)
    assert caught.value.rrefs == [R1, R2]


def test_match_latest() -> None:
    assert pick(match_latest()) is None
    assert pick(match_latest(), *RREFS) == [R1]
    assert pick(match_latest(), R2, R4) == [R2]
    assert pick(match_latest(3), *RREFS) == [R1, R2, R3]
    assert pick(match_latest(4), *RREFS) == RREFS


def test_match_latest_breaks_ties_by_the_text() -> None:
    assert pick(match_latest(), R2, R3) == [R3]
    assert pick(match_latest(2), *RREFS) == [R1, R3]


def test_fewer_than_wanted_demands_a_build() -> None:
    for matcher in (match_latest(3), match_some(3)):
        assert pick(matcher) is None
        assert pick(matcher, R1, R2) is None
        assert pick(matcher, R1, R2, R3) == [R1, R2, R3]


def test_wanting_none_never_matches() -> None:
    for matcher in (match_latest(0), match_some(0)):
        assert pick(matcher) is None
        assert pick(matcher, *RREFS) is None
    assert match_some(0, key=texthash())(S, RREFS) is None


@pytest.mark.parametrize("n", [-1, True, 1.0, "1", None])
def test_a_number_of_realizations_is_a_number(n: Any) -> None:
    with pytest.raises(Misuse, match="match_latest expects how many realizations to take, 0 or more"):
        match_latest(n)
    with pytest.raises(Misuse, match="match_some expects"):
        match_some(n)
    with pytest.raises(Misuse, match="match_some expects"):
        match_some(n, key=texthash())


def test_match_some_takes_the_greatest_texts() -> None:
    assert pick(match_some(), *RREFS) == [R4]
    assert pick(match_some(2), *RREFS) == [R3, R4]


def test_match_exact() -> None:
    assert pick(match_exact([R3, R1]), *RREFS) == [R1, R3]
    assert pick(match_exact([R1, R1]), R1, R2) == [R1]
    assert pick(match_exact([R3, R1]), R1, R2) is None
    assert pick(match_exact([])) is None
    assert pick(match_exact([]), R1) is None
    for wrong in ("text", None, ["x"]):
        with pytest.raises(InvalidReference):
            match_exact([R1, wrong])  # type: ignore[list-item]  # what is refused


def test_match_all() -> None:
    assert pick(match_all) is None
    assert pick(match_all, *RREFS) == RREFS


# --- matchers with a key of one's own ---------------------------------------------------------------


SCORED = [R1, R2, R3]


def score(S: StorageSettings, rref: RRef) -> Optional[int]:
    return {R1: 5, R2: 7, R3: 7}.get(rref)


def test_match_some_with_a_key_takes_the_best() -> None:
    assert match_some(1, key=score)(S, SCORED) == [R3], "ties go to the greater text"
    assert match_some(3, key=score)(S, SCORED) == [R3, R2, R1]
    assert match_some(4, key=score)(S, SCORED) is None
    assert match_some(1, key=score)(S, []) is None
    assert match_some(1, key=lambda S, rref: 0)(S, [R1, R2]) == [R2]


@for_each("rrefs", [[R4], RREFS, [R1, R4], [R4, R3]])
def test_match_some_refuses_a_key_of_none_and_match_leaves_it_out(rrefs: list[RRef]) -> None:
    with pytest.raises(InvalidMatch, match=f"has the key None for {R4}.*match\\(key, trim\\) leaves out"):
        match_some(1, key=score)(S, rrefs)
    assert match(score, lambda found: found)(S, rrefs) == sorted(set(rrefs) - {R4}, key=lambda rref: (score(S, rref), rref), reverse=True)


def test_d22_keys_order_the_same_whatever_the_order_of_candidates() -> None:
    answers = [match_some(2, key=score)(S, list(rrefs)) for rrefs in itertools.permutations(SCORED)]
    assert answers == [[R3, R2]] * 6


def test_keys_may_be_texts() -> None:
    assert match_some(2, key=texthash())(S, RREFS) == [R4, R3]
    assert match_some(1, key=lambda S, rref: "é" if rref == R1 else "z")(S, RREFS) == [R1]


def test_match_trims_and_goes_on() -> None:
    assert match(score, lambda rrefs: rrefs)(S, RREFS) == [R3, R2, R1]
    assert match(score, lambda rrefs: None)(S, RREFS) is None
    assert match(score, lambda rrefs: [])(S, RREFS) == [], "without another matcher the answer stands"
    asked: list[list[RRef]] = []

    def last(S: StorageSettings, rrefs: list[RRef]) -> list[RRef]:
        asked.append(rrefs)
        return rrefs[-1:]

    assert match(score, lambda rrefs: rrefs[:2], last)(S, RREFS) == [R2]
    assert match(score, lambda rrefs: [], last)(S, RREFS) is None
    assert match(score, lambda rrefs: None, last)(S, RREFS) is None
    assert asked == [[R3, R2]]


def test_the_key_exact() -> None:
    key = exact([R2])
    assert [key(S, rref) for rref in RREFS] == [None, 1, None, None]
    assert match(key, lambda rrefs: rrefs)(S, RREFS) == [R2]


def test_output_matcher() -> None:
    def first(S: StorageSettings, output: Output[RRef]) -> Optional[Output[RRef]]:
        return Output(output.val[:1]) if output.val else None

    assert output_matcher(first)(S, RREFS) == [R1]
    assert output_matcher(first)(S, []) is None


# --- matchers are values ----------------------------------------------------------------------------

DISTINCT: list[Matcher] = [
    match_only(),
    match_all,
    *(match_latest(n) for n in range(3)),
    *(match_some(n) for n in range(3)),
    match_exact([]),
    match_exact([R1]),
    match_exact([R1, R2]),
    match_some(1, key=score),
]
AGAIN: list[Matcher] = [
    match_only(),
    match_all,
    *(match_latest(n) for n in range(3)),
    *(match_some(n) for n in range(3)),
    match_exact([]),
    match_exact([R1, R1]),
    match_exact([R2, R1]),
    match_some(1, key=score),
]


def test_equal_exactly_when_made_of_the_same() -> None:
    for i, one in enumerate(DISTINCT):
        for j, other in enumerate(AGAIN):
            assert (one == other) == (i == j)
    assert len({*DISTINCT, *AGAIN}) == len(DISTINCT)


@pytest.mark.parametrize("matcher", DISTINCT, ids=lambda matcher: type(matcher).__name__)
def test_they_survive_pickling(matcher: Matcher) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(matcher, protocol)) == matcher


def test_equal_matchers_pickle_to_equal_bytes() -> None:
    for one, other in zip(DISTINCT, AGAIN, strict=True):
        assert pickle.dumps(one) == pickle.dumps(other)


def test_they_say_what_they_are() -> None:
    assert repr(match_latest(2)) == "_MatchLatest(n=2)"


@pytest.mark.parametrize(
    "maker", [match_only, match_latest, match_some, match_exact, match, output_matcher], ids=lambda maker: maker.__name__
)
def test_makers_are_told_from_matchers(maker: Any) -> None:
    """Uncalled, they would fail later, and about the number of their arguments."""
    r = Registry(S)
    for give in (
        lambda: check_matcher(maker, "it"),
        lambda: mkdrv(mkconfig({}), maker, lambda *args: [], r),
        lambda: mkdrvE(mkconfig({}), maker, lambda *args: [], r),
    ):
        with pytest.raises(Misuse, match=rf"expects a matcher, found {maker.__name__}, which makes matchers; write {maker.__name__}\("):
            give()
    assert r.builders == {}


def test_what_is_no_matcher() -> None:
    for given in (None, 3, [R1]):
        with pytest.raises(Misuse, match="mkdrv expects a matcher, which can be called"):
            mkdrv(mkconfig({}), given, lambda *args: [], Registry(S))  # type: ignore[arg-type]
    with pytest.raises(Misuse, match=r"mkdrv expects a realizer, which can be called as \(S, dref, context, rarg\), found 3"):
        mkdrv(mkconfig({}), match_all, 3, Registry(S))  # type: ignore[arg-type]


# --- what keys may be -------------------------------------------------------------------------------

NAN = float("nan")


def by(*values: Any) -> Any:
    """Return a key that says these values of R1, R2, …; each is used once, so that no warning was told before."""
    keys = dict(zip(RREFS, values, strict=False))
    return lambda S, rref: keys[rref]


@pytest.fixture
def untold() -> Iterator[None]:
    told, before = _ranking._told, set(_ranking._told)
    told.clear()
    yield
    told.clear()
    told.update(before)


@pytest.mark.parametrize(
    "values",
    [
        (1.0, NAN, 3.0, -1.0),
        (-1e308, NAN, math.inf, -math.inf),
        (Decimal("0.1"), Decimal("NaN"), Decimal("Infinity"), 0.05),
        (np.float32(1.5), np.float32("nan"), np.float64(2.5), np.int64(-7)),
        (Fraction(1, 3), NAN, Decimal("0.34"), 0.3),
        (2**53, NAN, 2**53 + 1, float(2**53) - 1),
        (1, np.longdouble("nan"), True + 1, False),
        (np.array(0.5), np.array(NAN), np.array(0.75), np.bool_(False)),
        (np.longdouble(1), Decimal("sNaN"), np.nextafter(np.longdouble(1), np.longdouble(2)), 0.9),
    ],
    ids=str,
)
def test_nan_loses_to_everything_and_all_else_compares_exactly(values: tuple[Any, ...], untold: None) -> None:
    for n, best in ((1, [R3]), (2, [R3, R1]), (3, [R3, R1, R4]), (4, [R3, R1, R4, R2])):
        for rrefs in itertools.permutations(RREFS):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert match_some(n, key=by(*values))(S, list(rrefs)) == best


def test_nan_is_told_once_with_its_realization_and_the_line_of_the_key(untold: None) -> None:
    key = by(1, NAN, NAN, 2)
    with pytest.warns(RuntimeWarning) as told:
        assert [match_some(1, key=key)(S, RREFS) for _ in range(3)] == [[R4]] * 3
    assert [str(warning.message).split()[3] for warning in told] == [R2, R3]
    assert {warning.filename for warning in told} == {__file__}


@pytest.mark.parametrize(
    "values", [(0.0, -0.0, 0, False), (1, True, 1.0, Decimal("1.0")), ("a", "a", np.str_("a"), "a"), (NAN, NAN, NAN, NAN)], ids=str
)
def test_equal_keys_go_by_the_reference(values: tuple[Any, ...], untold: None) -> None:
    for rrefs in itertools.permutations(RREFS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert match_some(4, key=by(*values))(S, list(rrefs)) == [R4, R3, R2, R1]


@pytest.mark.parametrize(
    "value",
    [[1.0], {"score": 1}, (1, 2), b"1", 1j, object(), {1}, np.array([1.0]), np.array([1.0, 2.0]), np.complex64(1), np.datetime64("2020")],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_key_is_an_error_that_names_realization_and_stage(value: Any) -> None:
    for rrefs in (RREFS, [R2]):
        with pytest.raises(InvalidMatch) as caught:
            match_some(1, key=by(1.0, value, None, 2.0))(S, rrefs)
        told = str(caught.value)
        assert "expected all keys to be numbers, or all to be texts" in told
        assert R2 in told
        assert f"the matcher of dref:{'d' * 32}-name has the key" in told
        assert isinstance(caught.value, AssertionError)
        assert str(pickle.loads(pickle.dumps(caught.value))) == told


@pytest.mark.parametrize("values", [("a", 1.0, "b", 2), (NAN, "nan", "x", "y"), (True, "", "y", "z")], ids=str)
def test_texts_and_numbers_do_not_mix(values: tuple[Any, ...], untold: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InvalidMatch, match=f"has the key .* for {R1} and .* for {R2}|for {R2} and .* for {R1}"):
            match_some(1, key=by(*values))(S, RREFS)
