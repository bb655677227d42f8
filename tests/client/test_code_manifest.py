"""What a realizer's digest covers is recorded with what it built, through a daemon as without one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.client import daemons
from tests.daemon import realizers
from tests.stores import new_store

from pylightnix import CodeManifest, StorageSettings, code_manifest, instantiate, match_latest, mkconfig, mkdrv, realize1
from pylightnix.query import realization_info
from pylightnix.storage import store_layout


@pytest.fixture(params=["embedded", "daemon"])
def S(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageSettings]:
    if request.param == "embedded":
        yield new_store(tmp_path_factory.mktemp("store"))
    else:
        with daemons.served_store() as S:
            yield S


def test_manifest_is_recorded_once_for_every_digest(S: StorageSettings) -> None:
    digests: set[str] = set()
    for realizer in (realizers.trivial, realizers.trivial, realizers.draws):
        config = mkconfig({"name": "built", "i": len(digests), "by": realizer.__name__})
        rref = realize1(instantiate(lambda r, c=config, f=realizer: mkdrv(c, match_latest(), f, r), S=S))
        found = realization_info(rref, S)
        assert found is not None
        assert found.realizer_digest == code_manifest([realizer]).digest
        digests.add(str(found.realizer_digest))
    with closing(sqlite3.connect(store_layout(S).index)) as db:
        rows = dict(db.execute("SELECT digest, manifest FROM code"))
    assert set(rows) == digests
    for realizer in (realizers.trivial, realizers.draws):
        expected = code_manifest([realizer])
        assert CodeManifest.from_json(rows[expected.digest]) == expected
        assert f"tests.daemon.realizers.{realizer.__name__}" in expected.entries
