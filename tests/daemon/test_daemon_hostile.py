"""Clients that lie, stall, flood and vanish: an answer or a closed connection for them, nothing for anybody else."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no type information
import pytest
from tests.daemon import stages
from tests.daemon.conftest import Daemon
from tests.daemon.wire_client import WireClient, config_bytes, environment
from tests.stores import AS_ROOT, OTHER_UID, in_child

from pylightnix import PylightnixException
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import MessageInvalid, NotYours, TooMany
from pylightnix.protocol.limits import CONNECTIONS_PER_USER_MAX, UNGREETED_PER_USER_MAX
from pylightnix.store.locks import LOCK_WAIT_SECONDS
from pylightnix.travel import pack_realizer
from pylightnixd.report import parse_report

HELLO = msgpack.packb([0, 1, "hello", [{"versions": [1], "features": [], "client": "hostile"}]])
DEADLINE_SECONDS = 30.0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon that takes all of it."""
    with Daemon(tmp_path_factory.mktemp("hostile") / "store", "--jobs", "2") as running:
        yield running.wait_ready()
        running.stop_soundly(set())


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[WireClient]:
    """Somebody who was there before."""
    with daemon.client() as connected:
        yield connected


@pytest.fixture(autouse=True)
def _others_take_no_harm(daemon: Daemon, client: WireClient) -> Iterator[None]:
    """After every attack, one who was there before gets an answer and a build."""
    yield
    assert client.status().lost_wakeups == 0
    closure = stages.many(daemon.plans, 2)
    operation, result = client.build(closure, forced=[closure.targets[0]])
    assert (result.ok, len(client.matched(operation))) == (True, 2)


def said_to(daemon: Daemon, data: bytes, *, ends: bool = False) -> list[object]:
    """Send bytes, and return all that is answered until the daemon hangs up."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(DEADLINE_SECONDS)
        line.connect(daemon.socket_path)
        try:
            line.sendall(data)
            if ends:
                line.shutdown(socket.SHUT_WR)
        except BrokenPipeError:
            pass
        answer = bytearray()
        try:
            while piece := line.recv(1 << 16):
                answer += piece
        except ConnectionResetError:
            pass
    unpacker = msgpack.Unpacker()
    unpacker.feed(answer)
    return list(unpacker)


@pytest.mark.parametrize(
    "data",
    [
        os.urandom(1 << 16),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\xc1",
        b"\xdf\xff\xff\xff\xff",
        HELLO + b"\xc1",
        HELLO + b"\x94\x00\x02\xc6\x80\x00\x00\x00",  # a method of 2 GiB
        HELLO + b"\xdd\x80\x00\x00\x00",
        HELLO + b"\x94\x00\x02\xa4ping\x91\x81\xa1a" + b"\x91" * 10_000 + b"\xc0",
        HELLO + b"\x94\x00\x02\xa4ping\x91\x81\xa1a" + b"\x81\xa1a" * 10_000 + b"\xc0",
        msgpack.packb([0, 1, "status", [{}]]),
        msgpack.packb([0, 1, "hello", [{"versions": [77], "features": [], "client": "hostile"}]]),
        HELLO + msgpack.packb([1, 5, None, {}]),
    ],
    ids=[
        "random",
        "http",
        "reserved",
        "map32",
        "garbage",
        "2GiB",
        "array32",
        "deep-arrays",
        "deep-maps",
        "no-hello",
        "version",
        "response",
    ],
)
def test_a_broken_stream_is_hung_up_on(daemon: Daemon, data: bytes) -> None:
    answers = said_to(daemon, data)
    for answer in answers[data.startswith(HELLO) :]:
        assert isinstance(answer, list)
        assert answer[0] == 1
        assert isinstance(answer[2], dict)
        assert answer[2]["code"] in ("invalid-message", "too-large", "too-deep", "handshake-expected", "unsupported-version")


def test_half_a_message(daemon: Daemon) -> None:
    assert said_to(daemon, HELLO[:20], ends=True) == []
    assert len(said_to(daemon, HELLO + HELLO[:20], ends=True)) == 1


@pytest.mark.slow
def test_who_says_nothing_is_hung_up_on(daemon: Daemon) -> None:
    assert said_to(daemon, b"") == []
    assert said_to(daemon, HELLO[:5]) == []


@pytest.mark.slow
def test_a_hello_that_never_ends_is_hung_up_on(daemon: Daemon, client: WireClient) -> None:
    """It comes byte by byte, each well within any time that one might wait for a byte."""
    hello = msgpack.packb([0, 1, "hello", [{"versions": [1], "features": [], "client": "x" * 100_000}]])
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(daemon.socket_path)
        begun, sent = time.monotonic(), 0
        line.settimeout(0.1)
        while True:
            try:
                line.sendall(hello[sent : sent + 1])
                sent += 1
                if line.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                break
            assert time.monotonic() < begun + DEADLINE_SECONDS
        assert sent < len(hello)
    assert client.status().pid == daemon.process.pid


def opening(daemon: Daemon) -> tuple[bytes, Callable[[str], bytes]]:
    """Return how a whole valid conversation begins, and what follows it, given the name of the operation that it opens."""
    closure = stages.many(daemon.plans, 2)
    blob = pack_realizer(stages.plain).blob
    assert blob is not None
    name = hashlib.sha256(blob).hexdigest()
    opened = {"targets": closure.targets, "environment": {k: getattr(environment(), k) for k in m.Environment.__struct_fields__}}
    specs = [
        {"config": config_bytes(d), "matcher": {"kind": "latest", "n": 1}, "realizer": {"kind": "python", "blob": name}}
        for d in closure.derivations
    ]

    def rest(operation: str) -> bytes:
        messages = [
            [0, 3, "submit.blob", [{"operation": operation, "sha256": name, "size": len(blob), "data": blob}]],
            [0, 4, "submit.add", [{"operation": operation, "derivations": specs}]],
            [0, 5, "submit.commit", [{"operation": operation}]],
            [0, 6, "subscribe", [{"operation": operation, "credit": 100, "log": True}]],
            [0, 7, "wait", [{"operation": operation}]],
        ]
        return b"".join(map(msgpack.packb, messages))

    return HELLO + msgpack.packb([0, 2, "submit.open", [opened]]), rest


def answer_to(line: socket.socket, number: int, answers: dict[int, list[Any]]) -> Any:
    """Return the result of a request; what is answered before that is added to `answers`."""
    unpacker = msgpack.Unpacker()
    while number not in answers:
        piece = line.recv(1 << 16)
        assert piece, answers
        unpacker.feed(piece)
        answers.update({message[1]: message for message in unpacker if message[0] == 1})
    return answers[number][3]


@contextmanager
def connected(daemon: Daemon) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(DEADLINE_SECONDS)
        line.connect(daemon.socket_path)
        yield line


def test_vanishing_at_any_point_of_a_submission(daemon: Daemon, client: WireClient) -> None:
    first, rest_of = opening(daemon)
    size = len(first) + len(rest_of("op-0123456789"))
    for cut in sorted({1, *range(7, size, max(1, size // 40)), len(first), size - 1, size}):
        with connected(daemon) as line:
            line.sendall(first[:cut])
            if cut > len(first):
                operation = answer_to(line, 2, {})["operation"]
                line.sendall(rest_of(operation)[: cut - len(first)])
    assert any(client.status().operations == 0 for _ in range(5000))


def test_a_submission_in_one_go(daemon: Daemon, client: WireClient) -> None:
    """Requests that build on each other need not wait for each other's answers, once the operation has its name."""
    first, rest_of = opening(daemon)
    for _ in range(20):
        answers: dict[int, list[Any]] = {}
        with connected(daemon) as line:
            line.sendall(first)
            line.sendall(rest_of(answer_to(line, 2, answers)["operation"]))
            answer_to(line, 7, answers)
        assert [answer for answer in answers.values() if answer[2] is not None] == []


def test_who_subscribes_and_never_reads(daemon: Daemon, client: WireClient) -> None:
    closure = stages.one(daemon.plans, stages.chatters, lines=100_000)
    with daemon.client() as deaf:
        operation = deaf.submit(closure)
        deaf.send("subscribe", m.Subscribe(operation=operation, credit=2**31 - 1, log=True))
        attached = client.call("attach", m.Attach(operation=operation), m.Attached)
        assert attached.targets == list(closure.targets)
        assert client.status().busy <= 1
        assert client.wait(operation).ok
        assert len(client.log(closure.targets[0])) == 100_000 * 100
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        (resident,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")]
        assert resident < 150_000, f"{resident} KiB"


def test_who_asks_and_never_reads(daemon: Daemon, client: WireClient) -> None:
    with daemon.client() as deaf:
        for _ in range(256):
            deaf.send("ps", m.Ps())
        assert client.status().draining is False


def test_too_many_connections(daemon: Daemon, client: WireClient) -> None:
    friends: list[WireClient] = []
    try:
        while len(friends) < 63:
            friends.append(daemon.client())
        with pytest.raises(TooMany) as caught:
            daemon.client()
        assert caught.value.retry_after is not None
        friends.pop().close()
        for _ in range(1000):
            try:
                friends.append(daemon.client())
                break
            except TooMany:
                pass
        assert len(friends) == 63
    finally:
        for friend in friends:
            friend.close()


def test_who_says_nothing_keeps_nobody_out(daemon: Daemon, client: WireClient) -> None:
    """Silent connections do not count among those that have said hello, and too many of them cost the oldest."""
    silent = [WireClient(daemon.socket_path, say_hello=False) for _ in range(2 * UNGREETED_PER_USER_MAX)]
    friends: list[WireClient] = []
    try:
        assert silent[0].socket.recv(1) == b"", "the oldest was hung up on"
        while len(friends) < CONNECTIONS_PER_USER_MAX - 2:
            friends.append(daemon.client())
        assert silent[-1].hello().pid == daemon.process.pid
        with pytest.raises(TooMany):
            daemon.client()
    finally:
        for line in [*silent, *friends]:
            line.close()


def test_a_method_that_there_is_not(daemon: Daemon) -> None:
    answers = said_to(daemon, HELLO + msgpack.packb([0, 2, "steal", [{}]]) + msgpack.packb([0, 3, "status", [{}]]), ends=True)
    by_id = {answer[1]: answer for answer in answers if isinstance(answer, list)}
    assert by_id[2][2]["code"] == "unknown-method"


TWICE = f'{{"dref:{"0" * 32}-a":["rref:{"1" * 32}-{"0" * 32}-a","rref:{"1" * 32}-{"0" * 32}-a"]}}'.encode()


@pytest.mark.parametrize(
    ("method", "params", "field"),
    [
        ("wait", {}, "$"),
        ("wait", {"operation": 7}, "$.operation"),
        ("submit.open", {"targets": ["nonsense"], "environment": {}}, "$.targets[0]"),
        ("submit.open", {"targets": [], "environment": {"interpreter": "python"}}, "$.environment.interpreter"),
        ("query", {"what": "drefrrefs"}, "$.dref"),
        ("query", {"what": "drefrrefsC", "dref": f"dref:{'0' * 32}-x", "context": b"{]"}, "$.context"),
        ("query", {"what": "drefrrefsC", "dref": f"dref:{'0' * 32}-x", "context": b"[]"}, "$.context"),
        ("query", {"what": "drefrrefsC", "dref": f"dref:{'0' * 32}-x", "context": b'{"a":3}'}, "$.context"),
        ("query", {"what": "drefrrefsC", "dref": f"dref:{'0' * 32}-x", "context": b"{ }"}, "$.context"),
        ("query", {"what": "drefrrefsC", "dref": f"dref:{'0' * 32}-x", "context": b'{"a":["b"]}'}, "$.context"),
        ("query", {"what": "drefrrefsC", "dref": f"dref:{'0' * 32}-x", "context": TWICE}, "$.context"),
        ("register", {"configs": [b"{ }"]}, "$.configs[0]"),
        ("register", {"configs": [b"{}", b"\xff\xff"]}, "$.configs"),
        ("register", {"configs": [b'{"a":' + b"[" * 900 + b"]" * 900 + b"}"]}, "$.configs[0]"),
        ("register", {"configs": [b"[" * 100_000 + b"]" * 100_000]}, "$.configs[0]"),
        ("log", {"ref": "../../etc/passwd"}, "$.ref"),
    ],
)
def test_invalid_params_name_the_field(daemon: Daemon, method: str, params: dict[str, object], field: str) -> None:
    data = HELLO + msgpack.packb([0, 2, method, [params]])
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(DEADLINE_SECONDS)
        line.connect(daemon.socket_path)
        line.sendall(data)
        unpacker = msgpack.Unpacker()
        answers: list[list[object]] = []
        while len(answers) < 2:
            piece = line.recv(1 << 16)
            assert piece, answers
            unpacker.feed(piece)
            answers += list(unpacker)
    error = answers[1][2]
    assert isinstance(error, dict)
    assert error["code"] == "invalid-message", error
    assert str(error["field"]).startswith(field)


def test_a_blob_that_is_not_what_it_is_called(daemon: Daemon, client: WireClient) -> None:
    closure = stages.one(daemon.plans, stages.plain)
    params = m.SubmitOpen(targets=list(map(str, closure.targets)), environment=environment())
    operation = client.call("submit.open", params, m.Submitted).operation
    blob = pack_realizer(stages.fails).blob
    honest = pack_realizer(stages.plain).blob
    assert blob is not None
    assert honest is not None
    name = hashlib.sha256(honest).hexdigest()
    spec = m.DerivationSpec(
        config=config_bytes(closure.derivations[0]),
        matcher=m.MatcherSpec(kind="latest", n=1),
        realizer=m.RealizerSpec(kind="python", blob=name),
    )
    with pytest.raises(MessageInvalid):
        client.call("submit.blob", m.SubmitBlob(operation=operation, sha256=name, size=len(blob), data=blob), m.Done)
    with pytest.raises(MessageInvalid, match="was not sent in full"):
        client.call("submit.add", m.SubmitAdd(operation=operation, derivations=[spec]), m.Done)
    client.call("submit.blob", m.SubmitBlob(operation=operation, sha256=name, size=len(honest), data=honest[:9]), m.Done)
    with pytest.raises(MessageInvalid, match="was not sent in full"):
        client.call("submit.add", m.SubmitAdd(operation=operation, derivations=[spec]), m.Done)
    client.call("submit.blob", m.SubmitBlob(operation=operation, sha256=name, size=len(honest), offset=9, data=honest[9:]), m.Done)
    client.call("submit.add", m.SubmitAdd(operation=operation, derivations=[spec]), m.Done)
    client.commit(operation)
    assert client.wait(operation).ok


def test_questions_about_what_there_is_not(daemon: Daemon, client: WireClient) -> None:
    for method, params in [
        ("log", m.Log(ref="b999")),
        ("info", m.Info(ref=f"rref:{'0' * 32}-{'0' * 32}-x")),
        ("wait", m.Wait(operation="none")),
        ("attach", m.Attach(operation="none")),
    ]:
        with pytest.raises(PylightnixException) as caught:
            client.call(method, params, m.Message)
        assert caught.value.code != "internal"


@pytest.mark.skipif(not AS_ROOT, reason="it takes root to be another user")
def test_another_user_is_refused(open_folder: Path) -> None:
    with Daemon(open_folder / "store").wait_ready() as daemon:
        with pytest.raises(PermissionError):
            in_child(lambda: WireClient(daemon.socket_path).status(), uid=OTHER_UID)
        for path in (daemon.root, daemon.socket_path):
            os.chmod(path, 0o777)  # the kernel lets everybody in now; the daemon does not
        with pytest.raises(NotYours):
            in_child(lambda: WireClient(daemon.socket_path).status(), uid=OTHER_UID)


def test_a_report_is_believed_only_if_it_can_be_true() -> None:
    """A realizer can write what it likes on the pipe on which the process that runs it reports."""
    report = {"outputs": ["out"], "error": None, "manifest": None, "started": 1.0, "stopped": 2.0}
    assert parse_report(msgpack.packb(report)) is not None
    names = ["sub/deep", "out/", "/out", "..", ".", "", "a\0b", "x" * 256]
    lies: list[dict[str, object]] = [{"outputs": [name]} for name in names]
    lies += [{"outputs": "out"}, {"started": float("nan")}, {"started": -1.0}, {"stopped": float("inf")}, {"error": "none"}]
    for lie in lies:
        assert parse_report(msgpack.packb({**report, **lie})) is None, lie
    for cut in range(len(msgpack.packb(report))):
        assert parse_report(msgpack.packb(report)[:cut]) is None


# --- where it listens -----------------------------------------------------------------------------------


def run_daemon(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a daemon that is expected to end by itself."""
    command = [sys.executable, "-m", "pylightnixd", "--store", str(root), "--foreground", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_socket_path_that_is_too_long(daemon: Daemon, tmp_path: Path) -> None:
    path = str(tmp_path / ("x" * 120))
    ended = run_daemon(tmp_path / "other", "--socket", path)
    assert ended.returncode == 73
    assert f"the path has {len(path)} bytes, and a Unix socket's may have 107" in ended.stderr


def test_a_socket_path_where_something_else_is(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    ended = run_daemon(tmp_path / "other", "--socket", str(path))
    assert ended.returncode == 73
    assert "something that is no socket is there" in ended.stderr
    assert path.read_text() == "precious"


def test_a_socket_of_another_daemon(daemon: Daemon, tmp_path: Path) -> None:
    ended = run_daemon(tmp_path / "other", "--socket", daemon.socket_path)
    assert ended.returncode == 73
    assert "another daemon answers there" in ended.stderr


def test_a_stale_socket(daemon: Daemon, tmp_path: Path) -> None:
    path = str(tmp_path / "stale.sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    with Daemon(tmp_path / "other", "--socket", path) as other:
        other.wait_ready()
        assert os.readlink(other.socket_path) == path
        with other.client() as client, WireClient(path) as same:
            assert client.status().pid == same.status().pid == other.process.pid
    assert not os.path.lexists(other.socket_path)
    assert not os.path.lexists(path)


def test_a_second_daemon_on_a_store(daemon: Daemon) -> None:
    begun = time.monotonic()
    ended = run_daemon(Path(daemon.root))
    assert time.monotonic() - begun < LOCK_WAIT_SECONDS, "it waited for a store that it cannot get"
    assert f"at {daemon.socket_path}; use that one, or end it first: kill {daemon.process.pid}" in ended.stderr
    assert ended.returncode == 75
    assert str(daemon.process.pid) in ended.stderr
    assert "pylightnixd" in ended.stderr
