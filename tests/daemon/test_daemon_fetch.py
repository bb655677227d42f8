"""Fetching through a daemon: once for all, without a slot, resumed after `kill -9`, with its user's settings and nobody's secrets."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.daemon import stages
from tests.daemon.conftest import Daemon
from tests.daemon.wire_client import WireClient, config_bytes, environment
from tests.fetch.servers import Request, running_nginx, scripted

from pylightnix import (
    BuildError,
    Closure,
    DRef,
    FetchUnavailable,
    Options,
    UnpackLimits,
    WrongChecksum,
    fetchurl,
    fetchurl2,
    instantiate,
    mklens,
    realize,
    realize1,
    redefine,
    rref2path,
    unpack,
    with_options,
)
from pylightnix.errors import UnpackFailed
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import BuildDied, MessageInvalid
from pylightnix.travel import pack_realizer

CONTENT = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def serve(request: Request) -> None:
    request.serve(CONTENT, etag='"1"')


def one(daemon: Daemon, url: str, **more: Any) -> Closure:
    return instantiate(lambda r: fetchurl2(url, **{"sha256": SHA256, "filename": "data", **more}, r=r), S=daemon.plans)[1]


@contextmanager
def variables(changes: Mapping[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setenv(name, value)
        yield


def content(daemon: Daemon, client: WireClient, operation: str) -> bytes:
    ((rref,),) = client.matched(operation).values()
    return Path(rref2path(rref, daemon.S), "data").read_bytes()


def fetches(client: WireClient) -> list[m.Event]:
    heard = [event for said in client.notifications if isinstance(said.params, m.Events) for event in said.params.events]
    return [event for event in heard if event.kind == "fetch"]


def test_a_file_is_fetched_and_it_is_told_how_far_it_is(daemon: Daemon, client: WireClient) -> None:
    with scripted(serve) as server:
        operation = client.open(one(daemon, f"{server.url}/f"))
        client.call("subscribe", m.Subscribe(operation=operation, credit=1000), m.Done)
        client.commit(operation)
        assert client.wait(operation).built == 1
    assert content(daemon, client, operation) == CONTENT
    events = fetches(client)
    assert [events[0].phase, events[-1].phase] == ["start", "stop"]
    assert {event.id for event in events} == {events[0].id}
    assert events[0].parent is not None
    last = events[-1].fetch
    assert last is not None
    assert (last.bytes, last.total, last.mirror, last.attempt) == (len(CONTENT), len(CONTENT), f"{server.url}/f", 1)
    (dref,) = client.matched(operation)
    assert client.log(dref) == f"fetching {server.url}/f\n".encode()
    assert os.listdir(os.path.join(daemon.root, "tmp")) != []
    daemon.stop_soundly({rref for rrefs in client.matched(operation).values() for rref in rrefs})


def test_twenty_clients_and_one_request(daemon: Daemon) -> None:
    """They even want it under twenty names, as twenty derivations."""
    all_ask = threading.Event()

    def handler(request: Request) -> None:
        assert all_ask.wait(60)
        serve(request)

    with scripted(handler) as server:
        clients = [daemon.client() for _ in range(20)]
        try:
            operations = [client.submit(one(daemon, f"{server.url}/f", name=f"wish{number % 10}")) for number, client in enumerate(clients)]
            while sum(line.state == "running" for line in clients[0].ps().builds) < 10:
                pass
            all_ask.set()
            results = [client.wait(operation) for client, operation in zip(clients, operations, strict=True)]
            assert sorted((r.built, r.joined) for r in results) == [(0, 1)] * 10 + [(1, 0)] * 10
            for client, operation in zip(clients, operations, strict=True):
                assert content(daemon, client, operation) == CONTENT
        finally:
            for client in clients:
                client.close()
    assert len(server.requests) == 1


def test_a_fetch_waits_for_no_slot(tmp_path: Path) -> None:
    gate = stages.Gate(tmp_path)
    with Daemon(tmp_path / "store", "--jobs", "1") as daemon, daemon.wait_ready().client() as client, scripted(serve) as server:
        holds = client.submit(stages.one(daemon.plans, stages.waits, gate=gate.path))
        gate.wait_hello()
        assert client.build(one(daemon, f"{server.url}/f"))[1].built == 1
        gate.go()
        assert client.wait(holds).ok


def tarball() -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            info = tarfile.TarInfo("top/inside")
            info.size = 5
            archive.addfile(info, io.BytesIO(b"hello"))
        return file.getvalue()


def test_what_was_fetched_is_unpacked(daemon: Daemon) -> None:
    packed = tarball()
    with scripted(lambda request: request.serve(packed)) as server:

        def stage(r: Any, **more: Any) -> DRef:
            return fetchurl(f"{server.url}/a.tar.gz", sha256=hashlib.sha256(packed).hexdigest(), r=r, **more)

        rref = realize1(instantiate(stage, S=daemon.S))
        assert Path(rref2path(rref, daemon.S), "top", "inside").read_text() == "hello"
        both = realize1(instantiate(stage, mode="unpack", S=daemon.S))
        assert Path(rref2path(both, daemon.S), "a.tar.gz").read_bytes() == packed
        plain = realize1(instantiate(stage, mode="", S=daemon.S))
        assert Path(mklens(plain, S=daemon.S).out_path.syspath).read_bytes() == packed


def test_limits_travel_to_who_unpacks(daemon: Daemon) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for number in range(3):
            archive.addfile(tarfile.TarInfo(f"top/{number}"))
    packed = file.getvalue()
    sha256 = hashlib.sha256(packed).hexdigest()

    def fetched(r: Any, limits: Any) -> DRef:
        return fetchurl(f"{server.url}/f.tar.gz", sha256=sha256, limits=limits, r=r)

    def unpacked(r: Any, limits: Any) -> DRef:
        return unpack(refpath=[fetchurl2(f"{server.url}/f.tar.gz", sha256=sha256, r=r), "f.tar.gz"], limits=limits, r=r)

    with scripted(lambda request: request.serve(packed)) as server:
        for stage in (fetched, unpacked):
            with pytest.raises(BuildError) as found:
                realize1(instantiate(stage, limits=UnpackLimits(entries=1), S=daemon.S))
            assert isinstance(found.value.exception, UnpackFailed)
            assert "limits=UnpackLimits(entries=" in str(found.value.exception)
            assert realize1(instantiate(stage, limits={"entries": 9, "ratio": 9}, S=daemon.S))


def test_odd_netrc_harms_no_fetch_and_is_told_where_a_login_is_wanted(daemon: Daemon, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_bytes(b"machine api.heroku.com\n  login me\n  password \xff\n  method interactive\nmachine 127.0.0.1 login\n")
    with scripted(serve) as server, variables({"NETRC": str(netrc)}):
        assert realize1(instantiate(lambda r: fetchurl2(f"{server.url}/f", sha256=SHA256, r=r), S=daemon.S))
        server.handler = lambda request: request.answer(401)
        with pytest.raises(BuildError) as found:
            realize1(instantiate(lambda r: fetchurl2(f"{server.url}/g", sha256="1" * 64, r=r), S=daemon.S))
        assert f"{netrc}: its 'login' has no value" in str(found.value.exception)


def test_failures_are_those_of_a_store_without_a_daemon(daemon: Daemon) -> None:
    with scripted(serve) as server:
        wrong = "0" * 64
        with pytest.raises(BuildError) as found:
            realize(instantiate(lambda r: fetchurl2(f"{server.url}/f", sha256=wrong, filename="data", r=r), S=daemon.S))
        assert "Traceback" not in str(found.value.__cause__)
        error = found.value.exception
        assert isinstance(error, WrongChecksum)
        assert (error.expected["sha256"], error.found["sha256"]) == (wrong, SHA256)
        assert error.kept is not None
        assert Path(error.kept).read_bytes() == CONTENT
        with pytest.raises(BuildError) as found:
            realize(instantiate(lambda r: fetchurl(f"{server.url}/f.tar", sha256=SHA256, r=r), S=daemon.S))
        assert isinstance(found.value.exception, UnpackFailed)
    with pytest.raises(BuildError) as found:
        realize(instantiate(lambda r: fetchurl2(f"{server.url}/f", sha256="1" * 64, total_seconds=1.0, r=r), S=daemon.S))
    assert isinstance(found.value.exception, FetchUnavailable)
    # What was put aside is what a corrected stage wants; no server is there any more.
    assert realize1(instantiate(lambda r: fetchurl2(f"{server.url}/f", sha256=SHA256, r=r), S=daemon.S))


def test_a_fetch_is_cancelled_with_its_build(daemon: Daemon, client: WireClient) -> None:
    asked = threading.Event()

    def handler(request: Request) -> None:
        request.answer(200, CONTENT[:1000], length=len(CONTENT))
        asked.set()
        request.connection.recv(1)  # until it hangs up
        raise ConnectionAbortedError

    with scripted(handler) as server:
        operation = client.submit(one(daemon, f"{server.url}/f"))
        assert asked.wait(30)
        while (line := client.ps().builds[0]).waiting_for != f"1000 of {len(CONTENT)} bytes from {server.url}/f":
            pass
        assert (line.state, line.pid, line.resources) == ("running", None, None)
        client.call("cancel", m.Cancel(operation=operation), m.Done)
        assert not client.wait(operation).ok
        while client.ps().builds:
            pass
    assert client.status().busy == 0


def test_a_fetch_has_the_time_that_a_build_has(tmp_path: Path) -> None:
    with Daemon(tmp_path / "store", "--timeout", "0.5") as daemon, daemon.wait_ready().client() as client:
        with scripted(lambda request: server.hold()) as server:
            operation, result = client.build(one(daemon, f"{server.url}/f"))
            assert result.failed == 1
        (row,) = client.failed(operation)
        assert (row.code, row.fields["how"]) == (BuildDied.code, "took longer than the daemon's timeout of 0.5 s")


def test_settings_are_those_of_who_asks_and_secrets_nobodys(tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login ann password s3cret-netrc\n")
    netrc.chmod(0o600)
    seen: list[Mapping[str, str]] = []

    def handler(request: Request) -> None:
        seen.append(request.headers)
        serve(request)

    with Daemon(tmp_path / "store", env={**os.environ, "NETRC": "/nonexistent"}) as daemon, daemon.wait_ready().client() as client:
        with scripted(handler) as server, variables({"NETRC": str(netrc)}):
            operation = client.open(one(daemon, f"{server.url}/f?token=s3cret-query", headers={"X-Key": "s3cret-header"}))
            client.call("subscribe", m.Subscribe(operation=operation, credit=1000), m.Done)
            client.commit(operation)
            assert client.wait(operation).built == 1
        (asked,) = seen
        assert asked["authorization"].startswith("Basic ")
        assert asked["x-key"] == "s3cret-header"
        assert fetches(client)
        told = repr([*client.notifications, client.ps(), client.matched(operation)])
        daemon.stop()
        kept = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
        for text in (told.encode(), daemon.said.encode(), kept):
            for secret in (b"s3cret-netrc", b"s3cret-header", b"s3cret-query"):
                assert secret not in text


def test_hashed_mirrors_of_the_daemon_come_first(tmp_path: Path) -> None:
    with scripted(serve) as mirror, scripted(serve) as server:
        settings = tmp_path / "settings.toml"
        settings.write_text(f'fetch = {{ hashed-mirrors = ["{mirror.url}/files"] }}\n')
        with Daemon(tmp_path / "store", "--config", str(settings)) as daemon, daemon.wait_ready().client() as client:
            assert client.build(one(daemon, f"{server.url}/f"))[1].built == 1
    assert [request.target for request in mirror.requests] == [f"/files/sha256/{SHA256}"]
    assert server.requests == []


def test_local_files_are_taken_by_the_program_that_asks(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "local"
    path.write_bytes(CONTENT)

    def stage(r: Any) -> DRef:
        return fetchurl(f"file://{path}", sha256=SHA256, mode="", r=r)

    closure = instantiate(stage, S=daemon.plans)[1]
    assert pack_realizer(closure.derivations[0].realizer).kind == "caller"
    rref = realize1(instantiate(stage, S=daemon.S))
    assert Path(mklens(rref, S=daemon.S).out_path.syspath).read_bytes() == CONTENT


def test_folder_of_a_running_daemon_may_be_removed(daemon: Daemon, client: WireClient) -> None:
    with scripted(serve) as server:
        for number in range(2):
            operation, result = client.build(one(daemon, f"{server.url}/f", name=f"wish{number}"))
            assert result.built == 1
            assert content(daemon, client, operation) == CONTENT
            shutil.rmtree(os.path.join(daemon.root, "fetch"))


def test_options_count_for_fetches_too(daemon: Daemon, client: WireClient) -> None:
    with scripted(lambda request: server.hold()) as server:
        url = f"{server.url}/f"
        steered = with_options(one(daemon, url).derivations[0].realizer, Options(timeout_seconds=0.3))
        stage = redefine(lambda r: fetchurl2(url, sha256=SHA256, r=r), new_realizer=steered)
        operation, result = client.build(instantiate(stage, S=daemon.plans)[1])
        assert result.failed == 1
    assert client.failed(operation)[0].fields["how"] == "took longer than its stage's timeout_seconds of 0.3 s"


@pytest.mark.parametrize(
    ("blob", "problem"),
    [
        (b"\xc1", "expected what is to be fetched as a MessagePack map"),
        ({"urls": ["file:///etc/shadow"]}, "a local file is taken by the program that may open it"),
        ({"urls": ["https://example.org/"], "filename": "../x"}, "expected a plain file name"),
        ({"urls": ["gopher://example.org/"]}, "begins with neither"),
        ({"urls": ["https://example.org/"], "headers": {"Range": "bytes=0-"}}, "is set by the transfer itself"),
        ({"urls": ["https://example.org/"], "max_bytes": -1}, "expected what is to be fetched"),
        ({"urls": ["https://example.org/"], "proxies": [["http", "file:///x"]]}, "a local file is taken"),
        ({}, "it does not say which file to fetch"),
    ],
)
def test_what_cannot_be_fetched_is_refused_with_its_place(daemon: Daemon, client: WireClient, blob: Any, problem: str) -> None:
    import msgpack  # type: ignore[import-untyped]  # it ships no type information

    data = blob if isinstance(blob, bytes) else msgpack.packb(blob)
    name = hashlib.sha256(data).hexdigest()
    (derivation,) = one(daemon, "https://example.org/f").derivations
    opened = m.SubmitOpen(targets=[str(derivation.dref)], environment=environment())
    operation = client.call("submit.open", opened, m.Submitted).operation
    client.call("submit.blob", m.SubmitBlob(operation=operation, sha256=name, size=len(data), data=data), m.Done)
    spec = m.DerivationSpec(
        config=config_bytes(derivation), matcher=m.MatcherSpec(kind="only"), realizer=m.RealizerSpec(kind="fetch", blob=name)
    )
    with pytest.raises(MessageInvalid, match=problem):
        client.call("submit.add", m.SubmitAdd(operation=operation, derivations=[spec]), m.Done)


def test_kill_9_in_a_fetch_costs_little(tmp_path: Path) -> None:
    size = 256 << 20
    with running_nginx(tmp_path / "nginx", rate="200m") as nginx:
        with open(nginx.www / "big", "wb") as file:
            block = os.urandom(1 << 20)
            for number in range(256):
                file.write(number.to_bytes(4, "big") + block[4:])
        with open(nginx.www / "big", "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        with Daemon(tmp_path / "store") as daemon, daemon.wait_ready().client() as client:
            closure = one(daemon, f"{nginx.url}/big", sha256=checksum)
            operation = client.open(closure)
            client.call("subscribe", m.Subscribe(operation=operation, credit=100_000), m.Done)
            client.commit(operation)
            far = 0
            while far < size // 2:
                said = client.next_notification().params
                assert isinstance(said, m.Events)
                far = max([far, *(event.fetch.bytes for event in said.events if event.fetch is not None)])
            daemon.kill()
        with Daemon(tmp_path / "store") as daemon, daemon.wait_ready().client() as client:
            operation, result = client.build(closure)
            assert result.built == 1
            ((rref,),) = client.matched(operation).values()
            assert os.path.getsize(os.path.join(rref2path(rref, daemon.S), "data")) == size
            daemon.stop_soundly({rref})
        nginx.stop()
        again = sum(sent for _, _, sent in nginx.requests()) - size
    print(f"fetched twice: {again / size:.1%}")
    assert again < 0.2 * size
