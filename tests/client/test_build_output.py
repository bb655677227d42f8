"""What stages print in a daemon: a program sees it as if they ran in its own process, unless it says otherwise."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tests.client.daemons import served_store

from pylightnix import Registry, StorageSettings, autostage, instantiate, realize, realize1, realize_async, realizeMany, selfref
from pylightnix.build_output import VARIABLE, LogCopier
from pylightnix.errors import Misuse
from pylightnix.events import BuildFailed, BuildFinished, BuildLogged, BuildStarted, Event, ignore
from pylightnix.types import Closure, DRef

DREF = DRef("dref:33fb56732e3bed95d938f13e14de9c19-talk")


@pytest.fixture(scope="module")
def served() -> Iterator[StorageSettings]:
    with served_store() as S:
        yield S


def talking(S: StorageSettings, salt: str, lines: int = 1) -> tuple[Any, Closure]:
    """Return a closure of a stage that prints."""

    @autostage(name="talk", out=[selfref, "out"], salt=salt, lines=lines)
    def talk(salt: str, lines: int, out: str) -> None:
        for number in range(lines):
            print(f"{salt} {number:05}")
        os.write(2, b"caf\xe9 without an end")
        open(out, "w").close()

    def stage(r: Registry) -> DRef:
        return talk(r=r)

    return instantiate(stage, S=S)


def test_by_default_it_is_on_standard_error(served: StorageSettings, capsys: pytest.CaptureFixture[str]) -> None:
    for number, call in enumerate((realize, realizeMany, realize1)):
        call(talking(served, f"default{number}"))
        assert capsys.readouterr() == ("", f"default{number} 00000\ncaf\\xe9 without an end")
        call(talking(served, f"default{number}"))
        assert capsys.readouterr() == ("", ""), "nothing was built"


def test_the_variable_says_where(served: StorageSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for value, out, err in (("stdout", True, False), ("none", False, False), ("stderr", False, True), ("", False, True)):
        monkeypatch.setenv(VARIABLE, value)
        realize1(talking(served, f"variable{value}"))
        said = capsys.readouterr()
        assert (bool(said.out), bool(said.err)) == (out, err)
    monkeypatch.setenv(VARIABLE, "/dev/null")
    with pytest.raises(Misuse, match="expected stderr, stdout or none in PYLIGHTNIX_BUILD_OUTPUT, found '/dev/null'"):
        realize1(talking(served, "wrong"))


def test_an_observer_is_told_instead(served: StorageSettings, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = []
    realize1(talking(served, "observed"), observe=events.append)
    assert b"".join(event.data for event in events if isinstance(event, BuildLogged)) == b"observed 00000\ncaf\xe9 without an end"
    assert [type(event) for event in events if not isinstance(event, BuildLogged)] == [BuildStarted, BuildFinished]
    realize1(talking(served, "quiet"), observe=ignore)
    assert capsys.readouterr() == ("", "")


def test_all_of_a_long_log_is_there(served: StorageSettings, capsys: pytest.CaptureFixture[str]) -> None:
    realize1(talking(served, "x" * 100, lines=50_000))
    assert capsys.readouterr().err.count("\n") == 50_000


def test_async_programs_see_it_too(served: StorageSettings, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = []
    asyncio.run(realize_async(talking(served, "async")))
    assert capsys.readouterr() == ("", "async 00000\ncaf\\xe9 without an end")
    asyncio.run(realize_async(talking(served, "async observed"), observe=events.append))
    assert {type(event) for event in events} == {BuildStarted, BuildLogged, BuildFinished}


def test_lines_of_several_builds_are_not_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    other, copier = DRef(DREF.replace("talk", "other")), LogCopier("stdout")
    for dref, data in ((DREF, b"one "), (other, b"two "), (DREF, b"1\nmore"), (other, b"2\n"), (other, b"rest")):
        copier(BuildLogged(dref, data))
    assert capsys.readouterr().out == "one 1\ntwo 2\n"
    copier(BuildFailed(DREF, ValueError()))
    copier.end()
    assert capsys.readouterr().out == "morerest"


def test_no_stream_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    LogCopier()(BuildLogged(DREF, b"line\n"))
    with open(os.devnull, "w") as closed:
        monkeypatch.setattr(sys, "stderr", closed)
    LogCopier()(BuildLogged(DREF, b"line\n"))
