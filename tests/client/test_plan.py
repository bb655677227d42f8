"""`plan` and `why-rebuild`: what would be built or fail is what does, and the first difference is named."""

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
def raises(S, rrefs):
    raise ValueError("no such metric")
def nothing(S, rrefs):
    return []
def numbered(b):
    for number, folder in enumerate(build_outpaths(b)):
        open(folder + "/f", "w").write(str(number))
def plain(r, name, matcher, nouts=1, **config):
    return mkdrv(mkconfig({"name": name, **config}), matcher, build_wrapper(numbered, nouts=nouts), r)
def unlucky(r):
    return plain(r, "unlucky", raises)
def several(r):
    return plain(r, "several", match_latest(), nouts=2)
def ambiguous(r):
    return plain(r, "several", match_only(), nouts=2)
def all_fail(r):
    fails = [unlucky(r), plain(r, "empty", nothing), ambiguous(r)]
    fine = plain(r, "fine", match_latest())
    return [plain(r, "above", match_latest(), dep=dep, fine=fine) for dep in fails]
def must(r):
    return plain(r, "on-must", match_latest(), dep=realized(low)(r=r))
def boxed(r):
    return mkdrv(mkconfig({"name": "boxed"}), match_latest(), with_options(build_wrapper(raw), Options(sandbox="bwrap")), r)
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


def planned(pipeline: Any, stage: str, *options: str, status: int = 0) -> list[dict[str, Any]]:
    target = stage if stage.startswith("dref:") else f"pipe.py:{stage}"
    ran = pipeline("plan", target, "--json", *options)
    assert ran.status == status, ran.stderr
    return [line for line in ran.objects if line["kind"] == "step"]


def names_of(steps: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(step["dref"][38:], step["action"]) for step in steps]


def edit(pipeline: Any, old: str, new: str) -> None:
    path = pipeline.folder / "pipe.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_the_first_difference_is_named_before_and_after(pipeline: Any) -> None:
    assert [(step["action"], step.get("why")) for step in planned(pipeline, "high")] == [
        ("build", "nothing of this name was realized before"),
        ("build", "nothing of this name was realized before"),
    ]
    before = build(pipeline, "high")
    assert [step["action"] for step in planned(pipeline, "high")] == ["reuse", "reuse"]
    assert pipeline("why-rebuild", before).stdout == "nothing of this name was realized before\n"
    for old, new, why in [
        ("SCALE = 2", "SCALE = 5", "the data pipe.SCALE is 5, and was 2"),
        ("return x * SCALE", "return x + SCALE", "the function pipe.helper changed"),
        ("n=3", "n=4", "the config value n is 4, and was 3"),
    ]:
        edit(pipeline, old, new)
        low, high = planned(pipeline, "high")
        assert (low["action"], low["why"], high["action"]) == ("build", why, "build")
        assert high["why"] == f"its dependency src is another derivation, {low['dref']}, of which {why}"
        assert low["seconds"] >= 0
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


# --- what is sure to fail -------------------------------------------------------------------------------


def test_failing_matchers_are_told_as_build_tells_them(pipeline: Any) -> None:
    build(pipeline, "several")
    steps = planned(pipeline, "all_fail", status=1)
    assert names_of(steps) == [
        *(("unlucky", "failed"), ("empty", "failed"), ("several", "failed"), ("fine", "build")),
        *(("above", "skipped"), ("above", "skipped"), ("above", "skipped")),
    ]
    ran = pipeline("build", "pipe.py:all_fail", "--keep-going", "--json")
    assert ran.status == 1
    failed = {row["dref"]: (row["code"], row["message"]) for row in ran.last["failed"]}
    assert {step["dref"]: (step["code"], step["message"]) for step in steps if step["action"] == "failed"} == failed
    assert sorted(code for code, _ in failed.values()) == ["ambiguous-match", "build-failed", "invalid-match"]
    because = {step["dref"]: step["because"] for step in steps if step["action"] == "skipped"}
    assert because == {row["dref"]: row["because"] for row in ran.last["skipped"]}
    assert all(step["reason"] == f"depends on {step['because']}, which fails" for step in steps if step["action"] == "skipped")


@pytest.mark.parametrize("command", [("plan",), ("build", "--dry-run")])
def test_a_failing_matcher_is_told_to_people(pipeline: Any, command: tuple[str, ...]) -> None:
    ran = pipeline(*command, "pipe.py:unlucky")
    assert ran.status == 1
    assert re.fullmatch(r"failed  dref:\S+-unlucky  its matcher fails: ValueError: no such metric\n", ran.stdout)
    assert ", in raises\n" in ran.stderr
    assert re.search(r"^error: building dref:\S+-unlucky failed: ValueError: no such metric$", ran.stderr, re.MULTILINE)


def test_what_must_be_realized_already_is_refused(pipeline: Any) -> None:
    low, above = planned(pipeline, "must", status=1)
    assert names_of([low, above]) == [("low", "refused"), ("on-must", "skipped")]
    assert (low["code"], low["why"]) == ("not-realized", "nothing of this name was realized before")
    assert low["reason"].startswith("no realization, and realized(…) forbids building it; ")
    assert above["reason"] == f"depends on {low['dref']}, which must not be built"
    ran = pipeline("build", "pipe.py:must", "--json")
    assert ran.status == 1
    assert [(row["dref"], row["code"], row["message"]) for row in ran.last["failed"]] == [(low["dref"], low["code"], low["message"])]
    build(pipeline, "low")
    assert names_of(planned(pipeline, "must")) == [("low", "reuse"), ("on-must", "build")]


def test_a_python_stage_of_the_store_is_refused_and_compared_by_what_was_recorded(pipeline: Any) -> None:
    build(pipeline, "high")
    edit(pipeline, "SCALE = 2", "SCALE = 5")
    rref = build(pipeline, "high")
    dref = "dref:" + rref.split("-", 1)[1]
    assert names_of(planned(pipeline, dref)) == [("low", "reuse"), ("high", "reuse")]
    assert pipeline("rm", rref).status == 0
    _, high = planned(pipeline, dref, status=1)
    assert (high["action"], high["code"]) == ("refused", "not-realized")
    assert high["reason"].startswith("no realization, and its realizer is a Python function; build it from its file")
    assert high["why"].endswith("-low, of which the data pipe.SCALE is 5, and was 2")
    assert pipeline("why-rebuild", dref).stdout == f"unlike {high['older']}: {high['why']}\n"
    ran = pipeline("build", dref, "--json")
    assert (ran.status, ran.last["failed"][0]["code"]) == (1, "not-realized")


def test_a_sandbox_that_there_is_not_is_refused(pipeline: Any) -> None:
    [step] = planned(pipeline, "boxed", status=1)
    ran = pipeline("build", "pipe.py:boxed", "--json")
    assert (ran.status, step["action"], step["code"]) == (1, "refused", "no-sandbox")
    assert step["message"] == ran.last["failed"][0]["message"]
