"""What is to be fetched, as bytes: as large as settings of users are, and no larger."""

from __future__ import annotations

import pytest

from pylightnix import Misuse
from pylightnix.fetch import FetchEnvironment, Login
from pylightnix.stages.fetch import FetchRealizer
from pylightnix.travel.fetching import pack_fetch, unpack_fetch

REALIZER = FetchRealizer(urls=("https://example.org/f",), filename="f")


def test_the_largest_settings_travel() -> None:
    environment = FetchEnvironment(ca_pem="x" * (8 << 20), logins=tuple(Login(f"host{n}", "u" * 10, "p" * 10) for n in range(20_000)))
    assert unpack_fetch(pack_fetch(REALIZER, environment))[1] == environment


def test_larger_ones_are_refused_before_they_are_read() -> None:
    blob = pack_fetch(REALIZER, FetchEnvironment(ca_pem="x" * (11 << 20)))
    with pytest.raises(Misuse, match="in 10485760 bytes at most, found 115"):
        unpack_fetch(blob)
    with pytest.raises(Misuse, match="10485760"):
        unpack_fetch(b"\xc1" * (11 << 20))
