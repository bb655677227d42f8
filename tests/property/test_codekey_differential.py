"""Pairs of a program and an edited one: where what the stage gives changes, so does its key, or a warning tells; else it stays.

Each program is asked about in processes with different hash seeds and in different folders, after an edit of a value,
after edits of layout (printed anew, with other comments and docstrings), and after its definitions moved to another module.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from tests.property import codekey_evaluator
from tests.property.codekey_programs import PROGRAMS, edited
from tests.property.codekey_values import CARRIERS, KINDS, carried

Files = Mapping[str, str]
HASH_SEEDS: Final = (1, 2)


@dataclass(frozen=True)
class Pair:
    name: str
    before: Files
    after: Files
    may_be_told: bool
    must_be_told: bool


def pairs(carriers_of_a_kind: int) -> Iterator[Pair]:
    """Return each kind of value in the module itself and in so many other places, then all programs."""
    others = itertools.cycle(carrier for carrier in CARRIERS if carrier != "global")
    for kind in KINDS:
        for carrier in ["global", *itertools.islice(others, carriers_of_a_kind)]:
            yield Pair(f"{kind.name}: {carrier}", *carried(kind, carrier), kind.may_be_told, must_be_told=False)
    for program in PROGRAMS:
        yield Pair(program.name, *edited(program), program.must_be_told, program.must_be_told)


# --- edits that change nothing ------------------------------------------------------------------------------


class _Documented(ast.NodeTransformer):
    """Gives every function and class a docstring."""

    def visit(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            node.body.insert(0, ast.Expr(ast.Constant("What it is for.")))
        return node


def laid_out_anew(files: Files) -> Files:
    texts = {path: ast.unparse(ast.fix_missing_locations(_Documented().visit(ast.parse(text)))) for path, text in files.items()}
    return {path: f"# A comment.\n\n\n{text}\n# Another one.\n" for path, text in texts.items()}


def moved(files: Files) -> Files:
    """Return a program whose definitions lie in another module, and in another place of it."""
    return {
        **files,
        "moved/__init__.py": "",
        "moved/inner.py": f"'''Moved.'''\n\n{files['prog.py']}",
        "prog.py": "from moved.inner import stage\n",
    }


# --- what is said of them -------------------------------------------------------------------------------------


def written(folder: Path, files: Files) -> str:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8", errors="surrogatepass")
    return str(folder)


def evaluated(seed: int, folders: list[str], *arguments: str, **variables: str) -> list[Any]:
    environment = {**os.environ, **variables, "PYTHONHASHSEED": str(seed)}
    command = [sys.executable, "-B", codekey_evaluator.__file__, *arguments]
    run = subprocess.run(command, input=json.dumps(folders), env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(run.stdout)
    assert isinstance(found, list)
    return found


def faults(tmp_path: Path, chosen: list[Pair]) -> dict[str, str]:
    """Return what is wrong, by the name of the pair; nothing of those where all is well."""
    said: list[list[dict[str, Any]]] = [[] for _ in chosen]
    for seed in HASH_SEEDS:
        # At another depth of another folder in each process.
        top = tmp_path / f"seed{seed}" / "/".join(["deep"] * (seed - 1))
        asked = [(n, written(top / f"{n}" / kind, files)) for n, pair in enumerate(chosen) for kind, files in versions(pair, seed)]
        for (n, _), found in zip(asked, evaluated(seed, [folder for _, folder in asked]), strict=True):
            said[n].append(found)
    wrong = {pair.name: fault(pair, one) for pair, one in zip(chosen, said, strict=True)}
    return {name: text for name, text in wrong.items() if text}


def versions(pair: Pair, seed: int) -> list[tuple[str, Files]]:
    """Return the versions of a program that the process with this hash seed is asked about; edits that change nothing are for one."""
    unchanged = [("layout", laid_out_anew(pair.before)), ("moved", moved(pair.before))] if seed == HASH_SEEDS[-1] else []
    return [("before", pair.before), ("after", pair.after), *unchanged]


def fault(pair: Pair, said: list[dict[str, Any]]) -> str:
    broken = [one["error"].strip().splitlines()[-1] for one in said if "error" in one]
    if broken:
        return f"fails: {broken[0]}"
    before, after, before_elsewhere, after_elsewhere, layout, moved = said
    outputs = {one["output"] for one in (before, before_elsewhere, layout, moved)}
    assert len(outputs) == 1, f"{pair.name}: its output is another one in each process: {outputs}"
    assert after["output"] == after_elsewhere["output"] not in outputs, f"{pair.name}: its edit does not change its output"
    told = bool(before["unseen"])
    if before["digest"] != before_elsewhere["digest"] or after["digest"] != after_elsewhere["digest"]:
        return "another key in each process"
    if before["digest"] == after["digest"] and not (told and after["unseen"]):
        return "stale result without a warning"
    if before["digest"] == after["digest"] and not pair.may_be_told:
        return f"stale result with a warning: {before['unseen'][0]}"
    if pair.must_be_told and before["digest"] == after["digest"] and not told:
        return "nothing is told"
    if told and not pair.may_be_told:
        return f"warned of what is seen: {before['unseen'][0]}"
    if layout["digest"] != before["digest"]:
        return "needless rebuild after an edit of layout"
    if moved["digest"] != before["digest"]:
        return "needless rebuild after a move"
    if before["again"] != before["digest"]:
        return "another key once the stage has run"
    return ""


# --- tests ----------------------------------------------------------------------------------------------------


def compared(found: Mapping[str, str]) -> None:
    assert not found, "\n".join(f"{name}: {text}" for name, text in sorted(found.items()))


def test_edit_changes_the_key_or_is_told_and_layout_does_not(tmp_path: Path) -> None:
    chosen = list(pairs(1))
    assert len(chosen) > 200
    compared(faults(tmp_path, chosen))


@pytest.mark.slow
def test_every_kind_of_value_in_every_place(tmp_path: Path) -> None:
    compared(faults(tmp_path, list(pairs(len(CARRIERS) - 1))))


# --- a few of them with a store -------------------------------------------------------------------------------

WITH_STORE: Final = [
    "nested: global",
    "set of enum members: global",
    "sub of a pattern: global",
    "names of fields: global",
    "subclass of str, value: global",
    "helper of a helper",
    "argument of a decorator",
    "__init_subclass__ registry",
    "re-export",
    "getattr of a module",
]
PROGRAM: Final = """
import os
from pathlib import Path
from pylightnix import autostage, fsinit, instantiate, mklens, realize1, selfref

@autostage(name={name!r}, out=[selfref, "out.txt"])
def made(out):
    Path(out).write_text(stage())
    with open(os.environ["BUILT_FILE"], "a") as file:
        file.write("x")

if __name__ == "__main__":
    fsinit()
    print(Path(mklens(realize1(instantiate(made))).out.syspath).read_text())
"""


def test_programs_are_built_anew_where_their_output_changes(tmp_path: Path) -> None:
    chosen = [pair for pair in pairs(1) if pair.name in WITH_STORE]
    assert len(chosen) == len(WITH_STORE)
    texts: dict[str, list[str]] = {}
    for seed, version in enumerate(["before", "layout", "after"], start=1):
        folders = []
        for n, pair in enumerate(chosen):
            files = dict(pair.after if version == "after" else laid_out_anew(pair.before) if version == "layout" else pair.before)
            files["prog.py"] += PROGRAM.format(name=f"n{n}")
            folders.append(written(tmp_path / version / str(n), files))
        built = tmp_path / f"built-{version}"
        built.touch()
        variables = {"PYLIGHTNIX_ROOT": str(tmp_path / "store"), "BUILT_FILE": str(built)}
        texts[version] = evaluated(seed, folders, "run", **variables)
        texts[f"{version} built"] = [built.read_text()]
    stale = 0
    for pair, before, layout, after in zip(chosen, texts["before"], texts["layout"], texts["after"], strict=True):
        assert "Traceback" not in before + layout + after, pair.name
        assert before.splitlines()[-1] == layout.splitlines()[-1], pair.name
        is_stale = before.splitlines()[-1] == after.splitlines()[-1]
        assert pair.must_be_told or not is_stale, pair.name
        for text in (before, layout, after):
            assert ("UnseenCode" in text) == pair.must_be_told, text
        stale += is_stale
    assert [len(texts[f"{version} built"][0]) for version in ("before", "layout", "after")] == [len(chosen), 0, len(chosen) - stale]
