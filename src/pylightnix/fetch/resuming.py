"""Whether a broken transfer can go on where it stopped. Decides only; the theory is that of RFC 9110, sections 13 and 14.

The bytes at hand are good for a server as long as its validator (a strong ETag, else the date of the last change) is the same. Another
mirror, or a server without validators, is trusted to have the same file if its size is the same and there is a checksum to
find out in the end; whoever does so must be ready to start over when that one does not fit.

Servers lie about ranges. An answer that contradicts itself, or the bytes at hand, is never appended: the file is asked for anew,
without a range.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Optional, Union

__all__ = ["Answered", "Append", "Misled", "Resumable", "StartOver", "Whole", "answered", "range_headers", "source_id"]

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_REFUSES_RANGES: Final = frozenset({400, 405, 412, 501})
"""How odd servers answer a question for a range. Without one they may have the file."""
_UNSATISFIED: Final = re.compile(r"bytes \*/(\d{1,19})")


@dataclass(frozen=True, slots=True)
class Resumable:
    """Where the bytes at hand came from."""

    source: str
    """`source_id` of the URL."""
    etag: Optional[str] = None
    last_modified: Optional[str] = None
    total: Optional[int] = None
    """Bytes of the whole file, if the server said so."""
    encoding: Optional[str] = None
    """The ``Content-Encoding``, which nobody asked for. Bytes of two encodings are no file."""

    @property
    def validator(self) -> Optional[str]:
        """What ``If-Range`` may hold: weak ETags may not, they stay the same when bytes change."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified


@dataclass(frozen=True, slots=True)
class Append:
    """The body follows on the bytes at hand."""

    end: int
    """Where in the file the body ends."""
    known: Resumable


@dataclass(frozen=True, slots=True)
class StartOver:
    """The body is the whole file, from its start."""

    known: Resumable


@dataclass(frozen=True, slots=True)
class Whole:
    """There is nothing to come: the bytes at hand are all."""


@dataclass(frozen=True, slots=True)
class Misled:
    """The answer does not fit the question. The bytes at hand are worthless; ask again for the whole."""

    problem: str


Answered = Union[Append, StartOver, Whole, Misled]


def source_id(url: str) -> str:
    """Return a name for a URL that shows nothing of what stands in it."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def range_headers(have: int, known: Optional[Resumable], source: str, *, checked: bool) -> dict[str, str]:
    """Return the headers that ask for the rest of a file; none if all of it is to be asked for.

    Args:
        have: the bytes at hand.
        known: where they came from.
        source: who is asked now.
        checked: whether there is a checksum to find out in the end.
    """
    if have == 0 or known is None:
        return {}
    if known.source == source and known.validator is not None:
        return {"Range": f"bytes={have}-", "If-Range": known.validator}
    if checked and known.total is not None:
        return {"Range": f"bytes={have}-"}
    return {}


def answered(
    status: int, headers: Mapping[str, str], *, have: int, known: Optional[Resumable], source: str, asked_range: bool
) -> Optional[Answered]:
    """Return what an answer's body means; None if the status is none of 200, 206 and 416.

    Args:
        status: the answer's.
        headers: the answer's, by lower-case names.
        have: as of `range_headers`; so `known` and `source`.
        known: see there.
        source: see there.
        asked_range: whether these headers were sent.
    """
    if status in (200, 203):
        return _whole(headers, have, known, source, asked_range)
    if status == 416 and asked_range:
        found = _UNSATISFIED.fullmatch(headers.get("content-range", ""))
        is_all = found is not None and int(found[1]) == have and (known is None or known.total in (None, have))
        return Whole() if is_all else Misled("has a shorter file than before")
    if status in _REFUSES_RANGES and asked_range:
        return Misled(f"answers {status} to a question for the rest of the file")
    if status != 206:
        return None
    if not asked_range:
        return _beginning(headers, source)
    return _partial(headers, have, known, source)


def _whole(headers: Mapping[str, str], have: int, known: Optional[Resumable], source: str, asked_range: bool) -> Answered:
    length = _length(headers)
    if not asked_range:
        return StartOver(_resumable(headers, source, length))
    text = headers.get("content-range")
    found = _CONTENT_RANGE.fullmatch(text) if text is not None else None
    if text is not None and (found is None or int(found[1]) != 0 or found[3] != str(int(found[2]) + 1)):
        # Some servers honour a range and answer 200.
        return _partial(headers, have, known, source)
    is_same = known is not None and known.source == source and known.etag is not None and known.etag == headers.get("etag")
    if is_same and known is not None and None is not known.total != length is not None:
        return Misled(f"has the same file in another size ({length} bytes, not {known.total})")
    return StartOver(_resumable(headers, source, length))


def _beginning(headers: Mapping[str, str], source: str) -> Answered:
    """Return what an answer of 206 means where no range was asked for."""
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if found is None or int(found[1]) != 0 or _length(headers) not in (None, int(found[2]) + 1):
        return Misled("sends a part of the file where all of it was asked for")
    return StartOver(_resumable(headers, source, None if found[3] == "*" else int(found[3])))


def _partial(headers: Mapping[str, str], have: int, known: Optional[Resumable], source: str) -> Answered:
    text = headers.get("content-range", "")
    found = _CONTENT_RANGE.fullmatch(text)
    if found is None:
        return Misled(f"sends a part of the file and does not say which (Content-Range: {text[:80]!r})")
    first, last = int(found[1]), int(found[2])
    total = None if found[3] == "*" else int(found[3])
    if first != have or last < first or (total is not None and last >= total):
        return Misled(f"sends another part of the file than was asked for (from {have}: {text[:80]!r})")
    length = _length(headers)
    if length is not None and length != last - first + 1:
        return Misled(f"contradicts itself on the length of its answer ({length} bytes, {text[:80]!r})")
    if known is not None:
        if known.total is not None and total is not None and total != known.total:
            return Misled(f"has a file of another size than before ({total} bytes, not {known.total})")
        if known.source == source and _is_another(known, headers):
            return Misled("has another file than before")
        if known.encoding != _encoding(headers):
            return Misled(f"encodes the file in another way than before ({headers.get('content-encoding')})")
        total = known.total if total is None else total
        if known.source == source:
            return Append(last + 1, Resumable(source, known.etag, known.last_modified, total, known.encoding))
    # The bytes at hand are of two servers now, so neither's validator covers them.
    return Append(last + 1, Resumable(source, None, None, total, _encoding(headers)))


def _is_another(known: Resumable, headers: Mapping[str, str]) -> bool:
    """Tell whether the validators of an answer of 206 are not those of the bytes at hand."""
    if known.etag:
        return headers.get("etag", known.etag) != known.etag
    return bool(known.last_modified) and headers.get("last-modified", known.last_modified) != known.last_modified


def _resumable(headers: Mapping[str, str], source: str, total: Optional[int]) -> Resumable:
    return Resumable(source, headers.get("etag"), headers.get("last-modified"), total, _encoding(headers))


def _encoding(headers: Mapping[str, str]) -> Optional[str]:
    text = headers.get("content-encoding", "").strip().lower()
    return None if text in ("", "identity") else text[:100]


def _length(headers: Mapping[str, str]) -> Optional[int]:
    if headers.get("transfer-encoding", "identity").strip().lower() != "identity":
        return None  # which then says how long the body is, whatever Content-Length does
    text = headers.get("content-length", "").strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None
