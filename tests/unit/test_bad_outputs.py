"""Realizers that raise, return nonsense or leave what no store can hold: what is said, and what stays."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path as FsPath
from typing import Any, Optional

import pytest
from tests.stores import AS_ROOT, Notes, check_error, is_served, needs_root, output, refuses, stage, text_of, unharmed, write_files, writes

from pylightnix import (
    Build,
    BuildError,
    Context,
    DRef,
    InvalidOutput,
    Misuse,
    Output,
    Path,
    PromiseException,
    Realizer,
    Registry,
    RemoteFailure,
    StorageSettings,
    allrrefs,
    build_outpath,
    build_wrapper,
    fstmpdir,
    instantiate,
    output_realizer,
    realize,
    realize1,
    rref2path,
    selfref,
)

pytestmark = pytest.mark.language

Answers = Callable[[StorageSettings], Any]
"""What a realizer returns, made of the settings that it is called with."""


def answering(answers: Answers) -> Realizer:
    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        answer: list[Path] = answers(S)
        return answer

    return realizer


def leaving(leave: Callable[[str], object]) -> Realizer:
    """Return a realizer whose one output is filled by `leave`."""

    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        folder = output(S)
        leave(folder)
        return [folder]

    return realizer


def listed(answers: Answers, S: StorageSettings) -> list[Any]:
    return [answers(S)]


def refused(S: StorageSettings, realizer: Realizer, *facts: str) -> None:
    """Check that what the realizer leaves is refused, with these facts in the text, and the store unharmed."""
    all_refused(S, [(realizer, *facts)])


def all_refused(S: StorageSettings, cases: Iterable[tuple[Any, ...]]) -> None:
    """Check the same of many realizers, each with its facts, one after the other on the same store."""
    closures = [(instantiate(lambda r, made=realizer: stage(r, "bad", realizer=made), S=S), facts) for realizer, *facts in cases]
    with unharmed(S):
        for closure, facts in closures:
            with pytest.raises(InvalidOutput) as caught:
                realize(closure)
            check_error(caught.value, InvalidOutput, "invalid-output", 1, f"output of {closure[0]}", *facts)


# --- raising ------------------------------------------------------------------------------------------


class NoSuchLuck(Exception):
    """An error of a user's, which only knows its own constructor."""

    def __init__(self, number: int, *, why: str) -> None:
        super().__init__(number)
        self.why = why


def test_d49_what_a_raw_realizer_raises_arrives_as_it_is(S: StorageSettings) -> None:
    raised = Notes()

    def fails(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        output(S)
        error = NoSuchLuck(7, why="rain") if rarg["picky"] else ValueError(7)
        raised.append(id(error))
        raise error

    dref, closure = instantiate(lambda r: stage(r, realizer=fails), S=S)
    with unharmed(S):
        with pytest.raises(ValueError, match=r"^7$") as caught:
            realize(closure, realize_args={dref: {"picky": False}})
        assert type(caught.value) is ValueError
        with pytest.raises(NoSuchLuck) as picky:
            realize(closure, realize_args={dref: {"picky": True}})
        assert isinstance(picky.value, NoSuchLuck)
        assert (picky.value.args, picky.value.why) == ((7,), "rain")
        if not is_served(S):
            assert [id(caught.value), id(picky.value)] == raised
            assert (picky.value.__cause__, picky.value.__context__) == (None, None)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_passes_through_and_what_was_finished_stays(S: StorageSettings, kind: type[BaseException]) -> None:
    def interrupted(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        output(S)
        raise kind

    def main(r: Registry, realizer: Realizer = interrupted, below: Optional[Realizer] = None) -> DRef:
        return stage(r, "above", realizer=realizer, below=stage(r, "below", realizer=below))

    # A daemon makes none of the others of it: they would end the program that asks as if it had meant to.
    with pytest.raises(RemoteFailure if is_served(S) and kind is not KeyboardInterrupt else kind) as caught:
        realize(instantiate(main, S=S))
    if isinstance(caught.value, RemoteFailure):
        assert caught.value.type_name == kind.__name__
    assert [rref.partition("-")[2].partition("-")[2] for rref in allrrefs(S)] == ["below"]
    with unharmed(S):
        pass
    assert realize1(instantiate(main, realizer=writes(), below=refuses, S=S))


def test_what_was_finished_before_a_failure_stays(S: StorageSettings) -> None:
    def main(below: Realizer, above: Realizer, r: Registry) -> DRef:
        return stage(r, "above", realizer=above, below=[stage(r, name, realizer=below) for name in ("one", "two")])

    with pytest.raises(AssertionError, match="was built"):
        realize(instantiate(main, writes(), refuses, S=S))
    assert len(list(allrrefs(S))) == 2
    with unharmed(S):
        assert len(set(allrrefs(S))) == 2
    assert realize1(instantiate(main, refuses, writes(), S=S))


def test_a_simplified_realizer_that_raises_keeps_what_it_left(S: StorageSettings) -> None:
    def fails(build: Build) -> None:
        write_files(build_outpath(build), {"half.txt": "half"})
        raise NoSuchLuck(7, why="rain")

    closure = instantiate(lambda r: stage(r, realizer=build_wrapper(fails)), S=S)
    with unharmed(S):
        with pytest.raises(BuildError) as caught:
            realize(closure)
        raised = caught.value
        assert isinstance(raised.exception, NoSuchLuck)
        assert (raised.exception.args, raised.exception.why) == ((7,), "rain")
        [kept] = raised.outpaths
        assert FsPath(kept, "half.txt").read_text() == "half"
        for fact in (closure[0], "7", kept):
            assert fact in str(raised)
        assert (raised.code, raised.exit_status) == ("build-failed", 1)
        assert not kept.startswith(fstmpdir(S))


# --- returning ----------------------------------------------------------------------------------------


def given(answer: Any, S: StorageSettings) -> Any:
    return answer


def test_what_is_no_list_of_folders(S: StorageSettings) -> None:
    answers: dict[str, Any] = {
        "returned None": None,
        "returned []": [],
        "returned ()": (),
        "returned '/tmp'": "/tmp",
        "returned {'out': '/tmp'}": {"out": "/tmp"},
        "returned Output(['/tmp'])": Output(["/tmp"]),
        "returned 7": 7,
    }
    advice = "expected a list of one or more output folders"
    all_refused(S, [(answering(partial(given, answer)), "its realizer", problem, advice) for problem, answer in answers.items()])


def test_a_realizer_that_forgets_to_return(S: StorageSettings) -> None:
    def forgets(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> Any:
        output(S)

    refused(S, forgets, "returned None", "expected a list")


def and_an_output(item: Any, S: StorageSettings) -> list[Any]:
    return [output(S), item]


def test_what_is_no_path_among_outputs(S: StorageSettings) -> None:
    items: list[Any] = [None, b"/tmp", 7, ["/tmp"], DRef]
    facts = "its realizer", "expected the path of a folder"
    all_refused(S, [(answering(partial(and_an_output, item)), f"returned {item!r} as an output", *facts) for item in items])


def made_link(S: StorageSettings) -> str:
    target = output(S)
    link = f"{fstmpdir(S)}/link"
    os.symlink(target, link)
    return link


def made_file(S: StorageSettings) -> str:
    path = f"{fstmpdir(S)}/file"
    FsPath(path).write_text("file")
    return path


def made_fifo(S: StorageSettings) -> str:
    path = f"{fstmpdir(S)}/fifo"
    os.mkfifo(path)
    return path


def not_made(S: StorageSettings) -> str:
    return f"{fstmpdir(S)}/nothing"


def test_an_output_that_is_no_folder(S: StorageSettings) -> None:
    answers = {made_link: "link: is not a", made_file: "file: is not a", made_fifo: "fifo: is not a", not_made: "nothing: does not exist"}
    tmp = f"{fstmpdir(S)}/"
    all_refused(S, [(answering(partial(listed, made)), tmp, f"/{problem}") for made, problem in answers.items()])


def a_path_through_a_link(S: StorageSettings) -> str:
    os.mkdir(f"{fstmpdir(S)}/real")
    os.mkdir(f"{fstmpdir(S)}/real/out")
    os.symlink("real", f"{fstmpdir(S)}/link")
    return f"{fstmpdir(S)}/link/out"


def test_an_output_behind_a_link(S: StorageSettings) -> None:
    refused(S, answering(lambda S: [a_path_through_a_link(S)]), "/link/out", "without following a link", "fstmpdir(S)")


def test_an_output_behind_a_link_out_of_the_build_folder(S: StorageSettings, tmp_path: FsPath) -> None:
    outside = tmp_path / "outside"
    (outside / "out").mkdir(parents=True)

    def link(S: StorageSettings) -> str:
        os.symlink(outside, f"{fstmpdir(S)}/link")
        return f"{fstmpdir(S)}/link/out"

    refused(S, answering(lambda S: [link(S)]), "without following a link")
    assert os.listdir(outside) == ["out"]


def test_folders_that_are_not_of_this_build(S: StorageSettings, tmp_path: FsPath, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("theirs")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(outside)
    neighbour = realize1(instantiate(lambda r: stage(r, "neighbour"), S=S))
    tmp = fstmpdir(S)
    given: list[Answers] = [
        lambda S: outside,
        lambda S: ".",
        lambda S: "",
        lambda S: "/",
        lambda S: os.path.expanduser("~"),
        fstmpdir,
        lambda S: f"{fstmpdir(S)}/.",
        lambda S: f"{fstmpdir(S)}/..",
        lambda S: f"{fstmpdir(S)}/out/../../../..",
        lambda S: tmp,
        lambda S: S.root,
        lambda S: S.storage,
        lambda S: rref2path(neighbour, S),
        lambda S: os.path.dirname(rref2path(neighbour, S)),
    ]
    facts = "is not a folder of this build (", "make output folders under fstmpdir(S)"
    all_refused(S, [(answering(partial(listed, answers)), *facts) for answers in given])
    assert (outside / "file").read_text() == "theirs"
    assert stat.S_IMODE(outside.stat().st_mode) == stat.S_IMODE(home.stat().st_mode)
    assert text_of(neighbour, S) == "neighbour"


def test_a_folder_of_another_build(S: StorageSettings) -> None:
    """While one build runs, one inside it returns a folder of the outer one."""
    seen = Notes()

    def outer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        mine = output(S, {"mine.txt": "mine"})
        inner = answering(lambda _: [mine])
        with pytest.raises(InvalidOutput) as caught:
            realize(instantiate(lambda r: stage(r, "inner", realizer=inner), S=store, r=Registry(store)))
        seen.append(caught.value)
        return [mine]

    store = S
    rref = realize1(instantiate(lambda r: stage(r, "outer", realizer=outer), S=S))
    check_error(seen[0], InvalidOutput, "invalid-output", 1, "is not a folder of this build")
    assert text_of(rref, S, "mine.txt") == "mine"
    with unharmed(S):
        pass


def test_the_same_output_twice(S: StorageSettings) -> None:
    def twice(S: StorageSettings) -> list[str]:
        folder = output(S)
        return [folder, output(S), f"{os.path.dirname(folder)}/./{os.path.basename(folder)}/"]

    refused(S, answering(twice), "was returned twice", "return each output folder once")


def test_an_output_inside_another(S: StorageSettings) -> None:
    def nested(S: StorageSettings) -> list[str]:
        folder = output(S, {"inner/file": "text"})
        return [f"{folder}/inner", folder]

    refused(S, answering(nested), "holds another output", "beside each other")


def test_an_output_deeper_in_the_build_folder_is_fine(S: StorageSettings) -> None:
    def deeper(S: StorageSettings) -> list[str]:
        write_files(fstmpdir(S), {"a/b/out/out.txt": "deep", "a/rest": "dropped"})
        return [os.path.join(fstmpdir(S), "a", "b", "out")]

    rref = realize1(instantiate(lambda r: stage(r, realizer=answering(deeper)), S=S))
    assert text_of(rref, S) == "deep"
    with unharmed(S):
        pass


def test_a_second_output_that_is_refused_takes_the_first_with_it(S: StorageSettings) -> None:
    refused(S, answering(lambda S: [output(S), made_file(S)]), "is not a folder")
    assert len([rref for rref in allrrefs(S) if rref.endswith("-bad")]) == 0


# --- leaving ------------------------------------------------------------------------------------------


def test_no_promised_file(S: StorageSettings) -> None:
    promises: dict[str, Any] = {
        "result": [selfref, "result.txt"],
        "more": {"deep": [[selfref, "folder", "file"]]},
        "kept": [selfref, "out.txt"],
    }

    def check(closure: Any) -> None:
        with unharmed(S):
            with pytest.raises(PromiseException) as caught:
                realize(closure)
            check_error(
                caught.value, PromiseException, "broken-promise", 1, closure[0], "result.txt in /", "folder/file in /", "drop the self-"
            )
            assert caught.value.dref == closure[0]
            assert sorted(path for _, path in caught.value.failed) == [[selfref, "folder", "file"], [selfref, "result.txt"]]
            for folder, _ in caught.value.failed:
                assert os.path.isdir(folder)
                assert f" in {folder}" in str(caught.value)

    plain = output_realizer(lambda S, dref, context, rarg: Output([output(S)]))
    check(instantiate(lambda r: stage(r, "raw", realizer=plain, **promises), S=S))
    simple = build_wrapper(lambda b: write_files(build_outpath(b), {"out.txt": "text"}))
    check(instantiate(lambda r: stage(r, "simple", realizer=simple, **promises), S=S))


def test_only_one_of_two_outputs_keeps_the_promise(S: StorageSettings) -> None:
    def makes(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> Output[Path]:
        return Output([output(S, {"a": "1"}), output(S, {"b": "2"})])

    closure = instantiate(lambda r: stage(r, realizer=output_realizer(makes), promise=[selfref, "a"]), S=S)
    with unharmed(S):
        with pytest.raises(PromiseException) as caught:
            realize(closure)
        assert len(caught.value.failed) == 1


def test_no_outputs_were_declared(S: StorageSettings) -> None:
    closure = instantiate(lambda r: stage(r, realizer=build_wrapper(lambda b: None, nouts=None)), S=S)
    with unharmed(S):
        with pytest.raises(Misuse) as caught:
            realize(closure)
        check_error(caught.value, Misuse, "misuse", 2, closure[0], "has no outputs", "build_markstart")


def as_folder(path: str) -> None:
    os.mkdir(path)


def as_link(path: str) -> None:
    os.symlink("out.txt", path)


def as_file(path: str) -> None:
    FsPath(path).write_text("{}")


def as_fifo(path: str) -> None:
    os.mkfifo(path)


RESERVED = ["context.json", "__buildstart__.txt", "__buildstop__.txt"]


def left_as(name: str, leave: Callable[[str], None], folder: str) -> None:
    os.makedirs(os.path.dirname(f"{folder}/{name}"), exist_ok=True)
    leave(f"{folder}/{name}")


def test_d13_reserved_names(S: StorageSettings) -> None:
    # The stamps are for realizers to write, but only as files.
    cases = [(as_file, "context.json"), *((leave, name) for leave in (as_folder, as_link, as_fifo) for name in RESERVED)]
    facts = "has a reserved name", "choose another"
    all_refused(S, [(leaving(partial(left_as, name, leave)), f"/{name}: ", *facts) for leave, name in cases])


def test_reserved_names_are_free_further_down(S: StorageSettings) -> None:
    files = {"sub/context.json": "{}", "sub/__buildstart__.txt": "x", "__buildstart__.txt": "start", "__buildstop__.txt": "stop"}
    rref = realize1(instantiate(lambda r: stage(r, realizer=writes(files)), S=S))
    assert {name: text_of(rref, S, name) for name in files} == files


def as_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        # The path of a socket is short, so go by the folder.
        fd = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            listening.bind(f"/proc/self/fd/{fd}/{os.path.basename(path)}")
        finally:
            os.close(fd)


def test_special_files(S: StorageSettings) -> None:
    cases = [(leave, kind, name) for leave, kind in ((as_fifo, "FIFO"), (as_socket, "socket")) for name in ("special", "sub/special")]
    facts = ("regular files, folders and symbolic links",)
    all_refused(S, [(leaving(partial(left_as, name, leave)), f"/{name}", kind, *facts) for leave, kind, name in cases])


@needs_root
def test_devices(S: StorageSettings) -> None:
    def leaves(folder: str) -> None:
        os.mknod(f"{folder}/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))

    refused(S, leaving(leaves), "/null", "device", "regular files, folders and symbolic links")


@pytest.mark.parametrize("bit", [stat.S_ISUID, stat.S_ISGID])
def test_set_id_programs(S: StorageSettings, bit: int) -> None:
    refused(S, leaving(lambda folder: os.chmod(f"{folder}/out.txt", 0o755 | bit)), "/out.txt: is a set-id program", "chmod ug-s")


def test_a_hard_link_is_copied_and_the_file_outside_stays_as_it_is(S: StorageSettings, tmp_path: FsPath) -> None:
    outside = tmp_path / "outside"
    outside.write_text("theirs")
    outside.chmod(0o640)
    before = outside.stat()
    rref = realize1(instantiate(lambda r: stage(r, realizer=leaving(lambda folder: os.link(outside, f"{folder}/linked"))), S=S))
    stored = FsPath(rref2path(rref, S), "linked")
    assert stored.read_text() == "theirs"
    assert stat.S_IMODE(stored.stat().st_mode) == 0o444
    assert stored.stat().st_nlink == 1
    after = outside.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink, after.st_ino) == (before.st_mode, before.st_mtime_ns, 1, before.st_ino)
    outside.write_text("changed")
    assert stored.read_text() == "theirs"
    with unharmed(S):
        pass


def test_a_link_out_of_the_store_is_kept_as_a_link_and_its_target_left_alone(S: StorageSettings, tmp_path: FsPath) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("theirs")
    mode = outside.stat().st_mode

    def leaves(folder: str) -> None:
        os.symlink(outside, f"{folder}/folder")
        os.symlink(outside / "file", f"{folder}/file")
        os.symlink("nowhere", f"{folder}/dangling")

    rref = realize1(instantiate(lambda r: stage(r, realizer=leaving(leaves)), S=S))
    assert os.readlink(f"{rref2path(rref, S)}/folder") == str(outside)
    assert os.readlink(f"{rref2path(rref, S)}/dangling") == "nowhere"
    assert outside.stat().st_mode == mode
    assert os.access(outside / "file", os.W_OK)


def test_names_that_are_not_text(S: StorageSettings) -> None:
    def leaves(folder: str) -> None:
        os.close(os.open(os.fsencode(folder) + b"/\xff\n", os.O_CREAT | os.O_WRONLY))
        os.mkfifo(os.fsencode(folder) + b"/\xfe")

    refused(S, leaving(leaves), r"/\xfe")


def test_a_realizer_that_removes_its_folder(S: StorageSettings) -> None:
    def removes(S: StorageSettings) -> list[str]:
        folder = output(S)
        shutil.rmtree(fstmpdir(S))
        return [folder]

    with pytest.raises((InvalidOutput, FileNotFoundError)):
        realize(instantiate(lambda r: stage(r, realizer=answering(removes)), S=S))
    with unharmed(S):
        pass


@pytest.mark.skipif(AS_ROOT, reason="root reads everything")
def test_what_may_not_be_read_is_made_readable(S: StorageSettings) -> None:
    rref = realize1(instantiate(lambda r: stage(r, realizer=leaving(lambda folder: os.chmod(f"{folder}/out.txt", 0))), S=S))
    assert text_of(rref, S) == "text"
