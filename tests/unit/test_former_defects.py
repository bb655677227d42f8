"""Defects of Pylightnix 0.x that no program may meet again, and where the tests of all of them stand.

Each of its 69 known defects has a test whose name begins with `test_d<number>_`. Most stand beside the other tests of
their concept; here are those that belong to none.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path as FsPath
from typing import Any

import pytest
from tests.client.daemons import served_store
from tests.stores import Notes, check_tmp, new_store, stage, text_of, writes

import pylightnix
from pylightnix import (
    ArchiveIOError,
    Build,
    BuildError,
    DRef,
    InUse,
    InvalidArchive,
    Path,
    Registry,
    RRef,
    StorageSettings,
    StoreBusy,
    alldrefs,
    allrrefs,
    build_outpath,
    build_wrapper,
    context_derefpath,
    dref2path,
    drefcfg_,
    drefrrefs,
    fsinit,
    instantiate,
    match_all,
    match_latest,
    mkconfig,
    mkSS,
    realize,
    realize1,
    rmref,
    rref2path,
    rrefctx,
    rrefpath2path,
    selfref,
)
from pylightnix.arch import copyclosure, spack, sunpack
from pylightnix.either import either_isLeft, mkdrvE, realizeE

pytestmark = pytest.mark.language

TESTS = FsPath(__file__).resolve().parents[1]
REPOSITORY = TESTS.parent

DEFECTS = range(1, 70)


def test_every_defect_has_a_test() -> None:
    names = re.compile(r"^(?:async )?def test_d(\d+)_", re.MULTILINE)
    tested = {int(number) for path in TESTS.rglob("test_*.py") for number in names.findall(path.read_text(encoding="utf-8"))}
    assert tested - set(DEFECTS) == set(), "there are 69"
    assert set(DEFECTS) - tested == set(), "without a test"


# --- what counts in a realization ---------------------------------------------------------------------


def outputs_of(S: StorageSettings, *realizers: Any) -> list[RRef]:
    """Realize one derivation once with each realizer and return what came, in this order."""
    found = []
    for realizer in realizers:
        before = set(allrrefs(S))
        realize(instantiate(lambda r, realizer=realizer: stage(r, realizer=realizer, matcher=match_all), S=S), force_rebuild=True)
        found += sorted(set(allrrefs(S)) - before)
    return found


def shaped(kind: str) -> Any:
    """Return a realizer whose output differs from the others' in what is no content of a file."""

    def f(b: Any) -> None:
        top = FsPath(build_outpath(b))
        (top / ("renamed" if kind == "name" else "file")).write_text("12" if kind == "boundary" else "1")
        (top / "next").write_text("3" if kind == "boundary" else "23")
        if kind == "mode":
            (top / "file").chmod(0o755)
        if kind == "folder":
            (top / "empty").mkdir()
        if kind == "link to a folder":
            (top / "link").symlink_to(".")

    return build_wrapper(f)


def test_d4_names_boundaries_modes_empty_folders_and_links_count(S: StorageSettings) -> None:
    kinds = ["plain", "name", "boundary", "mode", "folder", "link to a folder"]
    rrefs = outputs_of(S, *map(shaped, kinds))
    assert len(set(rrefs)) == len(kinds)
    assert drefrrefs(DRef(instantiate(stage, S=S)[0]), S) == set(rrefs), "and none was thrown away"


def nested(order: list[str]) -> Any:
    def f(b: Any) -> None:
        for name in order:
            os.mkdir(f"{build_outpath(b)}/{name}")
            FsPath(build_outpath(b), name, "file").write_text(name)

    return build_wrapper(f)


def test_d5_the_order_in_which_folders_were_made_does_not_count(S: StorageSettings) -> None:
    names = [f"folder{number}" for number in range(30)]
    assert len(outputs_of(S, nested(names), nested(names[::-1]))) == 1


def linking(target: str) -> Any:
    return build_wrapper(lambda b: os.symlink(target, f"{build_outpath(b)}/link"))


def test_d6_a_link_is_its_text_even_where_it_leads_nowhere(S: StorageSettings, tmp_path: FsPath) -> None:
    outside = tmp_path / "outside"
    outside.write_text("1")
    [first] = outputs_of(S, linking(str(outside)))
    outside.write_text("2")
    assert outputs_of(S, linking(str(outside))) == [], "what it leads to does not count"
    [dangling] = outputs_of(S, linking("nowhere"))
    assert os.readlink(f"{rref2path(dangling, S)}/link") == "nowhere"
    assert dangling != first


# --- stores -------------------------------------------------------------------------------------------


def test_d40_an_artifact_is_looked_for_in_the_store_that_was_named(S: StorageSettings, tmp_path: FsPath, defaults: None) -> None:
    fsinit(str(tmp_path / "default"))
    rref = realize1(instantiate(stage, S=S))
    dref = next(alldrefs(S))
    assert rrefpath2path(rref, [dref, "out.txt"], S) == f"{rref2path(rref, S)}/out.txt"
    assert context_derefpath({dref: [rref]}, [dref, "out.txt"], S) == [f"{rref2path(rref, S)}/out.txt"]


@pytest.mark.embedded_only("the error is made in this process")
@pytest.mark.parametrize("code", [errno.ENOTEMPTY, errno.EEXIST])
def test_d47_a_file_system_may_say_by_either_error_that_a_folder_is_there(
    S: StorageSettings, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    rename, raised = os.rename, []

    def differently(*args: Any, **kwargs: Any) -> None:
        try:
            rename(*args, **kwargs)
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raised.append(code)
                raise OSError(code, os.strerror(code)) from error
            raise

    monkeypatch.setattr(os, "rename", differently)
    rref = realize1(instantiate(stage, S=S))
    config = FsPath(dref2path(next(alldrefs(S)), S), "config.json")
    config.unlink()
    config.write_text("garbled")
    assert realize1(instantiate(stage, S=S)) == rref
    assert raised
    assert drefcfg_(next(alldrefs(S)), S).val == {"name": "stage"}


def test_d53_what_is_in_a_store_can_be_read_by_other_users(S: StorageSettings) -> None:
    old = os.umask(0o077)
    try:
        rref = realize1(instantiate(lambda r: stage(r, realizer=writes({"sub/file": "x"})), S=S))
    finally:
        os.umask(old)
    top = rref2path(rref, S)
    modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (dref2path(next(alldrefs(S)), S), top, f"{top}/sub")]
    assert [mode & 0o055 for mode in modes] == [0o055] * 3
    assert stat.S_IMODE(os.stat(f"{top}/sub/file").st_mode) & 0o044 == 0o044


def low_and_high(r: Registry) -> DRef:
    low = stage(r, "low")
    return stage(r, "high", middle=stage(r, "middle", low=low))


def test_d56_a_storage_of_another_name_is_exported_and_imported(S: StorageSettings, tmp_path: FsPath) -> None:
    root = tmp_path / "apart"
    apart = mkSS(str(root), str(root / "somewhere"))
    fsinit(apart, use_as_default=False)
    rref = realize1(instantiate(low_and_high, S=apart))
    spack([rref], Path(tmp_path / "out.zip"), apart)
    sunpack(Path(tmp_path / "out.zip"), S)
    assert text_of(rref, S) == "high"
    assert set(allrrefs(S)) == set(allrrefs(apart))


def test_d58_what_is_imported_is_whole_though_contexts_name_the_next_only(S: StorageSettings, tmp_path: FsPath) -> None:
    rref = realize1(instantiate(low_and_high, S=S))
    other = new_store(tmp_path / "other")
    copyclosure([rref], S, other)
    assert sorted(dref.rpartition("-")[2] for dref in rrefctx(rref, other)) == ["low", "middle"]
    assert rrefctx(rref, other) == rrefctx(rref, S)


# --- the package --------------------------------------------------------------------------------------


def test_d65_the_package_is_imported_without_a_warning_or_what_python_dropped() -> None:
    modules = ", ".join(f"pylightnix.{name}" for name in ("arch", "either", "garb", "repl", "stages"))
    script = f"import sys, pylightnix, {modules}; print('distutils' in sys.modules)"
    path = os.pathsep.join(sys.path)
    child = subprocess.run([sys.executable, "-W", "error", "-c", script], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert (child.stdout, child.stderr) == ("False\n", "")


GONE = [
    *("promise", "match_best", "initialize", "instantiate_inplace", "realize_inplace", "pack", "mksettings", "mkbuild"),
    "repl_continueAll",
]


def test_d69_the_documents_use_no_name_that_is_gone_and_an_item_is_a_path_already(S: StorageSettings) -> None:
    called = re.compile(rf"\b({'|'.join(GONE)})\(")
    documents = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.py"))]
    former = REPOSITORY / "docs" / "coming-from-0.x.md"
    for document in documents:
        if document != former:
            assert called.findall(document.read_text(encoding="utf-8")) == [], document
    assert not set(GONE) & set(pylightnix.__all__)

    @pylightnix.autostage(name="dataset", file=[selfref, "data.csv"])
    def dataset(file: str) -> None:
        FsPath(file).write_text("1,2")

    @pylightnix.autostage(dataset=dataset, out=[selfref, "out"])
    def model(dataset: Any, out: str) -> None:
        FsPath(out).write_text(FsPath(dataset.file).read_text())

    assert text_of(realize1(instantiate(model, S=S)), S, "out") == "1,2"


# --- at the same time ---------------------------------------------------------------------------------


def spoils(b: Build) -> None:
    """Change everything about its process that others could notice."""
    os.environ["SPOILT"] = "yes"
    os.umask(0o077)
    os.chdir("/tmp")
    sys.path.append("/spoilt")
    with open(f"{build_outpath(b)}/out.txt", "w") as file:
        file.write("spoilt")


def tells(b: Build) -> None:
    with open(f"{build_outpath(b)}/out.txt", "w") as file:
        file.write(f"{os.environ.get('SPOILT')} {os.listdir('.')} {'/spoilt' in sys.path}")


def test_d21_builds_go_on_at_the_same_time_and_do_not_see_each_other(tmp_path: FsPath) -> None:
    with served_store() as S:
        check_builds(S, tmp_path)


def check_builds(served: StorageSettings, tmp_path: FsPath) -> None:
    gates = [str(tmp_path / "to-0"), str(tmp_path / "to-1")]
    for gate in gates:
        os.mkfifo(gate)

    def both(r: Registry) -> list[DRef]:
        return [stage(r, f"side{i}", realizer=build_wrapper(Meeting(gates[i], gates[1 - i]))) for i in range(2)]

    context = realize(instantiate(both, S=served))[2]
    assert [text_of(rref, served) for rrefs in context.values() for rref in rrefs or []] == ["met", "met"]

    def after(r: Registry) -> DRef:
        return stage(r, "after", realizer=build_wrapper(tells), first=stage(r, "first", realizer=build_wrapper(spoils)))

    assert text_of(realize1(instantiate(after, S=served)), served) == "None [] False"


class Meeting:
    """The function of one of two builds, neither of which ends before the other is running."""

    def __init__(self, own: str, other: str) -> None:
        self.own, self.other = own, other

    def __call__(self, b: Build) -> None:
        # Opened for both, no end waits for another; what is read was written by who is running.
        with (
            open(os.open(self.own, os.O_RDWR), "rb", buffering=0) as mine,
            open(os.open(self.other, os.O_RDWR), "wb", buffering=0) as theirs,
        ):
            theirs.write(b"x")
            mine.read(1)
        with open(f"{build_outpath(b)}/out.txt", "w") as file:
            file.write("met")


def test_d46_many_write_one_object_and_nothing_left_by_a_crash_is_in_the_way(S: StorageSettings) -> None:
    dref = instantiate(stage, S=S)[0]
    folder = dref2path(DRef(str(dref)), S)
    os.mkdir(f"{folder}.tmp")
    os.mkdir(f"{folder}/{'0' * 32}.tmp")
    found: list[RRef] = []
    threads = [threading.Thread(target=lambda: found.append(realize1(instantiate(stage, S=S)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert set(found) == set(allrrefs(S)) == {found[0]}
    assert text_of(found[0], S) == "stage"


def test_d48_what_a_build_works_with_is_not_removed(S: StorageSettings) -> None:
    refused: list[str] = Notes()  # type: ignore[assignment]  # a list that builds elsewhere append to, too

    def realizer(b: Build) -> None:
        (below,) = (rref for rrefs in b.context.values() for rref in rrefs or [])
        for ref in (below, next(iter(b.context)), b.dref):
            try:
                rmref(ref, b.S)
            except (InUse, StoreBusy) as error:
                refused.append(type(error).__name__)
        with open(f"{build_outpath(b)}/out.txt", "w") as file:
            file.write(text_of(below, S))

    rref = realize1(instantiate(lambda r: stage(r, "above", realizer=build_wrapper(realizer), below=stage(r, "below")), S=S))
    assert len(list(refused)) == 3
    assert text_of(rref, S) == "below"


def test_d49_nothing_is_left_in_the_temporary_folder(S: StorageSettings, tmp_path: FsPath) -> None:
    def fails(b: Build) -> None:
        with open(f"{build_outpath(b)}/half.txt", "w") as file:
            file.write("half")
        raise ValueError("no luck")

    with pytest.raises(BuildError) as caught:
        realize(instantiate(lambda r: stage(r, "fails", realizer=build_wrapper(fails)), S=S))
    assert [os.listdir(path) for path in caught.value.outpaths] != []
    check_tmp(S)
    assert either_isLeft(realizeE(instantiate(lambda r: mkdrvE(mkconfig({"name": "left"}), match_latest(), build_wrapper(fails), r), S=S)))
    check_tmp(S)
    rref = realize1(instantiate(stage, S=S))
    spack([rref], Path(tmp_path / "out"), S)
    whole = (tmp_path / "out").read_bytes()
    (tmp_path / "out").write_bytes(whole[:-20])
    with pytest.raises(InvalidArchive):
        sunpack(Path(tmp_path / "out"), S)
    with pytest.raises(ArchiveIOError):
        spack([rref], Path(tmp_path / "no" / "out"), S)
    check_tmp(S)
