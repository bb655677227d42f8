from __future__ import annotations

import hashlib
import os
import pathlib
import pickle
import stat
from collections.abc import Callable
from typing import Any, Optional

import pytest
from tests.stores import check_tmp, check_usable, refuses, text_of, writes

from pylightnix import (
    BuildError,
    CommandFailed,
    Derivation,
    DRef,
    InvalidOutput,
    Misuse,
    PromiseException,
    Registry,
    RRef,
    StorageSettings,
    current_registry,
    drefcfg_,
    fetchlocal,
    fetchurl,
    fetchurl2,
    instantiate,
    match_some,
    mkconfig,
    mkdrv,
    mkregistry,
    realize1,
    redefine,
    rref2path,
    selfref,
    source,
    unpack,
)
from pylightnix.codekey import pyobjhash
from pylightnix.stages import command, mknode
from pylightnix.stages.command import CommandRealizer

pytestmark = pytest.mark.language


def make(S: StorageSettings, stage: Any, *args: Any, **kwargs: Any) -> RRef:
    return realize1(instantiate(lambda r: stage(*args, **kwargs, r=r), S=S))


def shell(S: StorageSettings, script: str, *, env: Optional[dict[str, Any]] = None, **kwargs: Any) -> RRef:
    return make(S, command, ["sh", "-c", script], {"out": [selfref, "out"], "PATH": os.environ["PATH"], **(env or {})}, **kwargs)


def failure(S: StorageSettings, *args: Any, **kwargs: Any) -> CommandFailed:
    with pytest.raises(BuildError) as raised:
        shell(S, *args, **kwargs)
    error = raised.value.exception
    assert isinstance(error, CommandFailed)
    return error


# --- mknode -------------------------------------------------------------------------------------------


def test_node_has_its_bytes_and_their_digests(S: StorageSettings) -> None:
    rref = make(S, mknode, cfgdict={"a": 1, "name": "ignored"}, artifacts={"x": b"\0\xff", "y": b""}, name="node")
    folder = rref2path(rref, S)
    assert pathlib.Path(folder, "x").read_bytes() == b"\0\xff"
    assert pathlib.Path(folder, "y").read_bytes() == b""
    config = drefcfg_(DRef("dref:" + rref.split("-", 1)[1]), S).val
    digests = {"x": hashlib.sha256(b"\0\xff").hexdigest(), "y": hashlib.sha256(b"").hexdigest()}
    assert config == {"a": 1, "name": "node", "__artifacts__": digests}


def test_node_without_artifacts(S: StorageSettings) -> None:
    r = mkregistry(S)
    assert mknode(r, {}).endswith("-mknode")
    with current_registry(r):
        assert mknode(None, {}) == mknode(r, {})


def test_node_is_its_bytes(S: StorageSettings) -> None:
    r = mkregistry(S)
    assert mknode(r, {}, {"x": b"1"}) != mknode(r, {}, {"x": b"2"})
    assert mknode(r, {}, {"x": b"1", "y": b""}) == mknode(r, {}, {"y": b"", "x": bytearray(b"1")})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "a\0", "context.json", "__buildstart__.txt", "__buildstop__.txt", "x" * 256, "é" * 200, 3]
)
def test_d64_names_that_are_not_of_plain_files_are_refused(S: StorageSettings, name: Any) -> None:
    with pytest.raises(Misuse, match="names of plain files"):
        mknode(mkregistry(S), {}, {name: b""})


@pytest.mark.parametrize("data", ["text", 3, None])
def test_contents_are_bytes(S: StorageSettings, data: Any) -> None:
    with pytest.raises(Misuse, match="expects bytes"):
        mknode(mkregistry(S), {}, {"x": data})


def test_item_of_the_stage_itself_is_refused(S: StorageSettings) -> None:
    with pytest.raises(Misuse, match="__artifacts__"):
        mknode(mkregistry(S), {"__artifacts__": {}})


def test_promise_of_a_node(S: StorageSettings) -> None:
    assert make(S, mknode, cfgdict={"out": [selfref, "x"]}, artifacts={"x": b""})
    with pytest.raises(PromiseException):
        make(S, mknode, cfgdict={"out": [selfref, "y"]}, artifacts={"x": b""})


def test_other_bytes_than_those_of_the_config_are_refused(S: StorageSettings) -> None:
    def swapped(r: Registry) -> DRef:
        realizer = r.builders[mknode(r, {}, {"x": b"1"})].realizer
        dref = mknode(r, {}, {"x": b"2"})
        r.builders[dref] = Derivation(dref, r.builders[dref].matcher, realizer)
        return dref

    with pytest.raises(BuildError) as raised:
        realize1(instantiate(swapped, S=S))
    assert isinstance(raised.value.exception, InvalidOutput)


def test_realizers_of_stages_travel(S: StorageSettings) -> None:
    r = mkregistry(S)
    for dref in (mknode(r, {}, {"x": b"1"}), command(["true"], r=r)):
        realizer = r.builders[dref].realizer
        assert pickle.loads(pickle.dumps(realizer)) == realizer
        assert len(pyobjhash([realizer])) == 64


# --- command: what it runs ------------------------------------------------------------------------------


def test_program_writes_its_output(S: StorageSettings) -> None:
    rref = shell(S, 'printf hello >"$out"')
    assert text_of(rref, S, "out") == "hello"
    assert sorted(os.listdir(rref2path(rref, S))) == ["__buildstart__.txt", "__buildstop__.txt", "context.json", "out"]
    check_tmp(S)


def test_all_of_it_stands_in_the_config(S: StorageSettings) -> None:
    r = mkregistry(S)
    node = mknode(r, {}, {"x": b""})
    dref = command(("prog", [selfref, "o"], [node, "x"]), {"A": "b"}, {"in": node}, ["o", "d/e"], "n", r)
    described = {
        "argv": ["prog", [selfref, "o"], [node, "x"]],
        "env": {"A": "b"},
        "inputs": {"in": node},
        "outputs": [[selfref, "o"], [selfref, "d", "e"]],
    }
    assert drefcfg_(dref, S).val == {"name": "n", "__command__": described}


def test_defaults(S: StorageSettings) -> None:
    dref = command(["true"], r=mkregistry(S))
    described = {"argv": ["true"], "env": {}, "inputs": {}, "outputs": [[selfref, "out"]]}
    assert drefcfg_(dref, S).val == {"name": "command", "__command__": described}


def test_realizer_takes_everything_from_the_config(S: StorageSettings) -> None:
    config = {"__command__": {"argv": ["sh", "-c", 'echo x >"$0"', [selfref, "out"]]}}
    rref = make(S, lambda r: mkdrv(mkconfig(config), match_some(), CommandRealizer(), r))
    assert text_of(rref, S, "out") == "x\n"
    for broken in ({}, {"__command__": 3}):
        with pytest.raises(BuildError, match="describes no program"):
            make(S, lambda r, config=broken: mkdrv(mkconfig(config), match_some(), CommandRealizer(), r))


def test_references_become_paths(S: StorageSettings) -> None:
    def main(r: Registry) -> DRef:
        node = mknode(r, {}, {"x": b"from the node"})
        script = 'cat "$1" "$2/x" "$file" "$folder/x" file folder/x >"$3"; pwd >>"$3"; ls >>"$3"'
        inputs = {"file": [node, "x"], "folder": node}
        return command(["sh", "-c", script, "sh", [node, "x"], node, [selfref, "out"]], {"file": [node, "x"], "folder": node}, inputs, r=r)

    text = text_of(realize1(instantiate(main, S=S)), S, "out")
    assert text.startswith("from the node" * 6)
    assert text.endswith("file\nfolder\n")


def test_working_directory_is_fresh_and_no_part_of_the_output(S: StorageSettings) -> None:
    rref = shell(S, 'ls -A >"$out"; echo x >scratch; mkdir -p a/b; chmod 0 a; pwd >>"$out"')
    text = text_of(rref, S, "out")
    assert text.startswith(str(S.root))
    assert "scratch" not in os.listdir(rref2path(rref, S))
    assert not os.path.exists(text.strip())
    check_tmp(S)


def test_environment_is_what_was_listed(S: StorageSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAK", "1")
    rref = make(S, command, ["env"], {"A": "b"}, outputs=[])
    assert rref
    text = text_of(shell(S, 'env >"$out"', env={"A": "b"}), S, "out")
    assert {line.partition("=")[0] for line in text.splitlines()} <= {"A", "out", "PATH", "PWD", "SHLVL", "_", "OLDPWD"}
    assert "A=b" in text.splitlines()


def test_input_is_empty_and_files_are_closed(S: StorageSettings) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        rref = shell(S, 'cat >"$out"; ls /proc/self/fd | wc -l >>"$out"')
    finally:
        os.close(reading)
        os.close(writing)
    assert int(text_of(rref, S, "out")) == 4  # 0, 1, 2 and the folder that is listed


def program(folder: pathlib.Path, text: str, name: str = "prog") -> str:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_program_is_found_in_the_path_of_its_environment(
    S: StorageSettings, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "mine", "#!/bin/sh\necho mine >$out\n")
    program(tmp_path / "ours", "#!/bin/sh\necho ours >$out\n")
    (tmp_path / "mine" / "folder").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "ours"))
    env = {"PATH": f"{tmp_path}/none:{tmp_path}/mine", "out": [selfref, "out"]}
    assert text_of(make(S, command, ["prog"], env), S, "out") == "mine\n"
    with pytest.raises(BuildError, match="program not found"):
        make(S, command, ["prog"], {"out": [selfref, "out"]})
    assert make(S, command, ["true"], outputs=[])


def test_program_in_the_working_directory(S: StorageSettings) -> None:
    def main(r: Registry, argv0: str, path: str) -> DRef:
        tool = command(
            ["sh", "-c", 'printf "#!/bin/sh\\necho run >\\$out\\n" >"$0"; chmod +x "$0"', [selfref, "tool"]], outputs=["tool"], r=r
        )
        return command([argv0], {"out": [selfref, "out"], "PATH": path}, {"tool": [tool, "tool"]}, r=r)

    for argv0, path in (("./tool", ""), ("tool", "/bin:.")):
        rref = realize1(instantiate(lambda r, a=argv0, p=path: main(r, a, p), S=S))
        assert text_of(rref, S, "out") == "run\n"


def test_executable_bit_is_kept(S: StorageSettings) -> None:
    rref = shell(S, 'echo x >"$out"; chmod 755 "$out"')
    assert os.stat(os.path.join(rref2path(rref, S), "out")).st_mode & stat.S_IXUSR


# --- command: failure -----------------------------------------------------------------------------------


def test_exit_status_and_the_end_of_the_log(S: StorageSettings) -> None:
    error = failure(S, "for i in $(seq 100); do echo line $i; done; echo last >&2; exit 3")
    assert error.status == "exit status 3"
    assert error.tail.splitlines() == [*(f"line {i}" for i in range(77, 101)), "last"]
    assert error.argv[:2] == ["sh", "-c"]
    check_usable(S)


def test_log_that_is_no_text(S: StorageSettings) -> None:
    assert failure(S, r"printf '\377\n'; head -c 200000 /dev/zero; exit 1").tail.startswith("\0")
    assert failure(S, r"printf '\377'; exit 1").tail == "�"
    assert failure(S, "exit 1").tail == ""


def test_signals(S: StorageSettings) -> None:
    assert failure(S, "kill -KILL $$").status == "signal 9 (SIGKILL)"
    assert failure(S, "kill -40 $$").status == "signal 40"


def test_program_that_cannot_be_started(S: StorageSettings, tmp_path: pathlib.Path) -> None:
    for argv, status in (
        (["no-such-program"], "program not found"),
        (["/no/such/program"], "program not found"),
        (["./no-such-program"], "program not found"),
        ([program(tmp_path, "#!/no/such/interpreter\n", "a")], "program not found"),
        ([program(tmp_path, "neither", "b")], "no start: Exec format error"),
        ([str(tmp_path)], "no start: Permission denied"),
        (["true", "x" * 200_000], "no start: Argument list too long"),
    ):
        with pytest.raises(BuildError) as raised:
            make(S, command, argv, outputs=[])
        assert isinstance(raised.value.exception, CommandFailed)
        assert raised.value.exception.status == status


def test_promises_of_a_command(S: StorageSettings) -> None:
    with pytest.raises(PromiseException, match="b/c"):
        shell(S, 'echo x >"$out"', outputs=["out", "b/c"])


def test_references_with_several_realizations_are_refused(S: StorageSettings) -> None:
    def main(r: Registry) -> DRef:
        two = mkdrv(mkconfig({}), match_some(2), writes({"n": "1"}, {"n": "2"}), r)
        return command(["cat", [two, "n"]], r=r)

    with pytest.raises(BuildError, match="AmbiguousMatch"):
        realize1(instantiate(main, S=S))


# --- command: what is left of it ------------------------------------------------------------------------


def is_running(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state not in (b"Z", b"X")


@pytest.mark.parametrize("end", ["exit 0", "exit 1", "kill -KILL $$"])
def test_what_a_program_leaves_running_is_killed(S: StorageSettings, tmp_path: pathlib.Path, end: str) -> None:
    pids = tmp_path / "pids"
    script = 'for i in 1 2 3; do (trap "" TERM INT HUP; sleep 1000) & echo $! >>"$pids"; done; echo x >"$out"; ' + end
    if end == "exit 0":
        shell(S, script, env={"pids": str(pids)})
    else:
        failure(S, script, env={"pids": str(pids)})
    assert [is_running(int(pid)) for pid in pids.read_text().split()] == [False] * 3


@pytest.mark.embedded_only("the interrupt is of the process that asks")
def test_program_is_killed_when_the_build_is_interrupted(S: StorageSettings, tmp_path: pathlib.Path) -> None:
    pids = tmp_path / "pids"
    script = 'sleep 1000 & echo $! $$ >"$pids"; kill -INT $PPID; wait'
    with pytest.raises(KeyboardInterrupt):
        shell(S, script, env={"pids": str(pids)})
    assert [is_running(int(pid)) for pid in pids.read_text().split()] == [False] * 2
    check_usable(S)


def test_interrupt_of_the_terminal_does_not_reach_the_program(S: StorageSettings) -> None:
    rref = shell(S, 'ps -o pgid= -o sid= -p $$ 2>/dev/null >"$out" || cut -d" " -f5,6 /proc/$$/stat >"$out"; echo $$ >>"$out"')
    group, session, pid = map(int, text_of(rref, S, "out").split())
    assert group == session == pid != os.getpgrp()


def test_nothing_is_built_twice(S: StorageSettings) -> None:
    rref = shell(S, 'date +%N >"$out"')
    assert shell(S, 'date +%N >"$out"') == rref

    def unbuildable(r: Registry) -> DRef:
        dref = command(["sh", "-c", 'date +%N >"$out"'], {"out": [selfref, "out"], "PATH": os.environ["PATH"]}, r=r)
        r.builders[dref] = Derivation(dref, r.builders[dref].matcher, refuses)
        return dref

    assert realize1(instantiate(unbuildable, S=S)) == rref


# --- command: calls that cannot work --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"argv": "echo x"}, "for a shell line"),
        ({"argv": []}, "list of the program"),
        ({"argv": ["a", 3]}, r"argv\[1\].*str\(\)"),
        ({"argv": ["a", ["b", "c"]]}, r"argv\[1\].*refpath"),
        ({"argv": ["a", []]}, r"argv\[1\]"),
        ({"argv": ["a\0"]}, "NUL"),
        ({"argv": ["a"], "env": {"A": 3}}, r"env\['A'\]"),
        ({"argv": ["a"], "env": {"A=B": "c"}}, "without '='"),
        ({"argv": ["a"], "env": {"": "c"}}, "name of a variable"),
        ({"argv": ["a"], "inputs": {"x": "text"}}, r"inputs\['x'\]"),
        ({"argv": ["a"], "inputs": {"x/y": [selfref, "a"]}}, "'x/y'"),
        ({"argv": ["a"], "inputs": {"..": [selfref, "a"]}}, "'..'"),
        ({"argv": ["a"], "outputs": "out"}, r"\['out'\]"),
        ({"argv": ["a"], "outputs": [3]}, "names of files"),
        ({"argv": ["a"], "outputs": ["/a"]}, "name of an output"),
        ({"argv": ["a"], "outputs": ["a/../b"]}, "'..'"),
        ({"argv": ["a"], "outputs": ["context.json"]}, "reserved"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(S: StorageSettings, arguments: dict[str, Any], problem: str) -> None:
    r = mkregistry(S)
    with pytest.raises(Misuse, match=problem):
        command(**arguments, r=r)
    assert r.builders == {}


# --- steering values --------------------------------------------------------------------------------------


def test_steering_values_that_are_none_are_refused_at_the_call(S: StorageSettings, tmp_path: pathlib.Path) -> None:
    url, sha256, r = "https://h/f.tar", "0" * 64, mkregistry(S)
    calls: dict[str, Callable[..., Any]] = {
        "'unpack,remove', 'unpack' or 'as-is'": lambda: fetchurl(url, sha256, mode="asis", r=r),
        "for name a text": lambda: fetchurl(url, sha256, name=bad(3), r=r),
        "for force_download True or False": lambda: fetchurl(url, sha256, force_download=bad("no"), r=r),
        "for check_promises True or False": lambda: fetchlocal(sha256, "/f", check_promises=bad("yes"), r=r),
        "for path the path": lambda: fetchlocal(sha256, bad(3), r=r),
        "for r a registry": lambda: fetchurl2(url, sha256, r=bad("r")),
        "for aunpack_args a list": lambda: unpack("/f", aunpack_args="-x", r=r),
        "unpack expects for name a text": lambda: unpack("/f", name=bad(3), r=r),
        "source expects for name a text": lambda: source(tmp_path, name=bad(3), r=r),
        "for env a dict": lambda: command(["ls"], bad(["A=b"]), r=r),
        "for inputs a dict": lambda: command(["ls"], inputs=bad("x"), r=r),
        "expects a list of outputs": lambda: command(["ls"], outputs=bad(None), r=r),
        "list of the program": lambda: command(bad({"ls"}), r=r),
        "command expects for name a text": lambda: command(["ls"], name=bad(3), r=r),
        "for cfgdict a dict": lambda: mknode(r, bad([1])),
        "for artifacts a dict": lambda: mknode(r, {}, bad(["file"])),
        "expects the registry first": lambda: mknode(bad({"a": 1}), bad(r)),
        "mknode expects for name a text": lambda: mknode(r, {}, name=bad(3)),
        "for new_config a function": lambda: redefine(lambda r: mknode(r, {}), bad({"a": 1})),
    }
    for said, call in calls.items():
        with pytest.raises(Misuse, match=said):
            call()


def bad(value: Any) -> Any:
    """Return a value of a type that the signature forbids."""
    return value
