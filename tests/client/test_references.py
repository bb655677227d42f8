from __future__ import annotations

from pathlib import Path

import pytest

from pylightnix.config import mkconfig
from pylightnix.errors import InvalidReference, MissingRealization
from pylightnix.refs import undref
from pylightnix.registry import mkdrv_
from pylightnix.storage import current_storage, fsinit, mkSS
from pylightnix.types import DRef, RRef, StorageSettings
from pylightnix_client.errors import NotBuilt
from pylightnix_client.references import existing_realization, locate, reference_of_path, resolve_reference


@pytest.fixture
def S(tmp_path: Path) -> StorageSettings:
    settings = mkSS(str(tmp_path / "store"))
    fsinit(settings, use_as_default=False)
    return settings


@pytest.fixture
def dref(S: StorageSettings) -> DRef:
    with current_storage(S):
        return mkdrv_(mkconfig({"name": "thing"}), S)


def test_full_references_are_not_looked_up(S: StorageSettings) -> None:
    for text in ("dref:" + "0" * 32 + "-x", "rref:" + "0" * 32 + "-" + "1" * 32 + "-x"):
        assert resolve_reference(text, S) == text


def test_beginnings(S: StorageSettings, dref: DRef) -> None:
    dhash, name = undref(dref)
    for text in (dhash[:4], dhash[:8], dhash, f"{dhash}-", f"{dhash}-{name}", f"dref:{dhash[:8]}"):
        assert resolve_reference(text, S) == dref


def test_beginning_of_nothing_and_of_several(S: StorageSettings) -> None:
    with pytest.raises(InvalidReference, match="nothing in the store is called '0123456789ab'"):
        resolve_reference("0123456789ab", S)
    drefs = [mkdrv_(mkconfig({"n": n}), S) for n in range(600)]  # some two of them share four digits, or none does
    beginnings = [undref(dref)[0][:4] for dref in drefs]
    shared = {text for text in beginnings if beginnings.count(text) > 1}
    for text in shared:
        with pytest.raises(InvalidReference, match="may mean 2 things"):
            resolve_reference(text, S)


@pytest.mark.parametrize("text", ["", "abc", "xyz", "dref:", "dref:zz", "rref:12345678901234567890123456789012345", "no/such/path"])
def test_what_is_no_reference(S: StorageSettings, text: str) -> None:
    with pytest.raises(InvalidReference, match="nothing in the store is called"):
        resolve_reference(text, S)


def test_kind_is_checked(S: StorageSettings, dref: DRef) -> None:
    for text in (dref, f"dref:{undref(dref)[0][:8]}", "thing"):
        with pytest.raises(NotBuilt, match="is not built yet"):
            resolve_reference(text, S, kinds=("rref",))
    with pytest.raises(InvalidReference, match="expected a derivation"):
        resolve_reference("rref:" + "0" * 32 + "-" + "1" * 32 + "-x", S, kinds=("dref",))


def test_paths_and_links(S: StorageSettings, dref: DRef, tmp_path: Path) -> None:
    dhash, name = undref(dref)
    folder = tmp_path / "store" / "store-v1" / f"{dhash}-{name}"
    realization = folder / ("a" * 32)
    (realization / "sub").mkdir(parents=True)
    rref = RRef(f"rref:{'a' * 32}-{dhash}-{name}")
    link = tmp_path / "result"
    link.symlink_to(realization)
    assert resolve_reference(str(folder), S) == dref
    assert resolve_reference(str(link), S) == rref
    assert reference_of_path(str(link / "sub" / "file"), S) == (rref, "sub/file")
    assert reference_of_path(str(folder / "config.json"), S) == (dref, "config.json")
    assert existing_realization(rref, S) == str(realization)
    assert resolve_reference(str(link / "sub"), S) == rref
    assert locate(f"{rref}/sub/x", S) == (rref, "sub/x")
    assert locate(str(link / "sub" / "x"), S) == (rref, "sub/x")
    with pytest.raises(InvalidReference, match="this path is inside rref:a"):
        resolve_reference(str(link / "sub"), S, whole=True)
    with pytest.raises(InvalidReference, match="expected a path in the store"):
        reference_of_path(str(tmp_path), S)


def test_where_there_is_no_store_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidReference, match=f"called 'thing'; there is no store {tmp_path}/absent"):
        resolve_reference("thing", mkSS(str(tmp_path / "absent")))
    assert not (tmp_path / "absent").exists()


def test_missing_realization(S: StorageSettings) -> None:
    with pytest.raises(MissingRealization):
        existing_realization(RRef("rref:" + "0" * 32 + "-" + "1" * 32 + "-x"), S)
