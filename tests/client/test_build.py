"""`pylightnix build`, run as users run it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.client.daemons import end_started_daemon

from pylightnix.refs import isrref, rref2dref


def test_prints_the_realization_and_its_folder_and_nothing_else(program: Any) -> None:
    ran = program("build", "stages.py")
    assert ran.status == 0
    [line] = ran.lines
    rref, folder = line.split("\t")
    assert isrref(rref)
    assert Path(folder, "out.txt").read_text() == "two"
    assert "[1/2] building first …\nthe realizer prints\nits child prints\n[1/2] first: done in " in ran.stderr
    assert ran.stderr.endswith("\n2 built\n")
    again = program("build", "stages.py:main")
    assert (again.status, again.stdout, again.stderr) == (0, ran.stdout, "2 reused\n")


def test_json_lines(program: Any) -> None:
    ran = program("build", "stages.py", "--json")
    assert ran.stderr == "the realizer prints\nits child prints\n" * 2
    kinds = [each["kind"] for each in ran.objects]
    assert kinds == ["build-started", "build-finished", "build-started", "build-finished", "result"]
    assert [(each["done"], each["total"]) for each in ran.objects if each["kind"] == "build-started"] == [(0, 2), (1, 2)]
    assert all("rref:" not in line for line in ran.lines[:-1])
    [rref] = ran.last.pop("realized")
    assert isrref(rref)
    expected = {"kind": "result", "ok": True, "built": 2, "joined": 0, "reused": 0, "failed": [], "skipped": [], "links": []}
    assert {key: value for key, value in ran.last.items() if key != "realized"} == expected


def test_dry_run_builds_nothing(program: Any) -> None:
    ran = program("build", "stages.py", "--dry-run")
    assert ran.status == 0
    assert [line.split()[0] for line in ran.lines[::2]] == ["build", "build"]
    assert [line.strip() for line in ran.lines[1::2]] == ["nothing of this name was realized before"] * 2
    assert ran.stderr == "2 to build\n"
    steps = program("build", "stages.py", "--dry-run", "--json").objects
    assert [(step["kind"], step.get("action")) for step in steps] == [
        ("step", "build"),
        ("step", "build"),
        ("planned", None),
        ("result", None),
    ]
    assert all(step["reason"] for step in steps[:-2])
    assert [steps[-2][kind] for kind in ("build", "reuse", "unknown", "of_unknown_time")] == [2, 0, 0, 2]
    program("build", "stages.py")
    done = program("build", "stages.py", "--dry-run", "--json")
    assert [step.get("action") for step in done.objects] == ["reuse", "reuse", None, None]
    assert len(done.last["realized"]) == 1


def test_several_targets_are_one_closure_in_their_order(program: Any) -> None:
    ran = program("build", "stages.py:main", "stages.py:first", "--json")
    assert ran.last["built"] == 2
    second, first = ran.last["realized"]
    assert rref2dref(second).endswith("-second")
    assert rref2dref(first).endswith("-first")
    by_module = program("build", "stages:first", rref2dref(second), "stages.py", "--json")
    assert by_module.last["realized"] == [first, second]
    assert by_module.last["built"] == 0


def test_module_of_a_package_in_the_current_folder(program: Any) -> None:
    program.write(
        "package/sub/steps.py", "from . import name\nfrom stages import first as _first\ndef go(r): return _first(r, text=name)\n"
    )
    program.write("package/sub/__init__.py", "name = 'relative'\n")
    ran = program("build", "package.sub.steps:go")
    assert ran.status == 0, ran.stderr
    assert Path(ran.stdout.strip().split("\t")[1], "out.txt").read_text() == "relative"


def test_arguments_reach_the_stages_that_take_them(program: Any) -> None:
    ran = program("build", "stages.py:first", "stages.py:main", "--arg", 'text="three"', "--json")
    folder = program("path", ran.last["realized"][0]).stdout.strip()
    assert Path(folder, "out.txt").read_text() == "three"
    refused = program("build", "stages.py:main", "--arg", "text=1")
    assert refused.status == 2
    assert "--arg text: no target takes" in refused.stderr
    not_json = program("build", "stages.py:first", "--arg", "text=three")
    assert not_json.status == 2
    assert """write --arg 'text="three"'""" in not_json.stderr


def test_autostages(program: Any) -> None:
    program.write(
        "auto.py",
        """
from pylightnix import selfref
from pylightnix.autostage import autostage


@autostage(name="data", out=[selfref, "data.txt"])
def data(out, count=1, *, mark="x"):
    open(out, "w").write(mark * count)


@autostage(name="copy", out=[selfref, "copy.txt"])
def copy(out, source):
    open(out, "w").write(open(source.out).read())
""",
    )
    ran = program("build", "auto.py", "--arg", "count=3", "--json")
    assert (ran.status, ran.last["built"]) == (0, 1), ran.stdout
    assert program("cat", ran.last["realized"][0], "data.txt").stdout == "xxx"
    lacking = program("build", "auto.py:copy")
    assert lacking.status == 2
    assert "give --arg source=…" in lacking.stderr
    dref = json.dumps(rref2dref(ran.last["realized"][0]))
    foreign = program("build", "auto.py:copy", "--arg", f"source={dref}", "--json")
    assert (foreign.status, foreign.last["code"]) == (2, "foreign-derivation")
    together = program("build", "auto.py:copy", "auto.py:data", "--arg", f"source={dref}", "--arg", "count=3", "--json")
    assert (together.status, together.last["built"], together.last["reused"]) == (0, 1, 1), together.stdout


def test_force_builds_again(program: Any) -> None:
    program("build", "stages.py")
    ran = program("build", "stages.py", "--force", "--json")
    assert (ran.last["built"], ran.last["reused"]) == (1, 1)


def test_failure_shows_cause_and_kept_folder(program: Any) -> None:
    ran = program("build", "stages.py:broken")
    assert (ran.status, ran.stdout) == (1, "")
    assert "[1/1] broken: failed" in ran.stderr
    traceback, _, message = ran.stderr.partition("error: ")
    assert 'project/stages.py", line' in traceback
    assert "pylightnix/embedded.py" not in traceback
    assert "ValueError: no such luck" in message
    as_json = program("build", "stages.py:broken", "--json")
    assert (as_json.status, as_json.last["ok"]) == (1, False)
    [failed] = as_json.last["failed"]
    assert failed["code"] == "build-failed"
    assert "no such luck" in failed["message"]
    [kept] = failed["kept"]
    assert kept in failed["message"]
    assert Path(kept, "half.txt").read_text() == "half"


def test_keep_going_tells_what_was_skipped_and_why(program: Any) -> None:
    program.write("all.py", "import stages\ndef main(r): return [stages.above(r), stages.main(r)]\n")
    stopped = program("build", "all.py")
    assert stopped.status == 1
    ran = program("build", "all.py", "--keep-going")
    assert ran.status == 1
    assert len(ran.lines) == 1
    assert "-second\t" in ran.stdout
    *_, skipped, counts = ran.stderr.splitlines()
    assert skipped.startswith("skipped dref:")
    assert "-above, because dref:" in skipped
    assert skipped.endswith("-broken failed")
    assert counts in ("1 failed, 1 skipped, 2 built", "1 failed, 1 skipped, 1 built, 1 reused", "1 failed, 1 skipped, 2 reused")
    result = program("build", "all.py", "--keep-going", "--json").last
    assert [skip["because"] for skip in result["skipped"]] == [failed["dref"] for failed in result["failed"]]
    assert len(result["realized"]) == 1


def test_out_links(program: Any) -> None:
    ran = program("build", "stages.py:first", "stages.py:main", "--out-link", "result", "--json")
    assert ran.last["links"] == ["result", "result-2"]
    assert (program.folder / "result" / "out.txt").read_text() == "one"
    assert (program.folder / "result-2" / "out.txt").read_text() == "two"
    assert os.path.isabs(os.readlink(program.folder / "result"))
    assert program("build", "stages.py:main", "--out-link", "result").status == 0
    assert (program.folder / "result" / "out.txt").read_text() == "two"
    failed = program("build", "stages.py:broken", "--out-link", "result")
    assert failed.status == 1
    assert (program.folder / "result" / "out.txt").read_text() == "two"


def test_out_link_is_refused_before_anything_is_built(program: Any) -> None:
    program.write("result", "precious")
    ran = program("build", "stages.py", "--out-link", "result")
    assert ran.status == 73
    assert "building" not in ran.stderr
    assert (program.folder / "result").read_text() == "precious"
    both = program("build", "stages.py", "--out-link", "other", "--dry-run")
    assert both.status == 2


@pytest.mark.parametrize(
    ("target", "status", "code", "says"),
    [
        ("absent.py", 2, "target-not-found", "there is no file absent.py"),
        ("absent.module:x", 2, "target-not-found", "there is no module absent.module"),
        ("stages.py:absent", 2, "target-not-found", "its stages: first, main, broken, above"),
        ("./stages", 2, "invalid-reference", "did you mean ./stages.py?"),
        ("bad_import.py", 2, "target-failed", "ZeroDivisionError"),
        ("bad_stage.py", 2, "target-failed", "KeyError"),
        ("nothing.py", 2, "target-not-found", "returned None"),
        ("exits.py", 2, "target-failed", "SystemExit"),
        ("bad_config.py", 2, "target-failed", "InvalidConfig"),
        ("dref:" + "0" * 32 + "-absent", 66, "missing-derivation", "no derivation"),
        ("dref:zzz", 2, "invalid-reference", "4 or more digits of a hash"),
    ],
)
def test_what_cannot_be_built(program: Any, target: str, status: int, code: str, says: str) -> None:
    program.write("bad_import.py", "def main(r): ...\n1/0\n")
    program.write("bad_stage.py", "def main(r): return {}['x']\n")
    program.write("nothing.py", "def main(r): print('nothing')\n")
    program.write("exits.py", "import sys\nsys.exit('bye')\n")
    program.write("bad_config.py", "from pylightnix import mkconfig\ndef main(r): mkconfig({'x': (1, 2)})\n")
    ran = program("build", target)
    assert (ran.status, ran.stdout) == (status, "")
    assert says in ran.stderr
    assert "pylightnix_client" not in ran.stderr, "a frame of the program's own"
    as_json = program("build", target, "--json")
    assert as_json.status == status
    [error] = as_json.objects
    assert (error["kind"], error["code"]) == ("error", code)
    assert says in error["message"]


def test_stage_that_prints_does_not_mix_in(program: Any) -> None:
    program.write(
        "noisy.py",
        "import atexit, os\nprint('import')\nos.system('echo import child')\natexit.register(print, 'at exit')\n"
        "from stages import first as _first\ndef main(r):\n    print('stage')\n    return _first(r)\n",
    )
    ran = program("build", "noisy.py", "--json")
    assert ran.last["ok"]
    assert all(json.loads(line)["kind"] in ("build-started", "build-finished", "result") for line in ran.lines)
    for text in ("import\n", "import child\n", "stage\n", "at exit\n"):
        assert text in ran.stderr


def test_store_is_the_command_lines_to_choose(program: Any, tmp_path: Path) -> None:
    program.write(
        "stubborn.py",
        "import os\nfrom pylightnix import fsinit\nfsinit('elsewhere')\nos.environ['PYLIGHTNIX_ROOT'] = '/nowhere'\nos.chdir('/')\n"
        "from stages import main as _main\ndef main(r): return _main(r)\n",
    )
    ran = program("--store", "other", "build", "stubborn.py")
    assert ran.status == 0, ran.stderr
    assert ran.stdout.split("\t")[1].startswith(f"{program.folder}/other/store-v1/")
    assert not program.store.exists()


def test_realizer_that_ends_the_program(program: Any) -> None:
    program.write(
        "leaves.py",
        "import sys\nfrom pylightnix import *\ndef _f(S, dref, context, rarg): sys.exit(3)\n"
        "def main(r): return mkdrv(mkconfig({}), match_latest(), _f, r)\n",
    )
    ran = program("build", "leaves.py", "--json")
    assert (ran.status, ran.last["kind"], ran.last["code"]) == (1, "error", "build-failed")
    assert "sys.exit(3)" in ran.last["message"]


def test_two_programs_build_once(program: Any) -> None:
    gate = program.folder / "gate"
    os.mkfifo(gate)
    program.write(
        "gated.py",
        f"""
from pylightnix import build_outpath, build_wrapper, match_latest, mkconfig, mkdrv


def _gated(b):
    print("ready", flush=True)
    open({str(gate)!r}).close()


def main(r):
    return mkdrv(mkconfig({{"name": "gated"}}), match_latest(), build_wrapper(_gated), r)
""",
    )
    first = program.start("build", "gated.py", "--json")
    assert first.stderr.readline() == b"ready\n"
    second = program.start("build", "gated.py", "--json")
    waiting = json.loads(second.stdout.readline())
    assert (waiting["kind"], len(waiting["holders"]) >= 1) == ("build-waiting", True)
    gate.write_bytes(b"")
    ours, theirs = (json.loads(child.communicate(timeout=60)[0].splitlines()[-1]) for child in (first, second))
    assert (ours["built"], ours["joined"], theirs["built"], theirs["joined"]) == (1, 0, 0, 1)
    assert ours["realized"] == theirs["realized"]


# --- targets that are DRefs -----------------------------------------------------------------------


def test_dref_of_something_realized(program: Any, built: Any) -> None:
    rref = built("stages.py")
    for target in (rref2dref(rref), rref2dref(rref)[: len("dref:") + 8]):
        ran = program("build", target, "--json")
        assert (ran.last["realized"], ran.last["built"]) == ([rref], 0)


def test_dref_of_a_python_stage_that_is_not_realized(program: Any) -> None:
    steps = program("build", "stages.py", "--dry-run", "--json").objects
    ran = program("build", steps[1]["dref"], "--keep-going", "--json")
    assert ran.status == 1
    [failed] = ran.last["failed"]
    assert (failed["dref"], failed["code"]) == (steps[0]["dref"], "not-realized")
    assert "build it from its file: pylightnix build FILE.py:STAGE" in failed["message"]
    assert ran.last["skipped"] == [{"dref": steps[1]["dref"], "because": steps[0]["dref"]}]


def test_dref_of_a_python_stage_cannot_be_forced(program: Any, built: Any) -> None:
    dref = rref2dref(built("stages.py"))
    ran = program("build", dref, "--force")
    assert ran.status == 2
    assert f"cannot build {dref} again" in ran.stderr


def test_drefs_of_nodes_and_commands_are_built_from_their_configs(program: Any) -> None:
    program.write(
        "builtin.py",
        "from pylightnix.stages import command, mknode\n"
        "def node(r): return mknode(r, {'key': 'value'}, name='thing')\n"
        "def run(r):\n"
        "    env, inputs = {'out': ['__self__', 'out']}, {'node': node(r)}\n"
        "    return command(['/bin/sh', '-c', 'echo hello > $out'], env=env, inputs=inputs, r=r)\n",
    )
    steps = program("build", "builtin.py:run", "--dry-run", "--json").objects
    dref = steps[1]["dref"]
    assert not (program.store / "store-v1" / dref[len("dref:") :] / "context.json").exists()
    ran = program("build", dref, "--json")
    assert (ran.status, ran.last["built"]) == (0, 2), ran.stdout + ran.stderr
    assert program("cat", ran.last["realized"][0], "out").stdout == "hello\n"
    assert program("build", dref, "--force", "--json").last["built"] == 1


def test_realizers_of_files_win_over_configs(program: Any) -> None:
    steps = program("build", "stages.py", "--dry-run", "--json").objects
    ran = program("build", steps[1]["dref"], "stages.py", "--json")
    assert (ran.status, ran.last["built"]) == (0, 2)
    assert "registered again" not in ran.stderr


UNNAMED = """
from pylightnix import autodrv, autostage

@autostage
def houses_of_five(n=5):
    pass

@autostage
def street(houses=houses_of_five):
    raise ValueError("no")

def inner(r):
    @autodrv(r)
    def garden(**kwargs):
        pass
    return garden

raw = autostage(lambda: None)

@autostage(name="named")
def otherwise():
    pass
"""


@pytest.mark.parametrize("through_daemon", [False, True])
def test_a_stage_without_a_name_is_called_as_its_function(program: Any, through_daemon: bool) -> None:
    program.daemon = through_daemon
    program.write("unnamed.py", UNNAMED)
    try:
        for target, told in [
            ("street", ["building houses_of_five …", "houses_of_five: done", "building street …", "street: failed"]),
            ("inner", ["building garden …"]),
            ("raw", ["building unnamed …"]),
            ("otherwise", ["building named …"]),
        ]:
            ran = program("build", f"unnamed.py:{target}")
            assert [text for text in told if text not in ran.stderr] == [], ran.stderr
            assert "-unnamed" in ran.stdout + ran.stderr or target == "otherwise", "the config has no name all the same"
    finally:
        if through_daemon:
            end_started_daemon(program.store)
