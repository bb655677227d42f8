"""The commands that look at what is there."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest

from pylightnix.nar import tree_hash
from pylightnix.refs import rref2dref, unrref

TREE = """
import os
from pylightnix import build_outpath, build_wrapper, match_latest, mkconfig, mkdrv


def _tree(b):
    folder = build_outpath(b)
    os.makedirs(os.path.join(folder, "sub", "empty"))
    with open(os.path.join(folder, "bytes.bin"), "wb") as file:
        file.write(bytes(range(256)))
    with open(os.fsencode(folder) + b"/name-\\xff", "w") as file:
        file.write("odd")
    with open(os.path.join(folder, "sub", "run"), "w") as file:
        file.write("#!/bin/sh\\n")
    os.chmod(os.path.join(folder, "sub", "run"), 0o755)
    os.symlink("sub/run", os.path.join(folder, "link"))
    os.symlink("/etc/passwd", os.path.join(folder, "leak"))
    os.symlink("nowhere", os.path.join(folder, "dangling"))


def main(r):
    return mkdrv(mkconfig({"name": "tree"}), match_latest(), build_wrapper(_tree), r)
"""


@pytest.fixture
def tree(program: Any, built: Any) -> str:
    program.write("tree.py", TREE)
    rref: str = built("tree.py")
    return rref


def test_path(program: Any, tree: str) -> None:
    folder = program("path", tree).stdout.rstrip("\n")
    assert os.path.isfile(f"{folder}/bytes.bin")
    assert program("path", unrref(tree)[0][:8]).stdout == f"{folder}\n"
    assert program("path", folder).stdout == f"{folder}\n"
    assert program("path", tree, "--json").last == {"kind": "path", "rref": tree, "path": folder}


@pytest.mark.parametrize(
    ("ref", "status", "code"),
    [
        ("rref:" + "0" * 32 + "-" + "0" * 32 + "-x", 66, "missing-realization"),
        ("dref:" + "0" * 32 + "-x", 66, "not-built"),
        ("junk", 2, "invalid-reference"),
        ("0123456789", 2, "invalid-reference"),
    ],
)
def test_path_of_what_is_not_there(program: Any, tree: str, ref: str, status: int, code: str) -> None:
    ran = program("path", ref)
    assert (ran.status, ran.stdout) == (status, "")
    assert ran.stderr.startswith("error: ")
    as_json = program("path", ref, "--json")
    assert (as_json.status, as_json.last["kind"], as_json.last["code"]) == (status, "error", code)
    assert as_json.stderr == ""


def test_path2rref(program: Any, tree: str) -> None:
    folder = program("path", tree).stdout.rstrip("\n")
    (program.folder / "result").symlink_to(folder)
    for path in (folder, "result", "result/sub/run", f"{folder}/bytes.bin"):
        assert program("path2rref", path).stdout == f"{tree}\n"
    assert program("path2rref", "result/sub/run", "--json").last == {"kind": "reference", "rref": tree, "inner": "sub/run"}
    assert program("path2rref", ".").status == 2
    assert program("path2rref", os.path.dirname(folder)).status == 2


def test_ls(program: Any, tree: str) -> None:
    names = ["__buildstart__.txt", "__buildstop__.txt", "bytes.bin", "context.json", "dangling", "leak", "link", "name-\udcff", "sub/"]
    assert program("ls", tree).lines == names
    assert program("ls", tree, "sub").lines == ["empty/", "run"]
    assert program("ls", tree, "sub/empty").lines == []
    assert program("ls", tree, "sub/run").lines == ["sub/run"]
    entries = {entry["name"]: entry for entry in program("ls", tree, "--json").objects}
    assert entries["bytes.bin"] == {"kind": "entry", "name": "bytes.bin", "type": "file", "bytes": 256, "executable": False}
    assert entries["sub"] == {"kind": "entry", "name": "sub", "type": "folder"}
    assert entries["link"] == {"kind": "entry", "name": "link", "type": "link", "target": "sub/run"}
    assert entries["name-\udcff"]["bytes"] == 3
    assert program("ls", rref2dref(tree)).lines == [f"{unrref(tree)[0]}/", "config.json"] or program("ls", rref2dref(tree)).lines == [
        "config.json",
        f"{unrref(tree)[0]}/",
    ]


def test_cat(program: Any, tree: str) -> None:
    assert program("cat", tree, "bytes.bin").stdout.encode("utf-8", "surrogateescape") == bytes(range(256))
    assert program("cat", tree, "link").stdout == "#!/bin/sh\n"
    assert program("cat", tree, "sub//run", "--json").last["content"] == "#!/bin/sh\n"
    binary = program("cat", tree, "bytes.bin", "--json").last
    assert binary["encoding"] == "base64"
    assert base64.b64decode(binary["content"]) == bytes(range(256))
    assert '"name": "tree"' in program("cat", rref2dref(tree), "config.json").stdout


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("sub", "it is a folder; list it with: pylightnix ls rref:"),
        ("absent", "see what there is with: pylightnix ls rref:"),
        ("dangling", "see what there is with"),
        ("../config.json", "without '..'"),
        ("sub/../bytes.bin", "without '..'"),
        ("/etc/passwd", "a path below its folder"),
        ("leak", "a link that leads out of the store, to /etc/passwd"),
        ("bytes.bin/x", "see what there is with"),
    ],
)
def test_cat_refuses(program: Any, tree: str, path: str, says: str) -> None:
    ran = program("cat", tree, path)
    assert (ran.status, ran.stdout) == (66, "")
    assert says in ran.stderr


def test_large_files_stream(program: Any) -> None:
    program.write("large.py", TREE.replace("bytes(range(256))", "bytes(range(256)) * 20000"))
    rref = program("build", "large.py", "--json").last["realized"][0]
    ran = program("cat", rref, "bytes.bin")
    assert len(ran.stdout.encode("utf-8", "surrogateescape")) == 256 * 20000


def test_show_realization(program: Any, built: Any) -> None:
    rref = built("stages.py")
    shown = program("show", rref, "--json").last
    assert (shown["kind"], shown["rref"], shown["dref"], shown["state"]) == ("realization", rref, rref2dref(rref), "valid")
    [(dref, [dep])] = shown["context"].items()
    assert dref == rref2dref(dep)
    assert dep.endswith("-first")
    assert shown["seconds"] >= 0
    assert shown["stopped"] >= shown["started"]
    assert program("hash", shown["path"]).stdout == shown["tree_hash"] + "\n"
    text = program("show", rref[:20]).stdout
    for part in (rref, dep, shown["tree_hash"], " UTC, took ", shown["host"]):
        assert part in text


def test_show_derivation(program: Any, built: Any) -> None:
    rref = built("stages.py")
    dref = rref2dref(rref)
    shown = program("show", dref, "--json").last
    assert (shown["kind"], shown["dref"], shown["realizations"]) == ("derivation", dref, [rref])
    assert [dep.endswith("-first") for dep in shown["deps"]] == [True]
    assert shown["config"] == {"name": "second", "dep": shown["deps"][0]}
    text = program("show", shown["path"]).stdout
    assert '"name": "second"' in text
    assert rref in text
    assert program("show", "dref:" + "0" * 32 + "-x").status == 66


def test_show_folder_that_the_index_does_not_know(program: Any, tree: str) -> None:
    folder = Path(program("path", tree).stdout.rstrip("\n"))
    fake = folder.parent / ("f" * 32)
    os.chmod(folder.parent, 0o755)
    fake.mkdir()
    (fake / "context.json").write_text('{"deps": {}, "dynamic": {}}')
    shown = program("show", str(fake))
    assert shown.status == 0, shown.stderr
    assert "does not count as realized" in shown.stdout


def test_hash(program: Any, tree: str) -> None:
    program.write("some/file", "content")
    for path in ("some", "some/file"):
        assert program("hash", path).stdout.strip() == tree_hash(program.folder / path).sha256
    (program.folder / "link").symlink_to("some")
    assert program("hash", "link").stdout.strip() == tree_hash(program.folder / "link").sha256
    assert program("hash", "some", "--json").last["sha256"] == tree_hash(program.folder / "some").sha256
    assert program("hash", "absent").status == 66
    os.mkfifo(program.folder / "some" / "fifo")
    refused = program("hash", "some", "--json")
    assert (refused.status, refused.last["code"]) == (1, "invalid-tree")


def test_no_store_is_made_by_looking(program: Any) -> None:
    for arguments in (("show", "12345678"), ("path", "12345678"), ("ls", "12345678")):
        ran = program(*arguments)
        assert ran.status == 2
    assert not program.store.exists()
