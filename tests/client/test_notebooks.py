"""Stages that are defined in the cells of a notebook: their names, their digests, and that they are realized.

A kernel is played by a process that does what IPython's does: cells are compiled under names of their own that
differ in every session, are known to `linecache`, run in `__main__`, and that inside a running asyncio loop.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.client import daemons
from tests.stores import new_store

from pylightnix import StorageSettings

KERNEL = """
import ast, asyncio, inspect, json, linecache, os, sys

async def main():
    for number, cell in enumerate(json.load(sys.stdin)):
        name = sys.argv[1].format(pid=os.getpid(), number=number)
        linecache.cache[name] = (len(cell), None, cell.splitlines(True), name)
        code = compile(cell, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        done = eval(code, sys.modules["__main__"].__dict__)
        if inspect.iscoroutine(done):
            await done

asyncio.run(main())
print(json.dumps(result))
"""

NAMES = ["<ipython-input-{number}-{pid}>", "/tmp/ipykernel_{pid}/{number}.py"]
"""How IPython names cells, before its version 8 and since."""

IMPORTS = "from pylightnix import *\nfsinit(mkSS({root!r}))"
STAGE = """
@autostage(name="cell", out=[selfref, "out.txt"])
def stage(out):
    with open(out, "w") as file:
        file.write(helper("text"))
"""
HELPER = "def helper(text):\n    return text.upper()"
REALIZE = "rref = realize1(instantiate(stage))\nresult = [rref, mklens(rref).out.contents]"


def notebook(S: StorageSettings, *cells: str, names: str = NAMES[1]) -> Any:
    """Run cells in a kernel of their own and return what they leave in `result`."""
    ran = subprocess.run(
        [sys.executable, "-c", KERNEL, names],
        input=json.dumps([IMPORTS.format(root=str(S.root)), *cells]),
        capture_output=True,
        text=True,
        env=daemons.environment(),
        timeout=daemons.SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=["embedded", "daemon"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageSettings]:
    if request.param == "embedded":
        yield new_store(tmp_path_factory.mktemp("notebooks") / "store")
    else:
        with daemons.served_store() as S:
            yield S


@pytest.mark.parametrize("names", NAMES)
def test_a_stage_of_cells_is_realized_and_found_again_by_another_session(store: StorageSettings, names: str) -> None:
    """Also when cells were run in another order, or one of them twice: only what they say counts."""
    rref, text = notebook(store, HELPER, STAGE, REALIZE, names=names)
    assert text == "TEXT"
    assert notebook(store, "x = 1", STAGE, HELPER, STAGE, REALIZE, names=names) == [rref, text]


@pytest.mark.parametrize("names", NAMES)
def test_what_a_stage_of_cells_covers_is_named_the_same_in_every_session(tmp_path: Path, names: str) -> None:
    """Cells have other names and numbers each time, and no file: what they define has names of its own."""
    S = new_store(tmp_path / "store")
    covers = (
        "from dataclasses import astuple\n"
        "manifest = code_manifest([stage])\n"
        "result = [manifest.digest, {name: astuple(entry) for name, entry in manifest.entries.items()}]"
    )
    digest, entries = notebook(S, HELPER, STAGE, covers, names=names)
    assert sorted(entries) == ["__main__.helper", "__main__.stage"]
    assert notebook(S, "x = 1", STAGE, "y = 2", HELPER, STAGE, covers, names=names) == [digest, entries]
    other, changed = notebook(S, HELPER.replace("upper", "title"), STAGE, covers, names=names)
    assert other != digest
    assert [name for name in entries if entries[name] != changed[name]] == ["__main__.helper"]


def test_cells_that_say_something_else_do_not_collide(store: StorageSettings) -> None:
    """The same names in two notebooks: another function, or another helper that it calls, is another stage."""
    first, _ = notebook(store, HELPER, STAGE, REALIZE)
    second, text = notebook(store, HELPER, STAGE.replace('"text"', '"other"'), REALIZE)
    assert text == "OTHER"
    third, text = notebook(store, HELPER.replace("upper", "title"), STAGE, REALIZE)
    assert text == "Text"
    assert len({first, second, third}) == 3


def test_a_cell_that_was_edited_and_run_again_counts_as_it_is_now(store: StorageSettings) -> None:
    before = "before = stage(r=mkregistry())"
    result, again = notebook(
        store, HELPER, STAGE, before, HELPER.replace("upper", "lower"), STAGE, "result = [before, stage(r=mkregistry())]"
    )
    assert result != again


def test_awaiting_in_a_cell(store: StorageSettings) -> None:
    result, context = notebook(store, HELPER, STAGE, "found = await realize_async(instantiate(stage))", "result = [found[0], found[2]]")
    rref, _ = notebook(store, HELPER, STAGE, REALIZE)
    assert context == {result: [rref]}


POOL = """
import inspect, multiprocessing, pickle

class Net:
    size = 3

def double(net):
    return 2 * net.size

@autostage(name="pool", out=[selfref, "out.txt"])
def pool(out):
    with multiprocessing.get_context("fork").Pool(2) as workers, open(out, "w") as file:
        twice = workers.map(double, [Net(), pickle.loads(pickle.dumps(Net()))])
        file.write(f"{twice} {Net.__module__} {inspect.getsource(double)}")
"""
RAISES = """
@autostage(name="raises", out=[selfref, "out.txt"])
def raises(out):
    raise ValueError("no such luck")
"""
CATCH = """
import traceback
try:
    realize1(instantiate(raises))
except Exception as error:
    result = "".join(traceback.format_exception(error))
"""


def test_what_a_cell_defines_can_be_pickled_and_read_in_a_build(store: StorageSettings) -> None:
    said = notebook(store, POOL, REALIZE.replace("stage", "pool"))[1]
    assert said == "[6, 6] __main__ def double(net):\n    return 2 * net.size\n"


def test_a_traceback_shows_the_lines_of_a_cell(store: StorageSettings) -> None:
    assert '    raise ValueError("no such luck")\n' in notebook(store, RAISES, CATCH)
