"""Completion, asked for as the shells' scripts ask."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest

from pylightnix.refs import rref2dref, unrref


def complete(program: Any, *words: str, shell: str = "bash") -> list[str]:
    """Return what is offered for the last of `words`."""
    environment = {
        "_PYLIGHTNIX_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(["pylightnix", *words]),
        "COMP_CWORD": str(len(words)),
    }
    if shell == "fish":
        environment["COMP_CWORD"] = words[-1]
    ran = program(env=environment)
    assert ran.stderr == ""
    lines: list[str] = ran.lines
    return lines


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(program: Any, shell: str) -> None:
    ran = program("completion", shell)
    assert ran.status == 0
    assert f"_PYLIGHTNIX_COMPLETE={shell}_complete" in ran.stdout
    assert program("completion", shell, "--json").last["script"].strip() == ran.stdout.strip()
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=ran.stdout, text=True, capture_output=True)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_unknown_shell(program: Any) -> None:
    assert program("completion", "tcsh").status == 2


def test_commands_and_options(program: Any) -> None:
    assert complete(program, "pa") == ["plain,path", "plain,path2rref"]
    assert "plain,--keep-going" in complete(program, "build", "--k")


def test_references_come_from_the_store(program: Any, built: Any) -> None:
    rref = built("stages.py:first")
    dref = rref2dref(rref)
    rhash, dhash, _ = unrref(rref)
    assert f"plain,{dref[5:]}" in complete(program, "show", dhash[:3])
    assert f"plain,{rref[5:]}" in complete(program, "show", rhash[:3])
    assert f"plain,{dref[5:]}" not in complete(program, "path", dhash[:3])
    assert f"{dref}" in "\n".join(complete(program, "show", f"dref:{dhash[:3]}", shell="fish"))
    assert f"plain,{dref}" in complete(program, "build", f"dref:{dhash[:3]}")
    # What is offered is understood.
    assert program("show", dref[5:]).status == 0
    assert program("path", rref[5:]).status == 0


def test_store_option_counts(program: Any, built: Any) -> None:
    rref = built("stages.py:first")
    words = ["--store", str(program.store), "path", unrref(rref)[0][:3]]
    elsewhere = {"PYLIGHTNIX_ROOT": "/nowhere"}
    environment = {"_PYLIGHTNIX_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["pylightnix", *words]), "COMP_CWORD": "4"}
    assert f"plain,{rref[5:]}" in program(env={**environment, **elsewhere}).lines


def test_without_a_store_files_are_left(program: Any) -> None:
    assert complete(program, "show", "1") == ["file,1"]
    assert complete(program, "build", "st") == ["file,st"]
    assert not program.store.exists()
