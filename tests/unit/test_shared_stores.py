"""Processes that mean one store by different settings: nobody's unfinished work is taken for a dead one's."""

from __future__ import annotations

import os
from pathlib import Path as FsPath
from typing import Any

import pytest
from tests.peers import Line, Peer
from tests.stores import output, stage, unharmed

from pylightnix import Context, DRef, Path, Registry, StorageSettings, allrrefs, fsinit, instantiate, mkSS, realize, realize1

pytestmark = pytest.mark.embedded_only("it is about several processes without a daemon")


def leaves_its_process(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
    return [output(S, {"out.txt": str(os.getpid())})]


def below(r: Registry) -> DRef:
    return stage(r, "below", realizer=leaves_its_process)


def builds_slowly(S: StorageSettings, line: Line) -> None:
    """Build something and, on top of it, something that takes until the other end says so."""

    def waits(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        line.say("building")
        assert line.hear() == "go on"
        return [output(S)]

    rref = realize1(instantiate(lambda r: stage(r, "above", realizer=waits, below=below(r)), S=S))
    assert rref in set(allrrefs(S))
    line.say("built")


def test_another_tmpdir(S: StorageSettings, tmp_path: FsPath) -> None:
    apart = mkSS(str(S.root), tmpdir=str(tmp_path / "another-tmp"))
    fsinit(apart, use_as_default=False)
    with Peer(lambda line: builds_slowly(S, line)) as peer:
        peer.expect("building")
        assert list(allrrefs(apart)) == []
        peer.say("go on")
        peer.expect("built")
        peer.end()
    assert len(list(allrrefs(S))) == 2


def test_a_realizer_that_realizes_what_another_process_has_in_flight(S: StorageSettings) -> None:
    def nests(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        realize(instantiate(below, r=Registry(S)))
        return [output(S)]

    with Peer(lambda line: builds_slowly(S, line)) as peer:
        peer.expect("building")
        realize(instantiate(lambda r: stage(r, "nests", realizer=nests), S=S))
        peer.say("go on")
        peer.expect("built")
        peer.end()
    assert len(list(allrrefs(S))) == 3
    with unharmed(S):
        pass
