"""Matchers: which of the realizations of a derivation count, or None to demand a build.

Those made here are values (they compare, print and travel by name and arguments) and decide from the
facts of `Candidate` alone. They can be called like any user's matcher, ``matcher(S, rrefs)``, too; then
the facts come from the store's index.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Final, Optional

from pylightnix.errors import AmbiguousMatch, Misuse, shown
from pylightnix.planner.messages import Candidate
from pylightnix.refs import assert_valid_rref, rref2dref, unrref
from pylightnix.types import Key, Matcher, MatcherO, Output, RRef, StorageSettings

__all__ = [
    "BuiltinMatcher",
    "check_matcher",
    "exact",
    "latest",
    "match",
    "match_all",
    "match_exact",
    "match_latest",
    "match_only",
    "match_some",
    "output_matcher",
    "texthash",
]


class BuiltinMatcher:
    """A matcher that needs no user code."""

    @abstractmethod
    def pick(self, candidates: Sequence[Candidate]) -> Optional[list[RRef]]:
        """Choose among `candidates`, or return None to demand a build."""

    def __call__(self, S: StorageSettings, rrefs: list[RRef]) -> Optional[list[RRef]]:
        from pylightnix.query import realization_starts

        starts = realization_starts(rrefs, S)
        return self.pick([Candidate(RRef(rref), starts.get(rref, 0.0)) for rref in sorted(rrefs)])


def _text(candidate: Candidate) -> str:
    return str(candidate.rref)


@dataclass(frozen=True)
class _MatchOnly(BuiltinMatcher):
    def pick(self, candidates: Sequence[Candidate]) -> Optional[list[RRef]]:
        if len(candidates) > 1:
            rrefs = [candidate.rref for candidate in candidates]
            raise AmbiguousMatch(f"match_only() on {rref2dref(rrefs[0])}", rrefs, "at most one realization")
        return [candidates[0].rref] if candidates else None


@dataclass(frozen=True)
class _MatchLatest(BuiltinMatcher):
    n: int

    def pick(self, candidates: Sequence[Candidate]) -> Optional[list[RRef]]:
        if self.n == 0 or len(candidates) < self.n:
            return None
        if len(candidates) == self.n:
            return [candidate.rref for candidate in candidates]
        # By start, then by text, so that ties are broken the same way on every run.
        ranked = sorted(candidates, key=lambda c: (c.started, _text(c)), reverse=True)
        return [candidate.rref for candidate in ranked[: self.n]]


@dataclass(frozen=True)
class _MatchSome(BuiltinMatcher):
    n: int

    def pick(self, candidates: Sequence[Candidate]) -> Optional[list[RRef]]:
        if self.n == 0 or len(candidates) < self.n:
            return None
        return [c.rref for c in sorted(candidates, key=_text, reverse=True)[: self.n]]


@dataclass(frozen=True)
class _MatchExact(BuiltinMatcher):
    rrefs: tuple[RRef, ...]

    def pick(self, candidates: Sequence[Candidate]) -> Optional[list[RRef]]:
        there = {candidate.rref for candidate in candidates}
        return list(self.rrefs) if self.rrefs and there.issuperset(self.rrefs) else None


@dataclass(frozen=True)
class _MatchAll(BuiltinMatcher):
    def pick(self, candidates: Sequence[Candidate]) -> Optional[list[RRef]]:
        return [candidate.rref for candidate in candidates] or None


def _count(n: int, what: str) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise Misuse(f"{what} expects how many realizations to take, 0 or more, found {n!r}")
    return n


def match_only() -> Matcher:
    """Return a matcher for derivations with one realization at most: none -> build, more -> `AmbiguousMatch`."""
    return _MatchOnly()


def match_latest(n: int = 1) -> Matcher:
    """Return a matcher that takes the `n` realizations built last, and demands a build if there are fewer."""
    return _MatchLatest(_count(n, "match_latest"))


def match_some(n: int = 1, key: Optional[Key] = None) -> Matcher:
    """Return a matcher that takes the `n` best by `key`, and demands a build if there are fewer.

    Args:
        n: how many; 0 never matches.
        key: ``(S, rref) -> number or text``; the largest are best. A number that is not one (NaN, of a run that
            diverged) loses to all others, with a warning. Without a key the text of the hash decides. To leave out
            those whose key is None, use `match`.

    Raises (the matcher): InvalidMatch, if a key is neither a number nor a text, or some are numbers and others texts.
    """
    _count(n, "match_some")
    if key is None:
        return _MatchSome(n)
    return _KeyMatcher(key, _Top(n), None, may_be_none=False)


def match_exact(rrefs: list[RRef]) -> Matcher:
    """Return a matcher for exactly these realizations; an empty list never matches."""
    for rref in rrefs:
        assert_valid_rref(rref)
    return _MatchExact(tuple(sorted(set(rrefs))))


match_all: Matcher = _MatchAll()
"""A matcher (not a maker of one) that takes everything, and demands a build when there is nothing."""


@dataclass(frozen=True)
class _Top:
    n: int

    def __call__(self, rrefs: list[RRef]) -> Optional[list[RRef]]:
        return rrefs[: self.n] if 0 < self.n <= len(rrefs) else None


@dataclass(frozen=True)
class _KeyMatcher:
    key: Key
    trim: Callable[[list[RRef]], Optional[list[RRef]]]
    mnext: Optional[Matcher]
    may_be_none: bool = True

    def __call__(self, S: StorageSettings, rrefs: list[RRef]) -> Optional[list[RRef]]:
        from pylightnix._ranking import ranked

        trimmed = self.trim(ranked(self.key, S, rrefs, may_be_none=self.may_be_none))
        if self.mnext is None:
            return trimmed
        return self.mnext(S, trimmed) if trimmed else None


def match(key: Key, trim: Callable[[list[RRef]], Optional[list[RRef]]], mnext: Optional[Matcher] = None) -> Matcher:
    """Return a matcher made of parts.

    Realizations whose key is None are dropped, the rest are sorted by key, largest first, then `trim`
    picks from the list or returns None, then `mnext` (if given) decides on what is left. A key that is
    not a number (NaN) comes last, with a warning.

    Raises (the matcher): InvalidMatch, if a key is neither a number nor a text, or some are numbers and others texts.
    """
    return _KeyMatcher(key, trim, mnext)


# --- keys -------------------------------------------------------------------------------------------


def texthash() -> Key:
    """Return a key: the hash part of the realization, as text."""
    return lambda S, rref: str(unrref(rref)[0])


def latest() -> Key:
    """Return a key: when the latest build of the realization started, seconds since the epoch."""
    from pylightnix.query import realization_starts

    return lambda S, rref: realization_starts([rref], S).get(rref, 0.0)


def exact(expected: list[RRef]) -> Key:
    """Return a key: 1 for the realizations in `expected`, None for others."""
    return lambda S, rref: 1 if rref in expected else None


def output_matcher(r: MatcherO) -> Matcher:
    """Return the matcher of one that works on `Output` in place of lists."""

    def matcher(S: StorageSettings, rrefs: list[RRef]) -> Optional[list[RRef]]:
        answer = r(S, Output(rrefs))
        return None if answer is None else answer.val

    return matcher


# --- checks -----------------------------------------------------------------------------------------

_MAKERS: Final[dict[object, str]] = {
    match_only: "match_only()",
    match_latest: "match_latest()",
    match_some: "match_some()",
    match_exact: "match_exact([…])",
    match: "match(key, trim)",
    output_matcher: "output_matcher(f)",
}


def check_matcher(matcher: object, what: str) -> None:
    """Raise `Misuse` unless `matcher` can be called as one. Makers of matchers, passed uncalled, are told how to be called.

    Args:
        matcher: what was given for one.
        what: what it was given to, as the error calls it.
    """
    if isinstance(matcher, FunctionType) and matcher in _MAKERS:
        raise Misuse(f"{what} expects a matcher, found {matcher.__name__}, which makes matchers; write {_MAKERS[matcher]}")
    if not callable(matcher):
        raise Misuse(f"{what} expects a matcher, which can be called as (S, rrefs), found {shown(matcher)}; for example match_latest()")
