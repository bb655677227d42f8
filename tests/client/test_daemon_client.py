"""The library and the client with a real daemon: what they give must be what the embedded store gives."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from tests.client import daemons
from tests.stores import new_store, stage
from tests.waiting import wait_until

import pylightnix
from pylightnix import (
    Build,
    BuildError,
    DRef,
    InvalidConfig,
    NotRealized,
    PromiseException,
    Registry,
    RRef,
    StorageSettings,
    allrrefs,
    build_wrapper,
    current_storage,
    drefrrefs,
    drefrrefsC,
    instantiate,
    match_latest,
    mkclosure,
    mkconfig,
    mkdrv,
    mkdrv_,
    mkregistry,
    realize,
    realize1,
    rootrrefs,
    rref2dref,
    rref2path,
    rrefctx,
    selfref,
)
from pylightnix.events import BuildFailed, BuildFinished, BuildSkipped, BuildStarted, Event
from pylightnix.nesting import running_realizer
from pylightnix.protocol import messages
from pylightnix.protocol.errors import TooMany
from pylightnix.protocol.limits import CONNECTIONS_PER_USER_MAX
from pylightnix.query import realization_info, realization_starts
from pylightnix.remote import _Search, realize_closure
from pylightnix.storage import store_layout
from pylightnix.store.ownership import daemon_socket
from pylightnix_client.client import Client
from pylightnix_client.connecting import socket_of
from pylightnix_client.errors import DaemonFull, NoDaemon, SocketRefused
from pylightnix_client.failures import build_report
from pylightnix_client.onlooker import Onlooker
from pylightnix_client.operation import Operation
from pylightnix_client.output import Answers
from pylightnix_client.progress import JsonProgress, TextProgress
from pylightnix_client.realizing import Spans, watch


@pytest.fixture(scope="module")
def served() -> Iterator[StorageSettings]:
    with daemons.served_store() as S:
        yield S


@pytest.fixture
def client(served: StorageSettings) -> Iterator[Client]:
    with Client.connect(store_layout(served)) as connected:
        yield connected


def text_of(rref: RRef, S: StorageSettings) -> str:
    return (Path(rref2path(rref, S)) / "out.txt").read_text()


# --- connecting ---------------------------------------------------------------------------------------


def test_a_store_without_daemon_has_no_socket(S: StorageSettings) -> None:
    assert daemon_socket(store_layout(S)) is None
    with pytest.raises(NoDaemon, match="none owns this store"):
        Client.connect(store_layout(S))


def test_what_connecting_can_meet_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NoDaemon, match="no such socket"):
        Client.connect(str(tmp_path / "none"))
    stale = str(tmp_path / "stale")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(stale)
    with pytest.raises(NoDaemon, match="nobody listens there any more"):
        Client.connect(stale)
    with pytest.raises(NoDaemon, match="107 bytes"):
        Client.connect("/" + "x" * 200)


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to be another user")
def test_another_user_is_refused_clearly(served: StorageSettings) -> None:
    from tests.stores import OTHER_UID, in_child

    path = daemon_socket(store_layout(served))
    assert path is not None

    def connect() -> str:
        try:
            Client.connect(path)
        except SocketRefused as error:
            return str(error)
        return "connected"

    assert "another user" in in_child(connect, uid=OTHER_UID)


def test_a_daemon_is_found_by_its_store_its_socket_or_as_the_current_one(served: StorageSettings) -> None:
    layout = store_layout(served)
    path = socket_of(served)
    for where in (served, layout, path, Path(path), None):
        with current_storage(served), Client.connect(where) as client:
            assert (client.path, client.welcome.storage) == (path, layout.storage)
    with current_storage(served), Client.connect() as client:
        assert client.path == path


def test_a_daemon_says_who_it_is(client: Client, served: StorageSettings) -> None:
    assert (client.welcome.store, client.trusted) == (str(served.root), True)
    status = client.status()
    assert (status.pid, status.store, status.draining) == (client.welcome.pid, str(served.root), False)
    assert client.ps().builds == []


# --- realizing ----------------------------------------------------------------------------------------


def test_a_daemon_gives_the_same_as_the_embedded_store(served: StorageSettings, S: StorageSettings) -> None:
    results = [realize(instantiate(daemons.chain, "same", S=settings)) for settings in (served, S)]
    (result, _, context), (other_result, _, other_context) = results
    assert (result, context) == (other_result, other_context)
    rref = realize1(instantiate(daemons.chain, "same", S=served))
    assert text_of(rref, served) == "same-1"
    assert rrefctx(rref, served) == rrefctx(rref, S)


def test_what_is_realized_is_reused(served: StorageSettings) -> None:
    closure = instantiate(daemons.chain, "reused", S=served)[1]
    first, second = realize_closure(closure), realize_closure(closure)
    assert (sorted(first.built), second.built) == (sorted(first.context), [])
    assert (sorted(second.reused), second.context) == (sorted(first.context), first.context)


def test_force_rebuild_builds_again(served: StorageSettings) -> None:
    closure = instantiate(daemons.chain, "forced", 2, S=served)[1]
    realize_closure(closure)
    assert realize_closure(closure, force_rebuild=True).built == closure.targets
    assert sorted(realize_closure(closure, force_rebuild=[d.dref for d in closure.derivations]).built) == sorted(
        d.dref for d in closure.derivations
    )


def test_a_dry_run_tells_what_would_be_done(served: StorageSettings, S: StorageSettings) -> None:
    steps = []
    for settings in (served, S):
        outcome = realize_closure(instantiate(daemons.chain, "dry", 8, S=settings)[1], dry_run=True)
        assert outcome.built == []
        assert all(found is None for found in outcome.context.values())
        assert list(outcome.context) == sorted(outcome.context) != [step.dref for step in outcome.steps], "in textual order"
        steps.append(outcome.steps)
    assert steps[0] == steps[1]


def test_arguments_reach_the_realizer(served: StorageSettings) -> None:
    dref, closure = instantiate(lambda r: daemons.stage(r, "argument", daemons.write_argument), S=served)
    assert isinstance(dref, str)
    rref = realize1(closure, realize_args={DRef(dref): {"word": "given"}})
    assert text_of(rref, served) == "given"


def test_a_config_that_is_too_long_is_named(served: StorageSettings) -> None:
    with pytest.raises(InvalidConfig, match=r"dref:.*-long: is 2000025 bytes long, and a daemon takes at most 1048576; make a stage"):
        instantiate(lambda r: stage(r, "long", text="x" * 2_000_000), S=served)


def test_many_derivations_are_registered_and_realized(served: StorageSettings) -> None:
    def many(r: Registry) -> list[DRef]:
        return [daemons.stage(r, "many", daemons.write_config, text="x" * 9000, i=i) for i in range(1100)]

    outcome = realize_closure(instantiate(many, S=served)[1], dry_run=True)
    assert len(outcome.steps) == 1100
    assert len({d for d in pylightnix.alldrefs(served) if d.endswith("-many")}) == 1100


# --- failing ------------------------------------------------------------------------------------------


def test_a_build_error_arrives_whole(served: StorageSettings) -> None:
    dref, closure = instantiate(lambda r: daemons.stage(r, "failing", daemons.fail), S=served)
    with pytest.raises(BuildError, match="no such luck") as caught:
        realize(closure)
    assert caught.value.dref == dref
    assert isinstance(caught.value.exception, ValueError)
    assert str(caught.value.exception) == "no such luck"
    assert "raise ValueError" in str(caught.value.exception.__cause__)
    assert [(Path(path) / "half.txt").read_text() for path in caught.value.outpaths] == ["half"]


def here_only() -> Any:
    lock = threading.Lock()  # which keeps it in this process

    def leave_half(b: Build) -> None:
        with lock:
            daemons.leave_half(b)

    return leave_half


@pytest.mark.parametrize("where", ["embedded", "worker", "caller"])
def test_a_broken_promise_names_folders_that_are_kept(served: StorageSettings, S: StorageSettings, where: str) -> None:
    settings = S if where == "embedded" else served
    realizer = build_wrapper(here_only() if where == "caller" else daemons.leave_half, nouts=2)
    config = mkconfig({"name": f"broken-{where}", "half": [selfref, "half.txt"], "whole": [selfref, "whole.txt"]})
    _, closure = instantiate(lambda r: mkdrv(config, match_latest(), realizer, r), S=settings)
    outcome = realize_closure(closure)
    [(_, error)] = outcome.failed
    assert isinstance(error, PromiseException)
    assert [selfpath for _, selfpath in error.failed] == [[selfref, "whole.txt"]] * 2
    folders = [Path(folder) for folder, _ in error.failed]
    assert len(set(folders)) == 2
    for folder in folders:
        assert (folder / "half.txt").read_text() == "half"
        assert str(folder).startswith(store_layout(settings).failed)
        assert f"whole.txt in {folder}" in str(error)
    assert not re.search(r"/tmp/[0-9]+-[0-9a-f]{12}/", str(error)), "no folder of a process that has ended or will"
    assert build_report(error).kept == tuple(map(str, folders))


def test_what_a_raw_realizer_raises_arrives_as_it_was(served: StorageSettings) -> None:
    with pytest.raises(KeyError, match="raw"):
        realize(instantiate(lambda r: mkdrv(mkconfig({"name": "raw"}), match_latest(), daemons.raise_raw, r), S=served))


def test_what_must_be_realized_and_is_not_fails(served: StorageSettings) -> None:
    _, closure = instantiate(daemons.chain, "asserted", S=served)
    with pytest.raises(NotRealized):
        realize(closure, assert_realized=closure.targets)


def test_events_tell_the_same_story(served: StorageSettings, S: StorageSettings) -> None:
    def above(r: Registry) -> DRef:
        return daemons.stage(r, "above", daemons.write_config, dep=daemons.stage(r, "below", daemons.fail))

    def story(settings: StorageSettings, what: Any) -> list[tuple[type[Event], DRef]]:
        heard: list[Event] = []
        realize_closure(instantiate(what, S=settings)[1], observe=heard.append)
        return [(type(event), event.dref) for event in heard]

    told = story(served, above)
    assert told == story(S, above)
    assert [kind for kind, _ in told] == [BuildStarted, BuildFailed, BuildSkipped]
    told = story(served, daemons.chain)
    assert told == story(S, daemons.chain)
    assert [kind for kind, _ in told] == [BuildStarted, BuildFinished] * 3


# --- registering and enumerating ----------------------------------------------------------------------


def test_derivations_are_written_all_at_once(served: StorageSettings) -> None:
    r = mkregistry(served)
    started = time.monotonic()
    drefs = [mkdrv(mkconfig({"name": "cold", "i": i}), match_latest(), daemons.raise_raw, r) for i in range(3)]
    assert time.monotonic() - started < 5, "it waited for the store's lock"
    layout = store_layout(served)
    assert [os.path.exists(layout.config(dref)) for dref in drefs] == [False] * 3
    mkclosure(drefs, r)
    assert [os.path.exists(layout.config(dref)) for dref in drefs] == [True] * 3
    alone = mkdrv_(mkconfig({"name": "alone"}), served)
    assert os.path.exists(layout.config(alone))


def test_enumerations_ask_the_daemon(served: StorageSettings) -> None:
    dref, closure = instantiate(daemons.chain, "enumerated", 2, S=served)
    context = realize(closure)[2]
    assert isinstance(dref, str)
    rref = realize1(closure)
    below = next(found[0] for found in context.values() if found and found[0] != rref)
    assert {rref, below} <= set(allrrefs(served))
    assert drefrrefs(DRef(dref), served) == {rref}
    assert list(drefrrefsC(DRef(dref), context, served)) == [rref]
    assert list(drefrrefsC(DRef(dref), {rref2dref(below): []}, served)) == []
    assert rref in rootrrefs(served)
    assert below not in rootrrefs(served)
    info = realization_info(rref, served)
    assert info is not None
    assert (info.rref, info.dref) == (rref, dref)
    assert realization_starts([rref], served) == {rref: info.started}
    assert realization_info(RRef(f"rref:{'0' * 32}-{rref[38:]}"), served) is None


# --- operations ---------------------------------------------------------------------------------------


def test_an_operation_is_cancelled_and_its_log_read(client: Client, served: StorageSettings) -> None:
    _, closure = instantiate(lambda r: daemons.stage(r, "waits", daemons.wait_for_ever), S=served)
    operation = client.submit(closure, watch=False)
    text = b""
    for happening in operation.events(log=True):
        text += getattr(happening, "data", b"")
        if b"it waits" in text:
            break
    with Client.connect(client.path) as other:
        assert [line.operation for line in other.ps().operations] == [operation.id]
        assert b"it waits" in other.log(closure.targets[0]).data
        attached = other.attach(operation.id)
        assert attached.attached is not None
        assert attached.attached.targets == closure.targets
        attached.cancel()
        assert not attached.wait().ok
    with pytest.raises(pylightnix.PylightnixException, match="cancelled"):
        operation.outcome()


def test_a_slow_reader_of_events_is_told_of_all(client: Client, served: StorageSettings) -> None:
    _, closure = instantiate(daemons.chain, "slow", 5, S=served)
    operation = client.submit(closure, watch=True)
    assert operation.wait().ok
    events = [happening for happening in operation.events() if isinstance(happening, messages.Event)]
    seen = [(event.kind, event.phase) for event in events if event.kind == "build"]
    assert seen == [("build", "start"), ("build", "stop")] * 5


class _Slow:
    """Stands for a connection whose daemon left much out."""

    def __init__(self) -> None:
        self.notices: list[messages.Message] = [
            messages.Events(operation="op", events=[], dropped=3),
            messages.Ended(operation="op", dropped=4),
        ]

    def next_notice(self, operation: str) -> messages.Message:
        return self.notices.pop(0)


def test_what_was_left_out_is_counted_and_said(capfd: pytest.CaptureFixture[str]) -> None:
    for progress in (TextProgress(), JsonProgress(Answers(as_json=True))):
        operation = Operation(cast("Client", _Slow()), "op", watched=True)
        watch(operation, Spans(), progress)
        assert operation.dropped == 7
    told = capfd.readouterr()
    assert told.err == "7 events were left out above: they came faster than they were taken\n"
    assert told.out == '{"kind": "missed", "events": 7}\n'


# --- more programs than the daemon takes --------------------------------------------------------------


@contextmanager
def all_connections(S: StorageSettings) -> Iterator[list[Client]]:
    """Take all connections that a user may have."""
    with ExitStack() as stack:
        yield [stack.enter_context(Client.connect(store_layout(S))) for _ in range(CONNECTIONS_PER_USER_MAX)]


class _Queued(Onlooker):
    """Lets one go when it is told that its program waits for that."""

    def __init__(self, others: list[Client]) -> None:
        self.others = others
        self.told = 0

    def queued(self, refusal: TooMany) -> None:
        self.told += 1
        self.others[0].close()


def test_a_free_connection_is_waited_for(served: StorageSettings) -> None:
    closure = instantiate(daemons.chain, "queued", 1, S=served)[1]
    with all_connections(served) as others:
        queued = _Queued(others)
        with Client.connect(store_layout(served), waiting=queued.queued) as client:
            assert client.status().pid == client.welcome.pid
            with pytest.raises(DaemonFull, match="64 is the limit"):
                Client.connect(store_layout(served), patience_seconds=0)
            queued.others = [client]
            outcome = realize_closure(closure, observe=queued)
        assert (len(outcome.built), queued.told) == (1, 2)


def test_the_program_waits_for_a_free_connection(served: StorageSettings) -> None:
    with all_connections(served) as others:
        command = [sys.executable, "-m", "pylightnix_client", "--store", str(served.root), "ps"]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, env=daemons.environment(), text=True)
        assert child.stderr is not None
        assert "as many connections of yours as it takes (64)" in child.stderr.readline()
        others[0].close()
        assert child.communicate(timeout=60)[1] == "nothing is going on\n"
        assert child.returncode == 0


def test_a_realizer_does_not_wait_for_its_own_program_for_ever(served: StorageSettings) -> None:
    refusal = DaemonFull(TooMany("connections", 64, 1.0))
    search = _Search(store_layout(served))
    search.socket()
    assert search.goes_on(refusal, "socket")
    with running_realizer(DRef("dref:" + "0" * 32 + "-x"), store_layout(served).storage):
        assert not search.goes_on(refusal, "socket")


def test_more_threads_than_connections_all_have_their_results(served: StorageSettings, tmp_path: Path) -> None:
    mark = tmp_path / "gate"
    closure = instantiate(lambda r: daemons.stage(r, "gated", daemons.wait_for_file, path=str(mark)), S=served)[1]
    results: list[RRef] = []
    threads = [threading.Thread(target=lambda: results.append(realize1(closure))) for _ in range(CONNECTIONS_PER_USER_MAX + 16)]
    with Client.connect(store_layout(served)) as client:
        for thread in threads:
            thread.start()
        wait_until(lambda: client.status().operations >= CONNECTIONS_PER_USER_MAX - 1)
        mark.touch()
        for thread in threads:
            thread.join(60)
    assert len(results) == len(threads)
    assert len(set(results)) == 1


# --- daemons that come and go -------------------------------------------------------------------------


def test_a_daemon_that_dies_is_replaced_by_the_program_itself() -> None:
    with daemons.served_store() as S:
        registry = mkregistry(S)
        dref = daemons.stage(registry, "orphan", daemons.write_config, text="kept")
        with Client.connect(store_layout(S)) as client:
            os.kill(client.welcome.pid, 9)
        closure = mkclosure(dref, registry)
        assert text_of(realize1(closure), S) == "kept"


def test_a_daemon_killed_in_the_middle_of_a_build_is_survived(S: StorageSettings, tmp_path: Path) -> None:
    with daemons.served_store() as settings:
        killed: list[int] = []

        def kill(event: Event) -> None:
            if isinstance(event, BuildStarted) and not killed:
                with Client.connect(store_layout(settings)) as client:
                    killed.append(client.welcome.pid)
                os.kill(killed[0], 9)

        outcome = realize_closure(instantiate(daemons.chain, "survived", S=settings)[1], observe=kill)
        assert killed
        assert not outcome.failed


def test_who_asks_a_daemon_that_drains_gets_it_of_the_next_one(tmp_path: Path) -> None:
    """One program's build is interrupted, another's submission refused; both have their results of the successor."""
    mark = str(tmp_path / "mark")
    os.mkfifo(mark)
    hello = os.open(mark, os.O_RDONLY | os.O_NONBLOCK)
    results: dict[str, RRef] = {}

    def build(name: str, closure: Any) -> None:
        results[name] = realize1(closure)

    with daemons.short_store() as S:
        closures = [
            instantiate(lambda r: daemons.stage(r, "once", daemons.waits_at_first, mark=mark), S=S)[1],
            instantiate(daemons.chain, "late", S=S)[1],
        ]
        daemon = daemons.start_daemon(str(S.root), "--drain", "1")
        interrupted = threading.Thread(target=build, args=("interrupted", closures[0]))
        interrupted.start()
        assert select.select([hello], [], [], 60)[0]
        os.close(hello)
        with Client.connect(store_layout(S)) as client:
            daemon.terminate()
            while not client.status().draining:
                pass
            refused = threading.Thread(target=build, args=("refused", closures[1]))
            refused.start()
            daemons.end_daemon(daemon)
        successor = daemons.start_daemon(str(S.root))
        for thread in (interrupted, refused):
            thread.join(60)
        daemons.end_daemon(successor)
        assert sorted(results) == ["interrupted", "refused"]
        assert text_of(results["refused"], S) == "late-1"


def test_a_socket_whose_usual_path_is_too_long_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="pyl-") as runtime, tempfile.TemporaryDirectory(prefix="pyl-") as temporary:
        monkeypatch.setenv("TMPDIR", temporary)
        for folder, environment in (f"{runtime}/pylightnix", runtime), (f"{temporary}/pylightnix-{os.geteuid()}", ""):
            monkeypatch.setenv("XDG_RUNTIME_DIR", environment)
            S = new_store(os.path.join(tmp_path, environment.strip("/"), *["d" * 100] * 3))
            daemon = daemons.start_daemon(str(S.root))
            try:
                path = daemon_socket(store_layout(S))
                assert path is not None
                assert os.path.dirname(path) == folder
                assert os.stat(folder).st_mode & 0o777 == 0o700
                assert os.readlink(f"{S.root}/daemon.sock") == path
                assert text_of(realize1(instantiate(daemons.chain, "deep", S=S)), S) == "deep-1"
            finally:
                daemons.end_daemon(daemon)
            assert os.listdir(folder) == []


def test_a_private_folder_for_sockets_must_be_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="pyl-") as temporary:
        monkeypatch.setenv("TMPDIR", temporary)
        monkeypatch.setenv("XDG_RUNTIME_DIR", "")
        os.mkdir(f"{temporary}/pylightnix-{os.geteuid()}", 0o755)
        with pytest.raises(AssertionError, match="is not a folder of yours alone, with mode 0700"):
            daemons.start_daemon(os.path.join(tmp_path, *["d" * 100] * 3))


def test_a_store_is_embedded_again_after_its_daemon() -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="pyl-", ignore_cleanup_errors=True) as folder:
        S = new_store(folder)
        daemon = daemons.start_daemon(str(S.root))
        through = realize1(instantiate(daemons.chain, S=S))
        daemons.end_daemon(daemon)
        assert daemon_socket(store_layout(S)) is None
        assert realize1(instantiate(daemons.chain, S=S)) == through
