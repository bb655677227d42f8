"""A closure as messages: no daemon is needed to see what would be sent, and that the limits are kept."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.client import daemons

from pylightnix import Build, DRef, Misuse, Registry, StorageSettings, instantiate, match_latest, mkconfig, mkdrv, mknode
from pylightnix.codekey import pyobjhash
from pylightnix.protocol import messages as m
from pylightnix.protocol.client import ClientConnection
from pylightnix.protocol.errors import MessageInvalid
from pylightnix.protocol.limits import BLOB_PIECE_BYTES_MAX, DEFAULT_LIMITS
from pylightnix.registry import RegisteredDerivation, needed_graph
from pylightnix.types import Closure
from pylightnix_client.exchange import Ask, Exchange, registration
from pylightnix_client.submission import Wishes, submission


class Realizer:
    """One that takes many bytes."""

    def __init__(self, size: int) -> None:
        self.ballast = bytes(size)

    def __call__(self, *arguments: Any) -> list[Any]:
        return []


def carried(exchange: Exchange[Any], reply: Callable[[Any], m.Message]) -> tuple[list[Ask], Any]:
    """Answer an exchange to its end; return what it asked, and its result."""
    asked: list[Ask] = []
    answer: Any = None
    while True:
        try:
            asked.append(exchange.send(answer))
        except StopIteration as end:
            return asked, end.value
        answer = m.Submitted(operation="op-1") if asked[-1].method == "submit.open" else reply(asked[-1].params)


def sent_for(closure: Closure, wishes: Wishes | None = None) -> list[Ask]:
    """Answer an exchange as an obliging daemon would, and return what it asked."""
    asked, name = carried(submission(closure, wishes or Wishes()), lambda _: m.Done())
    assert name == "op-1"
    return asked


def of_kind(asked: list[Ask], kind: type[Any]) -> list[Any]:
    return [ask.params for ask in asked if isinstance(ask.params, kind)]


def test_every_message_is_within_the_limits_and_blobs_go_once(S: StorageSettings) -> None:
    large = Realizer(BLOB_PIECE_BYTES_MAX + 5)

    def stage(r: Registry) -> list[DRef]:
        small = [daemons.stage(r, "small", daemons.write_config, i=i) for i in range(2100)]
        heavy = [daemons.stage(r, "heavy", daemons.write_config, i=i, text="x" * 900_000) for i in range(10)]
        return [*small, *heavy, mkdrv(mkconfig({"name": "large"}), match_latest(), large, r)]

    closure = instantiate(stage, S=S)[1]
    asked = sent_for(closure)
    assert [asked[0].method, asked[-1].method] == ["submit.open", "submit.commit"]
    adds = of_kind(asked, m.SubmitAdd)
    assert sum(len(add.derivations) for add in adds) == 2111
    assert max(len(add.derivations) for add in adds) == 1000
    pieces = of_kind(asked, m.SubmitBlob)
    whole: dict[str, bytes] = {}
    for piece in pieces:
        assert piece.offset == len(whole.get(piece.sha256, b""))
        whole[piece.sha256] = whole.get(piece.sha256, b"") + piece.data
    assert [hashlib.sha256(blob).hexdigest() for blob in whole.values()] == list(whole)
    assert {len(whole[piece.sha256]) - piece.size for piece in pieces} == {0}
    assert len(whole) == 2
    assert len(pieces) == 3
    connection = ClientConnection()
    connection.send_hello(m.ClientHello(versions=[1], client="test"))
    for ask in asked:
        # What a connection would refuse to send raises here.
        assert len(connection._encoded(7, ask.method, ask.params)) <= DEFAULT_LIMITS.message_bytes


def test_blobs_come_before_the_derivations_that_name_them(S: StorageSettings) -> None:
    closure = instantiate(daemons.chain, S=S)[1]
    seen: set[str] = set()
    for ask in sent_for(closure):
        if isinstance(ask.params, m.SubmitBlob):
            seen.add(ask.params.sha256)
        elif isinstance(ask.params, m.SubmitAdd):
            assert {spec.realizer.blob for spec in ask.params.derivations} <= seen
    assert len(seen) == 1


def test_only_what_targets_need_is_sent_dependencies_first(S: StorageSettings) -> None:
    def stage(r: Registry) -> DRef:
        daemons.stage(r, "unneeded", daemons.write_config)
        return daemons.chain(r=r)

    closure = instantiate(stage, S=S)[1]
    (add,) = of_kind(sent_for(closure), m.SubmitAdd)
    order = needed_graph(closure.targets, closure.derivations, S).order
    configs = {d.dref: d.config for d in closure.derivations if isinstance(d, RegisteredDerivation)}
    assert [spec.config for spec in add.derivations] == [configs[dref] for dref in order]
    assert len(order) == 3


def test_wishes_travel(S: StorageSettings) -> None:
    dref, closure = instantiate(daemons.chain, S=S)
    assert isinstance(dref, str)
    wishes = Wishes(force_rebuild=True, assert_realized=[DRef(dref)], realize_args={DRef(dref): {"a": 1}}, dry_run=True, watch=True)
    asked = sent_for(closure, wishes)
    opened = asked[0].params
    assert isinstance(opened, m.SubmitOpen)
    assert (opened.targets, opened.forced, opened.assert_realized, opened.dry_run) == ([dref], [dref], [dref], True)
    (add,) = of_kind(asked, m.SubmitAdd)
    assert [spec.args is not None for spec in add.derivations] == [False, False, True]
    assert [ask.method for ask in asked[-2:]] == ["subscribe", "submit.commit"]


def test_what_cannot_travel_stays_with_its_reason(S: StorageSettings) -> None:
    dref, closure = instantiate(daemons.chain, S=S)
    assert isinstance(dref, str)
    arguments: dict[DRef, Any] = {DRef(dref): {"lock": threading.Lock()}}
    (add,) = of_kind(sent_for(closure, Wishes(realize_args=arguments)), m.SubmitAdd)
    kinds = [spec.realizer.kind for spec in add.derivations]
    assert kinds == ["python", "python", "caller"]
    last = add.derivations[-1]
    assert "its arguments: it cannot be pickled" in last.realizer.reason
    (again,) = of_kind(sent_for(closure, Wishes(realize_args=arguments)), m.SubmitAdd)
    assert last.args != again.derivations[-1].args, "nobody can tell whether they are equal"


def test_large_arguments_stay_and_are_told_apart(S: StorageSettings) -> None:
    dref, closure = instantiate(daemons.chain, S=S)
    assert isinstance(dref, str)

    def args_of(byte: bytes) -> object:
        (add,) = of_kind(sent_for(closure, Wishes(realize_args={DRef(dref): {"much": byte * (BLOB_PIECE_BYTES_MAX + 1)}})), m.SubmitAdd)
        assert add.derivations[-1].realizer.kind == "caller"
        return add.derivations[-1].args

    assert args_of(b"a") == args_of(b"a") != args_of(b"b")


def test_what_code_a_realizer_is_goes_along(S: StorageSettings) -> None:
    lock = threading.Lock()

    def held(b: Build) -> None:
        lock.acquire()

    def stages(r: Registry) -> list[DRef]:
        node = mknode(r, {"name": "node"})
        alike = [daemons.stage(r, f"alike-{i}", daemons.write_config) for i in range(2)]
        return [node, *alike, daemons.stage(r, "other", daemons.say), daemons.stage(r, "held", held)]

    (add,) = of_kind(sent_for(instantiate(stages, S=S)[1], Wishes()), m.SubmitAdd)
    assert [spec.realizer.kind for spec in add.derivations] == ["mknode", "python", "python", "python", "caller"]
    node, first, second, other, caller = (spec.digest for spec in add.derivations)
    assert node is None
    assert first == second == str(pyobjhash([daemons.write_config]))
    assert caller == str(pyobjhash([held]))
    assert len({first, other, caller}) == 3


def test_a_refused_submission_is_cancelled(S: StorageSettings) -> None:
    exchange = submission(instantiate(daemons.chain, S=S)[1], Wishes())
    next(exchange)
    exchange.send(m.Submitted(operation="op-1"))
    assert exchange.throw(MessageInvalid("not so")).params == m.Cancel(operation="op-1")
    with pytest.raises(MessageInvalid, match="not so"):
        exchange.send(m.Done())


def test_what_is_no_closure_is_refused_before_anything_is_sent(S: StorageSettings) -> None:
    closure = instantiate(daemons.chain, S=S)[1]
    wishes: Any = {"force_rebuild": "all"}
    with pytest.raises(Misuse, match="force_rebuild"):
        next(submission(closure, Wishes(**wishes)))


def test_registering_keeps_within_the_limits() -> None:
    configs = [b"x" * 1_000_000] * 8 + [b"{}"] * 1500
    asked, drefs = carried(registration(configs), lambda params: m.Registered(drefs=["d"] * len(params.configs)))
    assert [len(params.configs) for params in of_kind(asked, m.Register)] == [6, 1000, 502]
    assert len(drefs) == 1508
    assert carried(registration([]), lambda _: m.Done()) == ([], [])
