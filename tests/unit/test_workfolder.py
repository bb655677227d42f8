"""The working folder of a build: empty, its own, the same with a daemon and without, and nothing to the program around it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path as FsPath
from typing import Any

import pytest
from tests.stores import OTHER_UID, check_tmp, in_child, needs_root, new_store, stage, text_of

from pylightnix import (
    Build,
    BuildError,
    Context,
    DRef,
    InvalidOutput,
    Path,
    PromiseException,
    Registry,
    RRef,
    StorageSettings,
    autostage,
    build_outpath,
    build_wrapper,
    command,
    current_registry,
    either_status,
    instantiate,
    match_latest,
    match_only,
    mkconfig,
    mkdrv,
    mkdrvE,
    mkSS,
    realize1,
    realizeE,
    realizeMany,
    selfref,
)
from pylightnix.workfolder import _Shared

pytestmark = pytest.mark.language
EMBEDDED = pytest.mark.embedded_only("it is about the process that realizes")


def built(f: Any, r: Registry, name: str = "stage", nouts: int = 1, **config: Any) -> DRef:
    return mkdrv(mkconfig({"name": name, **config}), match_latest(nouts), build_wrapper(f, nouts), r)


def make(S: StorageSettings, f: Any, **config: Any) -> RRef:
    return realize1(instantiate(lambda r: built(f, r, **config), S=S))


def writes_where(b: Build) -> None:
    with open(f"{build_outpath(b)}/out.txt", "w") as file:
        file.write(f"{os.listdir('.')} {os.getcwd()}")
    with open("temporary", "w") as file:
        file.write("x")


class Unpicklable:
    """The function of a build that runs in the program that asks for it, with a daemon too."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, b: Build) -> None:
        writes_where(b)


def test_builds_work_in_an_empty_folder_of_their_own(S: StorageSettings) -> None:
    before = os.getcwd()
    found = [text_of(make(S, f, number=number), S) for number, f in enumerate((writes_where, writes_where, Unpicklable()))]
    entries, folders = zip(*(text.split(" ", 1) for text in found), strict=True)
    assert set(entries) == {"[]"}
    assert len(set(folders)) == 3
    assert all(folder.startswith(f"{S.root}/tmp/") and not os.path.exists(folder) for folder in folders)
    assert os.getcwd() == before
    check_tmp(S)


def test_outputs_may_be_named_by_relative_paths(S: StorageSettings) -> None:
    def relative(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        for name in ("one", "two"):
            os.mkdir(name)
            with open(f"{name}/out.txt", "w") as file:
                file.write(name)
        return [Path("one"), FsPath("two")]  # type: ignore[list-item]  # what programs write

    rrefs = realizeMany(instantiate(lambda r: stage(r, realizer=relative, matcher=match_latest(2)), S=S))
    assert sorted(text_of(rref, S) for rref in rrefs) == ["one", "two"]
    check_tmp(S)


def test_the_working_folder_itself_is_no_output(S: StorageSettings) -> None:
    for path in (".", "", "./sub/.."):

        def here(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any], path: str = path) -> list[Path]:
            return [Path(path)]

        with pytest.raises(InvalidOutput, match="but the one that it works in"):
            realize1(instantiate(lambda r, here=here, path=path: stage(r, realizer=here, path=path), S=S))
    check_tmp(S)


# --- what is left there -------------------------------------------------------------------------------


def leaves(*names: str) -> Any:
    def f(b: Build) -> None:
        for name in names:
            os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
            with open(name, "w") as file:
                file.write("x")

    return f


def broken_promise(closure: Any) -> PromiseException:
    with pytest.raises(PromiseException) as caught:
        realize1(closure)
    return caught.value


def test_missing_promises_name_what_was_left(S: StorageSettings) -> None:
    for left in (["x.csv"], ["sub/x.csv"], ["a b", "x\udcff"], [f"{number}.csv" for number in range(9)], []):
        error = broken_promise(instantiate(lambda r, left=left: built(leaves(*left), r, out=[selfref, "x.csv"], left=repr(left)), S=S))
        assert error.left == sorted({name.split("/")[0] for name in left})
        assert all(name in str(error) for name in ["x.csv"])
        if left:
            assert "in the working folder)" in str(error)
            assert len(str(error).splitlines()) == 1
        assert ("`x.csv`" in str(error)) == (left == ["x.csv"])
        assert ("…" in str(error)) == (len(left) > 5)
        # It is kept with the output that lacks it.
        kept = os.path.dirname(error.failed[0][0])
        assert any(name.startswith("work-") for name in os.listdir(kept)) == bool(left)
    check_tmp(S)


def test_programs_samples_and_eithers_tell_it_too(S: StorageSettings) -> None:
    def program(r: Registry) -> DRef:
        return command(["sh", "-c", "cat data >y.csv"], inputs={"data": stage(r, "data")}, env={"PATH": os.defpath}, r=r)

    error = broken_promise(instantiate(lambda r: command(["touch", "y.csv"], env={"PATH": os.defpath}, r=r), S=S))
    assert error.left == ["y.csv"]
    with pytest.raises(BuildError):  # `data` is a folder; what was given there was not left there
        realize1(instantiate(program, S=S))

    def samples(r: Registry) -> DRef:
        with current_registry(r):

            @autostage(name="sampled", out=[selfref, "out.csv"], nouts=3)
            def sampled(out: str, rindex: int) -> None:
                assert os.listdir(".") == []
                with open(f"{rindex}.csv", "w") as file:
                    file.write("x")

            return sampled()

    assert broken_promise(instantiate(samples, S=S)).left == ["0.csv", "1.csv", "2.csv"]

    def either(r: Registry) -> DRef:
        return mkdrvE(mkconfig({"name": "either", "out": [selfref, "out.csv"]}), match_only(), build_wrapper(leaves("z.csv")), r)

    assert "(left `z.csv` in the working folder)" in str(either_status(realizeE(instantiate(either, S=S))))
    check_tmp(S)


# --- relative paths of the program ----------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: FsPath, monkeypatch: pytest.MonkeyPatch) -> FsPath:
    """The working folder of the program, with files in it."""
    folder = tmp_path / "program"
    (folder / "sub").mkdir(parents=True)
    (folder / "data.csv").write_text("1")
    (folder / "sub/data.csv").write_text("2")
    monkeypatch.chdir(folder)
    return folder


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def opens(b: Build) -> None:
    read("data.csv")


def lists(b: Build) -> None:
    os.listdir(b"sub")


def hides(b: Build) -> None:
    try:
        read("sub/data.csv")
    except FileNotFoundError as error:
        raise ValueError("no data") from error


def runs(b: Build) -> None:
    subprocess.run(["./data.csv"], check=True)


def misses(b: Build) -> None:
    read("elsewhere.csv")


def test_files_of_the_program_are_not_found_and_the_error_says_where_they_are(S: StorageSettings, here: FsPath) -> None:
    for f, path in ((opens, "data.csv"), (lists, "sub"), (hides, "sub/data.csv"), (runs, "./data.csv"), (misses, None)):
        with pytest.raises(BuildError) as caught:
            make(S, f, of=f.__name__)
        notes = getattr(caught.value, "__notes__", [])
        assert len(notes) == (path is not None), f
        if path is not None:
            assert notes[0].startswith(f"{path} is in {here}, where the program works")
            assert f"source({path!r})" in notes[0]

    def raw(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        opens(None)  # type: ignore[arg-type]  # it does not look
        return []

    with pytest.raises(FileNotFoundError) as missing:
        realize1(instantiate(lambda r: stage(r, realizer=raw), S=S))
    assert missing.value.__notes__[0].startswith("data.csv is in ")


def test_relative_settings_mean_in_a_build_what_they_meant_outside(S: StorageSettings, here: FsPath) -> None:
    new_store(here / "beside")
    beside = mkSS("beside")

    def nests(b: Build) -> None:
        rref = realize1(instantiate(lambda r: stage(r, "inner"), S=beside))
        with open(f"{build_outpath(b)}/out.txt", "w") as file:
            file.write(text_of(rref, beside))

    assert text_of(make(S, nests), S) == "inner"
    assert os.listdir(here / "beside/store-v1")


PROGRAM = """
import os, sys
assert sys.path[0] == ""
from pylightnix import *
def f(build):
    import local_module
    with open(f"{build_outpath(build)}/out.txt", "w") as file:
        file.write(local_module.VALUE + os.environ["PYLIGHTNIX_ROOT"])
fsinit(mkSS("store"))
rref = realize1(instantiate(lambda r: mkdrv(mkconfig({"name": "x"}), match_only(), build_wrapper(f), r)))
print(open(rref2path(rref) + "/out.txt").read(), os.environ["PYLIGHTNIX_ROOT"], sys.path[0] == "", os.getcwd() in sys.path)
"""


def test_modules_and_variables_of_the_program_are_found_from_a_build(tmp_path: FsPath) -> None:
    (tmp_path / "local_module.py").write_text("VALUE = 'found '")
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env={**os.environ, "PYLIGHTNIX_ROOT": "store"}, capture_output=True, text=True
    )
    assert child.stdout == f"found {tmp_path}/store store True False\n", child.stderr


# --- the program's own working folder --------------------------------------------------------------------


@EMBEDDED
def test_realizers_that_move_raise_or_nest_leave_the_program_where_it_was(S: StorageSettings, here: FsPath) -> None:
    def moves(b: Build) -> None:
        os.chdir("/")

    def removes(b: Build) -> None:
        shutil.rmtree(os.getcwd())

    def fails(b: Build) -> None:
        os.chdir("/tmp")
        raise ValueError("on purpose")

    def nests(b: Build) -> None:
        own = os.getcwd()
        for f in (moves, removes):
            make(S, f, nested=f.__name__)
            assert os.getcwd() == own

    for f in (moves, removes, nests):
        make(S, f, of=f.__name__)
        assert os.getcwd() == str(here), f
    with pytest.raises(BuildError):
        make(S, fails)
    assert os.getcwd() == str(here)
    check_tmp(S)


@EMBEDDED
def test_processes_that_a_realizer_forks_harm_nothing(S: StorageSettings, here: FsPath) -> None:
    def forks(b: Build) -> None:
        with open("mine", "w") as file:
            file.write("x")
        pid = os.fork()
        if pid == 0:
            return  # into the code around the realizer
        os.waitpid(pid, 0)
        assert os.listdir(".") == ["mine"]

    make(S, forks)
    assert os.getcwd() == str(here)
    check_tmp(S)


@EMBEDDED
def test_threads_that_build_at_once_have_a_folder_each_and_disturb_nobody(S: StorageSettings, here: FsPath) -> None:
    meeting = threading.Barrier(4)

    def meets(b: Build) -> None:
        meeting.wait(60)  # all are in their folders
        meeting.wait(60)  # the program has looked at its own
        writes_where(b)

    found: list[str] = []
    threads = [threading.Thread(target=lambda n=n: found.append(text_of(make(S, meets, number=n), S))) for n in range(3)]
    for thread in threads:
        thread.start()
    meeting.wait(60)
    assert os.getcwd() == str(here)
    meeting.wait(60)
    for thread in threads:
        thread.join()
    assert len({text.split(" ", 1)[1] for text in found}) == 3
    assert all(text.startswith("[] ") for text in found)
    assert os.getcwd() == str(here)
    check_tmp(S)


def test_where_threads_cannot_part_builds_never_work_in_the_programs_folder(here: FsPath, tmp_path: FsPath) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    shared = _Shared()
    leave = {name: shared.enter(str(tmp_path / name)) for name in "abc"}
    assert os.getcwd() == str(tmp_path / "c")
    for name, left in (("b", "c"), ("c", "a")):
        leave[name]()
        assert os.getcwd() == str(tmp_path / left)
    leave["a"]()
    assert os.getcwd() == str(here)


@EMBEDDED
def test_a_program_whose_folder_was_removed_goes_on(S: StorageSettings, here: FsPath) -> None:
    shutil.rmtree(here)
    assert text_of(make(S, writes_where), S).startswith("[] ")
    with pytest.raises(FileNotFoundError):
        os.getcwd()
    with pytest.raises(BuildError):
        make(S, opens, of="opens")
    with pytest.raises(PromiseException, match=r"left `x\.csv`"):
        make(S, leaves("x.csv"), out=[selfref, "out.csv"])


@needs_root
@EMBEDDED
def test_a_program_whose_folder_its_user_may_not_enter(S: StorageSettings, others_folder: FsPath, here: FsPath) -> None:
    os.chmod(here, 0o700)

    def build() -> str:
        theirs = new_store(others_folder / "store")
        return text_of(make(theirs, writes_where), theirs)

    assert in_child(build, uid=OTHER_UID).startswith("[] ")
