"""Bringing stores of Pylightnix 0.x into one of today."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.old_stores import Content, Link, OldStore, old_hash
from tests.stores import check_tmp, check_usable, picture, refuses, text_of, unharmed

from pylightnix import (
    DRef,
    InvalidStorage,
    Registry,
    RRef,
    StorageSettings,
    alldrefs,
    allrrefs,
    drefcfg_,
    instantiate,
    match_all,
    match_latest,
    mkconfig,
    mkdrv,
    mkSS,
    realize1,
    realizeMany,
    rref2path,
    rrefbdelta,
    rrefbstart,
    rrefctx,
    selfref,
)
from pylightnix.nar import tree_hash
from pylightnix.query import direct_context, realization_info
from pylightnix.storage import store_layout
from pylightnix.store.layout import METADATA_NAMES
from pylightnix.v0 import ImportReport, RemarkKind, import_v0

OF_READING = pytest.mark.embedded_only("it is about reading an old store; other tests here bring one into a daemon's")

NESTED: dict[str, Content] = {
    "out.txt": "text",
    "sub/deep/a.bin": b"\xff\0",
    "sub/run.sh": "#!/bin/sh\n",
    "link": Link("sub/run.sh"),
    "__init__.py": "unhashed",
}


@pytest.fixture
def old(tmp_path: Path) -> OldStore:
    return OldStore(str(tmp_path / "old"))


def snapshot(root: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for top, folders, files in os.walk(root):
        for name in (*folders, *files):
            info = os.lstat(os.path.join(top, name))
            found[os.path.join(top, name)] = (info.st_mode, info.st_mtime_ns, info.st_ino, info.st_size)
    return found


def refused(report: ImportReport) -> dict[str, str]:
    return {os.path.relpath(remark.path, report.storage): remark.reason for remark in report.refused()}


@pytest.mark.language
def test_a_chain_with_several_realizations(old: OldStore, S: StorageSettings) -> None:
    low = old.derivation(name="low", z=1, a=[1.5, None, "é"], out=[selfref, "out.txt"])
    middle = old.derivation(name="middle", low=low, path=[low, "sub", "run.sh"])
    high = old.derivation(name="high", of={"deep": [[middle]]})
    lows = [old.realization(low, {**NESTED, "n": str(n)}, start=f"25123{n}-23:59:58:000000+0300") for n in range(2)]
    middles = [old.realization(middle, {"out.txt": f"m{n}"}, (lows[n],)) for n in range(2)]
    highs = [old.realization(high, {"out.txt": "h"}, (middles[n],)) for n in range(2)]
    both = old.realization(high, {"out.txt": "both"}, (middles[0], middles[0]), start=None)
    before = snapshot(old.root)

    report = import_v0(old.root, S)

    assert report.remarks == []
    assert snapshot(old.root) == before
    assert sorted(report.derivations) == sorted([low, middle, high])
    assert set(report.realizations) == {*lows, *middles, *highs, both}
    assert sorted(report.realizations.values()) == list(allrrefs(S))
    new_low, new_middle = report.derivations[DRef(low)], report.derivations[DRef(middle)]
    assert drefcfg_(new_low, S).val == old.configs[low]
    assert drefcfg_(new_middle, S).val == {"name": "middle", "low": new_low, "path": [new_low, "sub", "run.sh"]}
    new = report.realizations
    for n in range(2):
        assert direct_context(store_layout(S), new[RRef(highs[n])]) == ({new_middle: [new[RRef(middles[n])]]}, {})
        assert rrefctx(new[RRef(highs[n])], S)[new_low] == [new[RRef(lows[n])]]
        folder = rref2path(new[RRef(lows[n])], S)
        assert tree_hash(folder, exclude_top=METADATA_NAMES) == tree_hash(old.folder(lows[n]), exclude_top=METADATA_NAMES)
        assert os.readlink(f"{folder}/link") == "sub/run.sh"
        assert os.access(f"{folder}/sub/run.sh", os.X_OK)
        assert Path(f"{folder}/__init__.py").read_text() == "unhashed"
        assert (rrefbstart(new[RRef(lows[n])], S), rrefbdelta(new[RRef(lows[n])], S)) == (f"25123{n}-23:59:58:000000+0300", 0.0)
    check_tmp(S)
    check_usable(S)


@pytest.mark.language
def test_todays_programs_use_what_was_imported(old: OldStore, S: StorageSettings) -> None:
    low = old.derivation(b=2, a=1, name="low")
    high = old.derivation(name="high", low=low)
    lows = [old.realization(low, {"out.txt": str(n)}, start=f"2512{n:02}-10:00:00:000000+0000") for n in (11, 10)]
    old.realization(high, {"out.txt": "high"}, (lows[0],))
    report = import_v0(old.root, S)

    def main(r: Registry) -> DRef:
        new_low = mkdrv(mkconfig({"name": "low", "a": 1, "b": 2}), match_latest(), refuses, r)
        return mkdrv(mkconfig({"name": "high", "low": new_low}), match_latest(), refuses, r)

    rref = realize1(instantiate(main, S=S))
    assert text_of(rref, S) == "high"
    assert rrefctx(rref, S) == {report.derivations[DRef(low)]: [report.realizations[RRef(lows[0])]]}, "the latest of the two"
    every = instantiate(lambda r: mkdrv(mkconfig({"name": "low", "a": 1, "b": 2}), match_all, refuses, r), S=S)
    assert len(realizeMany(every)) == 2


@OF_READING
def test_several_realizations_of_one_dependency(old: OldStore, S: StorageSettings) -> None:
    low, high = old.derivation(name="low"), ""
    high = old.derivation(name="high", low=low)
    lows = tuple(old.realization(low, {"out.txt": str(n)}) for n in range(3))
    both = old.realization(high, {"out.txt": "high"}, lows[:2])
    new = import_v0(old.root, S).realizations
    assert list(rrefctx(new[RRef(both)], S).values()) == [sorted(new[RRef(rref)] for rref in lows[:2])]


@pytest.mark.language
def test_again_changes_nothing(old: OldStore, S: StorageSettings) -> None:
    low = old.derivation(name="low")
    high = old.derivation(name="high", low=low)
    rref = old.realization(low, NESTED)
    old.realization(high, {"out.txt": "high"}, (rref,))
    first = import_v0(old.root, S)
    before = picture(S)
    second = import_v0(old.root, S)
    assert picture(S) == before
    assert (first.present, second.present) == (0, 2)
    assert (second.derivations, second.realizations) == (first.derivations, first.realizations)
    old.realization(high, {"out.txt": "new"}, (rref,))
    assert import_v0(old.root, S).present == 2
    assert len(list(allrrefs(S))) == 3


@pytest.mark.language
def test_a_dry_run_tells_the_same_and_takes_nothing(old: OldStore, S: StorageSettings, tmp_path: Path) -> None:
    low = old.derivation(name="low")
    old.realization(low, NESTED)
    with unharmed(S):
        told = import_v0(old.root, S, dry_run=True)
    nowhere = mkSS(str(tmp_path / "none"))
    assert import_v0(old.root, nowhere, dry_run=True) == told
    assert not (tmp_path / "none").exists()
    assert import_v0(old.root, S) == told
    assert import_v0(old.root, S, dry_run=True).present == 1


@OF_READING
@pytest.mark.parametrize("order", [list.sort, list.reverse])
def test_folders_beside_each_other_in_any_likely_order(old: OldStore, S: StorageSettings, order: Callable[[list[str]], None]) -> None:
    low = old.derivation(name="low")
    rref = old.realization(low, {f"{name}/x": name for name in "bdac"}, order=order)
    assert list(import_v0(old.root, S).realizations) == [rref]


@OF_READING
def test_an_order_that_nobody_knows_is_named_as_a_likely_cause(old: OldStore, S: StorageSettings) -> None:
    def odd(names: list[str]) -> None:
        names.sort(key=lambda name: "cadb".index(name) if name in "cadb" else 0)

    low = old.derivation(name="low")
    old.realization(low, {f"{name}/x": name for name in "bdac"}, order=odd)
    hash_now = {old_hash(old.folder(rref), order)[:32] for rref in old.contexts for order in (list.sort, list.reverse, lambda _: None)}
    report = import_v0(old.root, S)
    if hash_now & {rref[5:37] for rref in old.contexts}:
        assert len(report.realizations) == 1  # this file system happens to list them so
    else:
        (reason,) = refused(report).values()
        assert reason.startswith("its files do not have the hash that its name says; it has folders beside each other, which")


def _rehash(old: OldStore, rref: str) -> None:
    """Give a realization the name that fits what is in it now."""
    folder = old.folder(rref)
    os.chmod(folder, 0o700)
    os.rename(folder, f"{os.path.dirname(folder)}/{old_hash(folder)[:32]}")


def _spoil_content(old: OldStore, rref: str) -> None:
    Path(old.folder(rref), "out.txt").write_text("spoilt")


def _spoil_context(old: OldStore, rref: str) -> None:
    Path(old.folder(rref), "context.json").write_text('{"dref:junk": ["rref:junk"]}')
    _rehash(old, rref)


def _drop_context(old: OldStore, rref: str) -> None:
    Path(old.folder(rref), "context.json").unlink()


def _null_context(old: OldStore, rref: str) -> None:
    Path(old.folder(rref), "context.json").write_text("null")


def _add_fifo(old: OldStore, rref: str) -> None:
    os.mkfifo(f"{old.folder(rref)}/pipe")


def _add_hidden_fifo(old: OldStore, rref: str) -> None:
    os.mkfifo(f"{old.folder(rref)}/_pipe")  # no part of the old hash


def _add_dangling_link(old: OldStore, rref: str) -> None:
    os.symlink("no/where", f"{old.folder(rref)}/dangling")


def _odd_stamp(old: OldStore, rref: str) -> None:
    os.unlink(f"{old.folder(rref)}/__buildstart__.txt")
    os.symlink("/etc/passwd", f"{old.folder(rref)}/__buildstart__.txt")


@OF_READING
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_spoil_content, "do not have the hash"),
        (_spoil_context, "expected a realization reference"),
        (_drop_context, "cannot be read"),
        (_null_context, "maps no derivations"),
        (_add_fifo, "special file"),
        (_add_hidden_fifo, "is a FIFO"),
        (_add_dangling_link, "cannot be read"),
        (_odd_stamp, "kept for a time"),
    ],
)
def test_what_cannot_be_believed_is_left_out_with_all_above_it(
    old: OldStore, S: StorageSettings, spoil: Callable[[OldStore, str], None], reason: str
) -> None:
    low, other = old.derivation(name="low"), old.derivation(name="other")
    high = old.derivation(name="high", low=low)
    bad, good = old.realization(low, {"out.txt": "bad"}), old.realization(low, {"out.txt": "good"})
    above_bad, above_good = old.realization(high, {"out.txt": "1"}, (bad,)), old.realization(high, {"out.txt": "2"}, (good,))
    fine = old.realization(other, {"out.txt": "fine"})
    os.chmod(old.folder(bad), 0o700)
    spoil(old, bad)
    report = import_v0(old.root, S)
    assert set(report.realizations) == {good, above_good, fine}
    assert sorted(report.realizations.values()) == list(allrrefs(S))
    (first, second) = sorted(refused(report).items(), key=lambda item: "was made from" in item[1])
    assert reason in first[1]
    assert (second[0], second[1]) == (
        os.path.relpath(old.folder(above_bad), old.storage),
        f"it was made from {bad}, which is not in the old store or was not taken",
    )
    check_usable(S)


@OF_READING
def test_derivations_that_cannot_be_taken(old: OldStore, S: StorageSettings) -> None:
    spoilt = old.derivation(name="spoilt")
    above = old.derivation(name="above", dep=[spoilt, "x"])
    gone = old.derivation(name="gone", dep="dref:" + "0" * 32 + "-gone")
    newline = old.derivation(name="newline\n")
    below_newline = old.derivation(name="x", dep=newline)
    surrogate = old.derivation(name="surrogate", text="\ud800")
    pinned = old.derivation(name="pinned", dep="rref:" + "0" * 32 + "-" + "1" * 32 + "-x")
    os.chmod(f"{old.folder(spoilt)}/config.json", 0o644)
    Path(f"{old.folder(spoilt)}/config.json").write_text('{"name": "spoilt", "more": 1}')
    fine = old.derivation(name="fine", text="dref:short", nan=float("nan"))
    report = import_v0(old.root, S)
    found = {path: reason[:30] for path, reason in refused(report).items()}
    assert found == {
        spoilt[5:]: "its config.json has the hash "[:30] + found[spoilt[5:]][29:],
        above[5:]: "it depends on dref:" + spoilt[5:16],
        gone[5:]: "it depends on dref:00000000000",
        newline[5:]: "its name is not one that a der",
        below_newline[5:]: "it depends on dref:" + newline[5:16],
        surrogate[5:]: "invalid config: config.text: t",
        pinned[5:]: "invalid config: config.dep: rr",
    }
    assert list(report.derivations) == [fine]
    assert list(alldrefs(S)) == list(report.derivations.values())


@pytest.mark.language
def test_contexts_that_do_not_hang_together(old: OldStore, S: StorageSettings) -> None:
    low = old.derivation(name="low")
    middle = old.derivation(name="middle", low=low)
    high = old.derivation(name="high", of=[low, middle])
    one, two = old.realization(low, {"x": "1"}), old.realization(low, {"x": "2"})
    over = old.realization(middle, {"x": "m"}, (one,))
    contradicts = old.realization(high, {"x": "h"}, context={low: [two], middle: [over]})
    empty = old.realization(high, {"x": "e"}, context={})
    report = import_v0(old.root, S)
    assert set(report.realizations) == {one, two, over}
    reasons = refused(report)
    assert "contradicts" in reasons[os.path.relpath(old.folder(contradicts), old.storage)]
    assert "has nothing for" in reasons[os.path.relpath(old.folder(empty), old.storage)]


@OF_READING
def test_what_is_no_part_of_the_store_is_skipped(old: OldStore, S: StorageSettings) -> None:
    low = old.derivation(name="low")
    rref = old.realization(low, {"out.txt": "x"})
    os.mkdir(f"{old.storage}/{low[5:]}.tmp")
    os.mkdir(f"{old.storage}/notes")
    os.symlink(old.folder(rref), f"{old.storage}/result")
    os.mkdir(f"{old.folder(low)}/{'0' * 32}.tmp")
    os.mkdir(f"{old.folder(low)}/stray")
    Path(f"{old.folder(low)}/stray.txt").write_text("")
    report = import_v0(old.root, S)
    assert list(report.realizations) == [rref]
    assert {remark.kind for remark in report.remarks} == {RemarkKind.SKIPPED}
    assert len(report.remarks) == 6


@pytest.mark.language
def test_links_that_lead_out_are_noted(old: OldStore, S: StorageSettings, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("outside")
    low = old.derivation(name="low")
    rref = old.realization(low, {"inside": Link("sub/x"), "sub/x": "x", "sub/up": Link("../inside"), "out": Link(f"{tmp_path}/outside")})
    report = import_v0(old.root, S)
    assert list(report.realizations) == [rref]
    (note,) = report.remarks
    assert (note.kind, os.path.basename(note.path)) == (RemarkKind.NOTE, "out")
    assert os.readlink(f"{rref2path(report.realizations[RRef(rref)], S)}/out") == f"{tmp_path}/outside"


@OF_READING
def test_two_configs_that_differ_in_order_become_one(old: OldStore, S: StorageSettings) -> None:
    drefs = [old.derivation(name="low", a=1, b=2), old.derivation(b=2, name="low", a=1)]
    rrefs = [old.realization(dref, {"x": str(n)}) for n, dref in enumerate(drefs)]
    high = old.derivation(name="high", of=drefs)
    report = import_v0(old.root, S)
    assert len(set(report.derivations.values())) == 2
    assert set(report.realizations) == set(rrefs)
    assert high in report.derivations
    info = realization_info(report.realizations[RRef(rrefs[0])], S)
    assert info is not None
    assert info.started == 1767214798.0


@OF_READING
@pytest.mark.parametrize("where", ["old", "old/store-v0"])
def test_where_an_old_store_is(old: OldStore, S: StorageSettings, tmp_path: Path, where: str) -> None:
    old.derivation(name="low")
    assert len(import_v0(str(tmp_path / where), S).derivations) == 1


@OF_READING
def test_an_old_store_set_apart_is_known_by_what_is_in_it(old: OldStore, S: StorageSettings, tmp_path: Path) -> None:
    old.derivation(name="low")
    os.rename(old.storage, tmp_path / "elsewhere")
    assert len(import_v0(str(tmp_path / "elsewhere"), S).derivations) == 1


@OF_READING
def test_where_there_is_none(S: StorageSettings, tmp_path: Path) -> None:
    with unharmed(S):
        for path in (tmp_path / "none", tmp_path):
            with pytest.raises(InvalidStorage, match=r"expected a store of Pylightnix 0\.x"):
                import_v0(str(path), S)


def test_the_generator_follows_the_rule(old: OldStore) -> None:
    import hashlib

    rref = old.realization(old.derivation(name="x"), {"a": "1", "b": Link("a"), "_no": "no", "sub/c": "2"})
    context = json.dumps({}, indent=4)
    assert rref[5:37] == hashlib.sha256(f"1a1{context}2".encode()).hexdigest()[:32]
