"""`plan` and `why-rebuild`: what would be built is what is built, and the first difference is named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.client.daemons import served_store

STAGES = """
from pylightnix import *
SCALE = 2
def helper(x):
    return x * SCALE
@autostage(name="low", n=3, out=[selfref, "o.txt"])
def low(n, out):
    open(out, "w").write(str(helper(n)))
@autostage(name="high", src=low, out=[selfref, "o.txt"])
def high(src, out):
    open(out, "w").write(open(src.out).read() + "!")
def raw(b):
    open(build_outpath(b) + "/f", "w").write("x")
def made(r, k=1):
    return mkdrv(mkconfig({"name": "made", "k": k}), match_some(1), build_wrapper(raw), r)
"""


@pytest.fixture(params=["embedded", "daemon"])
def pipeline(request: pytest.FixtureRequest, program: Any, tmp_path: Path) -> Iterator[Any]:
    """The program in a folder with stages, on its own store and on one that a daemon owns."""
    (program.folder / "pipe.py").write_text(STAGES)
    if request.param == "embedded":
        yield type(program)(program.folder, tmp_path / "own")
        return
    with served_store() as S:
        yield type(program)(program.folder, Path(str(S.root)), daemon=True)


def build(pipeline: Any, stage: str, *options: str) -> str:
    ran = pipeline("build", f"pipe.py:{stage}", *options)
    assert ran.status == 0, ran.stderr
    return str(ran.stdout).split("\t")[0]


def planned(pipeline: Any, stage: str, *options: str) -> list[dict[str, Any]]:
    ran = pipeline("plan", f"pipe.py:{stage}", "--json", *options)
    assert ran.status == 0, ran.stderr
    return [line for line in ran.objects if line["kind"] == "step"]


def edit(pipeline: Any, old: str, new: str) -> None:
    path = pipeline.folder / "pipe.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_the_first_difference_is_named_before_and_after(pipeline: Any) -> None:
    assert [(step["action"], step.get("why")) for step in planned(pipeline, "high")] == [
        ("build", "nothing of this name was realized before"),
        ("unknown", None),
    ]
    before = build(pipeline, "high")
    assert [step["action"] for step in planned(pipeline, "high")] == ["reuse", "reuse"]
    assert pipeline("why-rebuild", before).stdout == "nothing of this name was realized before\n"
    for old, new, why in [
        ("SCALE = 2", "SCALE = 5", "the data pipe.SCALE is 5, and was 2"),
        ("return x * SCALE", "return x + SCALE", "the function pipe.helper is not what it was"),
        ("n=3", "n=4", "the config value n is 4, and was 3"),
    ]:
        edit(pipeline, old, new)
        low, high = planned(pipeline, "high")
        assert (low["action"], low["why"], high["action"]) == ("build", why, "unknown")
        after = build(pipeline, "high")
        said = pipeline("why-rebuild", after).stdout
        assert re.fullmatch(rf"unlike {before}: its dependency src is another derivation, dref:\w+-low, of which {re.escape(why)}\n", said)
        before = after


def test_what_is_realized_anew_is_told_to_those_who_depend_on_it(pipeline: Any) -> None:
    edit(pipeline, 'open(out, "w").write(str(helper(n)))', 'import os; open(out, "w").write(os.urandom(9).hex())')
    before, low = build(pipeline, "high"), build(pipeline, "low")
    anew = build(pipeline, "low", "--force")
    [_, high] = planned(pipeline, "high")
    expected = rf"its dependency dref:\S+-low is realized as {anew}, and was as {low}"
    assert high["action"] == "build"
    assert re.fullmatch(expected, high["why"])
    assert re.fullmatch(rf"unlike {before}: {expected}\n", pipeline("why-rebuild", build(pipeline, "high")).stdout)


def test_the_plan_is_what_is_done(pipeline: Any) -> None:
    build(pipeline, "high")
    edit(pipeline, '+ "!"', '+ "?"')
    for options in ([], ["--force"], []):
        steps = planned(pipeline, "high", *options)
        ran = pipeline("build", "pipe.py:high", "--json", *options)
        assert ran.last["built"] == sum(step["action"] == "build" for step in steps)
        assert ran.last["reused"] == sum(step["action"] == "reuse" for step in steps)


def test_arguments_of_stages_that_are_functions(pipeline: Any) -> None:
    build(pipeline, "made")
    [step] = planned(pipeline, "made", "--arg", "k=2")
    assert step["why"] == "the config value k is 2, and was 1"
    assert pipeline("why-rebuild", "rref:" + "0" * 65 + "-x").status != 0
