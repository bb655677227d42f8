"""Collection of garbage: what links keep, what is asked, and that nothing else goes."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path as FsPath
from typing import Any

import pytest
from tests.peers import Line, Peer
from tests.stores import AS_ROOT, OTHER_UID, Numbered, check_trash, in_child, new_store, stage, writes

from pylightnix import (
    Context,
    DRef,
    MissingDerivation,
    MissingRealization,
    Misuse,
    Path,
    Registry,
    RRef,
    StorageSettings,
    StoreBusy,
    alldrefs,
    allrrefs,
    current_storage,
    dref2path,
    du,
    find,
    instantiate,
    linkdref,
    linkrref,
    match_all,
    match_some,
    realize,
    realize1,
    rref2path,
    store_gc,
)
from pylightnix.garb import collect, diskspace_h, gc, gc_candidates, gc_exceptions

pytestmark = pytest.mark.language

UNKNOWN = DRef(f"dref:{'0' * 32}-unknown")


@dataclass(frozen=True)
class Graph:
    """data (two realizations) <- model <- report; data <- other; lone."""

    S: StorageSettings
    drefs: dict[str, DRef]
    rrefs: dict[str, list[RRef]]

    def dref(self, *names: str) -> set[DRef]:
        return {self.drefs[name] for name in names}

    def rref(self, *names: str) -> set[RRef]:
        return {rref for name in names for rref in self.rrefs[name]}

    def left(self) -> tuple[set[DRef], set[RRef]]:
        return set(alldrefs(self.S)), set(allrrefs(self.S))

    def everything(self) -> tuple[set[DRef], set[RRef]]:
        return self.dref(*self.drefs), self.rref(*self.rrefs)


@pytest.fixture
def graph(S: StorageSettings) -> Graph:
    drefs: dict[str, DRef] = {}

    def main(r: Registry) -> list[DRef]:
        drefs["data"] = stage(r, "data", realizer=writes({"a": "1"}, {"a": "2"}), matcher=match_some(1))
        drefs["model"] = stage(r, "model", dep=drefs["data"])
        drefs["report"] = stage(r, "report", dep=drefs["model"])
        drefs["other"] = stage(r, "other", dep=drefs["data"])
        drefs["lone"] = stage(r, "lone")
        return list(drefs.values())

    realize(instantiate(main, S=S))
    rrefs: dict[str, list[RRef]] = {name: [] for name in drefs}
    for rref in allrrefs(S):
        rrefs[rref[71:]].append(rref)
    return Graph(S, drefs, rrefs)


# --- what is needed -----------------------------------------------------------------------------------


def test_nothing_to_be_kept_keeps_nothing(graph: Graph) -> None:
    assert store_gc([], [], graph.S) == graph.everything() == graph.left()


def test_a_kept_derivation_keeps_all_that_is_below_it(graph: Graph) -> None:
    drefs, rrefs = store_gc([graph.drefs["report"]], [], graph.S)
    assert drefs == graph.dref("other", "lone")
    assert rrefs == graph.rref("other", "lone")


def test_a_kept_realization_keeps_no_siblings(graph: Graph) -> None:
    drefs, rrefs = store_gc([], graph.rrefs["model"], graph.S)
    assert drefs == graph.dref("report", "other", "lone")
    assert graph.rref("report", "other", "lone") < rrefs
    assert len(rrefs & graph.rref("data")) == 1
    with current_storage(graph.S):
        assert gc_candidates(([], graph.rrefs["model"])) == (drefs, rrefs)


def test_to_keep_what_is_not_there(graph: Graph) -> None:
    with pytest.raises(MissingDerivation):
        store_gc([UNKNOWN], [], graph.S)
    with pytest.raises(MissingRealization):
        store_gc([], [RRef(f"rref:{'1' * 32}-{UNKNOWN[5:]}")], graph.S)


# --- what links keep ----------------------------------------------------------------------------------


def test_links_of_every_kind(graph: Graph, tmp_path: FsPath) -> None:
    S = graph.S
    keep = tmp_path / "keep"
    (keep / "deep" / "er").mkdir(parents=True)
    [model], [report] = graph.rrefs["model"], graph.rrefs["report"]
    linkrref(model, str(keep / "deep" / "er"), S=S)
    linkdref(graph.drefs["lone"], str(keep), S=S)
    (keep / "to-a-file").symlink_to(f"{rref2path(report, S)}/out.txt")
    assert gc_exceptions([str(keep)], S) == ([graph.drefs["lone"]], sorted([model, report]))


def test_d42_links_to_links_and_paths_that_are_links(graph: Graph, tmp_path: FsPath) -> None:
    [report] = graph.rrefs["report"]
    link = linkrref(report, str(tmp_path), "result", graph.S)
    (tmp_path / "second").symlink_to("result")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "inner").symlink_to("../second")
    (tmp_path / "keep").symlink_to("real")
    for path in (link, str(tmp_path / "second"), str(tmp_path / "keep"), rref2path(report, graph.S), f"{tmp_path}/"):
        assert gc_exceptions([path], graph.S) == ([], [report]), path


def test_what_stands_for_nothing(graph: Graph, tmp_path: FsPath) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    other = new_store(tmp_path / "other")
    linkrref(realize1(instantiate(lambda r: stage(r, "there"), S=other)), str(keep), S=other)
    (keep / ("x" * 200)).mkdir()
    (keep / ("x" * 200) / "etc").symlink_to("/etc")
    (keep / "dangling").symlink_to("nowhere")
    (keep / "gone").symlink_to(f"{dref2path(UNKNOWN, graph.S)}/{'1' * 32}")
    (keep / "itself").symlink_to("itself")
    (keep / "above").symlink_to("..")
    (keep / "plain").write_text(graph.rrefs["lone"][0])
    assert gc_exceptions([str(keep)], graph.S) == ([], [])


def test_a_folder_that_is_not_there_is_no_empty_one(graph: Graph, tmp_path: FsPath) -> None:
    for path in ("absent", ""):
        with pytest.raises(Misuse, match="found nothing at"):
            gc([str(tmp_path / path) if path else ""], interactive=False, S=graph.S)
    assert graph.left() == graph.everything()


@pytest.mark.skipif(not AS_ROOT, reason="root can read every folder, and it takes root to be another user")
def test_a_folder_that_cannot_be_read_is_no_empty_one(open_folder: FsPath) -> None:
    (open_folder / "store").mkdir(mode=0o777)
    (open_folder / "closed").mkdir(mode=0o700)

    def body() -> str:
        S = new_store(open_folder / "mine")
        try:
            gc([str(open_folder)], interactive=False, S=S)
        except PermissionError as error:
            return str(error.filename)
        return "nothing was raised"

    assert in_child(body, uid=OTHER_UID) == str(open_folder / "closed")


# --- removing -----------------------------------------------------------------------------------------


@pytest.mark.embedded_only("a daemon empties the trash afterwards")
def test_the_rest_is_removed_and_what_is_kept_is_whole(graph: Graph, tmp_path: FsPath, capsys: pytest.CaptureFixture[str]) -> None:
    S = graph.S
    keep = tmp_path / "keep"
    keep.mkdir()
    linkrref(graph.rrefs["model"][0], str(keep), S=S)
    drefs, rrefs = gc_candidates(gc_exceptions([str(keep)], S), S)
    everything = graph.everything()
    gc([str(keep)], interactive=False, S=S)
    said = capsys.readouterr().out
    assert all(ref in said for ref in drefs | rrefs)
    assert graph.left() == (everything[0] - drefs, everything[1] - rrefs)
    assert set(os.listdir(f"{S.root}/store-v1")) == {dref[5:] for dref in everything[0] - drefs}
    check_trash(S)
    gc([str(keep)], interactive=False, verbose=False, S=S)
    assert capsys.readouterr().out == ""
    linkdref(graph.drefs["model"], str(keep), S=S)
    gc([str(keep)], interactive=False, S=S)
    assert graph.left() == (everything[0] - drefs, everything[1] - rrefs)


def test_what_came_to_be_needed_meanwhile_stays(graph: Graph) -> None:
    S = graph.S
    drefs, rrefs = store_gc([], [], S)
    again = Numbered(texts=["new"])
    new = realize1(instantiate(lambda r: stage(r, "new", dep=stage(r, "lone", realizer=again)), S=S))
    assert not again.runs
    second = realize1(instantiate(lambda r: stage(r, "other", dep=_again(r, graph), realizer=again), S=S), force_rebuild=True)
    expected = store_gc([], [new, second], S)
    assert collect(drefs, rrefs, S) == (sorted(expected[0]), sorted(expected[1]))
    assert {new, second, *graph.rref("lone")} < set(allrrefs(S))
    assert graph.dref("lone", "other", "data") < set(alldrefs(S))
    assert not graph.rref("report", "model") & set(allrrefs(S))


def _again(r: Registry, graph: Graph) -> DRef:
    return stage(r, "data", realizer=writes({"a": "1"}, {"a": "2"}), matcher=match_some(1))


def test_what_somebody_else_has_removed_is_left_out(graph: Graph) -> None:
    drefs, rrefs = graph.left()
    first = collect(drefs, rrefs, graph.S)
    assert first == (sorted(drefs), sorted(rrefs))
    assert collect(drefs, rrefs, graph.S) == ([], [])


def test_more_than_is_removed_at_a_time(S: StorageSettings) -> None:
    def main(r: Registry) -> DRef:
        dref = stage(r, "0")
        for i in range(1, 12):
            dref = stage(r, f"{i}", dep=dref)
        return dref

    realize(instantiate(main, S=S))
    drefs, rrefs = store_gc([], [], S)
    assert collect(drefs, rrefs, S, batch=5) == (sorted(drefs), sorted(rrefs))
    assert (list(alldrefs(S)), list(allrrefs(S))) == ([], [])


def test_foreign_entries_in_the_store_are_in_nobodys_way(graph: Graph, tmp_path: FsPath) -> None:
    S = graph.S
    storage = FsPath(dref2path(graph.drefs["lone"], S)).parent
    (storage / "result").symlink_to(rref2path(graph.rrefs["lone"][0], S))
    (storage / "notes.txt").write_text("mine")
    (storage / f"{'0' * 32}-half.tmp").mkdir()
    FsPath(dref2path(graph.drefs["lone"], S), "result").symlink_to("nowhere")
    assert (set(du(S)), set(find(S=S))) == graph.everything()
    assert store_gc([], graph.rrefs["lone"], S)[0] == graph.everything()[0] - graph.dref("lone")
    gc([str(tmp_path / "store" / "store-v1" / "result")], interactive=False, S=S)
    assert graph.left() == (graph.dref("lone"), graph.rref("lone"))
    assert (storage / "notes.txt").read_text() == "mine"


def test_garbage_that_cannot_be_read_goes_as_well(graph: Graph) -> None:
    S = graph.S
    drefs, rrefs = store_gc([], graph.rrefs["lone"], S)
    config = FsPath(dref2path(graph.drefs["model"], S), "config.json")
    config.chmod(0o644)
    config.write_text("{")
    assert store_gc([], graph.rrefs["lone"], S) == (drefs, rrefs)
    assert collect(drefs, rrefs, S, batch=3) == (sorted(drefs), sorted(rrefs))


@pytest.mark.slow
def test_who_works_in_the_store_is_named(graph: Graph) -> None:
    def body(line: Line) -> None:
        def waits(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
            line.say("there")
            line.hear()
            return writes()(S, dref, context, rarg)

        realize(instantiate(lambda r: stage(r, "waits", realizer=waits), S=graph.S))

    with Peer(body) as peer:
        peer.expect("there")
        with pytest.raises(StoreBusy, match=f"process {peer.pid} "):
            gc([], interactive=False, S=graph.S)
        assert graph.left()[1] == graph.everything()[1]
        peer.say("go on")
        peer.end()
    gc([], interactive=False, S=graph.S)
    assert graph.left() == (set(), set())


def test_sizes_for_people() -> None:
    sizes = {0: "   0 ", 1023: "1023 ", 1024: "   1K", 1536: "   1K", 1 << 20: "   1M", 5 << 30: "   5G", 1 << 41: "2048G"}
    assert {size: diskspace_h(size) for size in sizes} == sizes


# --- asking -------------------------------------------------------------------------------------------


def test_it_asks_on_a_terminal_only_and_shows_what_would_go(graph: Graph) -> None:
    for arguments in ({}, {"verbose": False}, {"interactive": True, "verbose": False}):
        with pytest.raises(AssertionError):
            gc([], S=graph.S, **arguments)
    assert graph.left() == graph.everything()


@pytest.mark.parametrize(("answer", "gone"), [("y", True), ("YES", True), ("n", False), ("", False), ("yx", False)])
def test_the_answer(graph: Graph, answer: str, gone: bool) -> None:
    ours, theirs = pty.openpty()
    script = f"from pylightnix import mkSS; from pylightnix.garb import gc; gc([], S=mkSS({graph.S.root!r}))"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    said = child.communicate(timeout=60)[0].decode()
    os.close(ours)
    assert child.returncode == 0, said
    assert "[yN]" in said
    assert graph.rrefs["lone"][0] in said
    assert graph.left() == ((set(), set()) if gone else graph.everything())


def test_a_link_that_is_made_while_it_asks_keeps(graph: Graph, tmp_path: FsPath) -> None:
    ours, theirs = pty.openpty()
    keep = tmp_path / "keep"
    keep.mkdir()
    script = f"from pylightnix import mkSS; from pylightnix.garb import gc; gc([{str(keep)!r}], S=mkSS({graph.S.root!r}))"
    child = subprocess.Popen([sys.executable, "-u", "-c", script], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    os.close(theirs)
    assert child.stdout is not None
    said = b""
    while b"[yN]" not in said:
        said += os.read(child.stdout.fileno(), 1 << 16)
    linkrref(graph.rrefs["lone"][0], str(keep), S=graph.S)
    os.write(ours, b"y\n")
    said += child.communicate(timeout=60)[0]
    os.close(ours)
    assert child.returncode == 0, said
    assert graph.left() == (graph.dref("lone"), graph.rref("lone"))


def test_a_store_of_several_matched_realizations(S: StorageSettings) -> None:
    def main(r: Registry) -> DRef:
        return stage(r, "top", dep=stage(r, "many", realizer=writes({"a": "1"}, {"a": "2"}, {"a": "3"}), matcher=match_all))

    rref = realize1(instantiate(main, S=S))
    assert store_gc([], [rref], S) == (set(), set())
