"""Daemons that are not one's own, or lie: what they send is shown, never run, and nothing is done in their folders."""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import msgpack  # type: ignore[import-untyped]  # it ships no type information
import pytest
from tests.peers import Line, Peer
from tests.stores import AS_ROOT, OTHER_UID, new_store

from pylightnix import (
    BuildError,
    Closure,
    Context,
    DRef,
    PylightnixException,
    RemoteFailure,
    RRef,
    StorageSettings,
    build_wrapper,
    instantiate,
    match_latest,
    mkconfig,
    mkdrv,
)
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors_on_wire import failed_row_from_dump
from pylightnix.storage import store_layout
from pylightnix.transfer.destination import Arriving
from pylightnix.types import Path as StorePath
from pylightnix_client.arrival import Through
from pylightnix_client.client import Client
from pylightnix_client.errors import DaemonForeign
from pylightnix_client.insertion import insert_through
from pylightnix_client.outcomes import failure
from pylightnixd.claims import claim_row

as_root = pytest.mark.skipif(not AS_ROOT, reason="needs another user")
UID = os.geteuid()


class Trap:
    """Leaves a folder behind where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


class FakeDaemon:
    """Says of everything that it failed, with a trap in the failure."""

    def __init__(self, root: str, row: dict[str, Any], uid: Optional[int], claims: bool = False) -> None:
        self.root, self.row, self.claims = root, row, claims
        self.path = f"{root}/daemon.sock"
        self._uid = uid

    def serve(self, line: Line) -> None:
        if self._uid is not None:
            os.setresuid(self._uid, self._uid, self._uid)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        os.chmod(self.path, 0o777)
        listener.listen(10)
        line.say("ready")
        while True:
            threading.Thread(target=self._converse, args=(listener.accept()[0], line), daemon=True).start()

    def _converse(self, connection: socket.socket, line: Line) -> None:
        unpacker = msgpack.Unpacker()
        target = ""
        while data := connection.recv(1 << 16):
            unpacker.feed(data)
            for kind, number, method, *rest in unpacker:
                if kind != 0:
                    continue
                params = rest[0][0]
                result: dict[str, Any] = {}
                if method == "hello":
                    result = {
                        "version": 1,
                        "features": [],
                        "daemon": "pylightnixd/1",
                        "store": self.root,
                        "storage": f"{self.root}/store-v1",
                    }
                    result |= {"caller": "owner", "pid": os.getpid()}
                elif method == "register":
                    result = {"drefs": []}
                elif method == "submit.open":
                    target, result = params["targets"][0], {"operation": "x-1"}
                elif method == "submit.commit" and self.claims:
                    claim = {"operation": "x-1", "claim": "c-1", "dref": target, "context": b"{}", "folder": f"{self.root}/tmp"}
                    connection.sendall(msgpack.packb([2, "claim", [claim]]))
                elif method in ("abandon", "deliver"):
                    line.say(f"{method}: {params.get('error', {}).get('code')}")
                elif method == "wait":
                    result = {"ok": False, "state": "done", "failed": 1}
                elif method == "outcome":
                    result = {"rows": [{**self.row, "dref": target}] if params["part"] == "failed" else [], "next": None}
                connection.sendall(msgpack.packb([1, number, None, result]))


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that others can reach; the usual ones of tests are closed to them."""
    with tempfile.TemporaryDirectory(prefix="pyl-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextmanager
def faked(root: Path, row: dict[str, Any], uid: Optional[int] = None, claims: bool = False) -> Iterator[tuple[Client, Peer]]:
    """Have a fake daemon run, as another user, perhaps, and a client of it."""
    new_store(root)
    if uid is not None:
        os.chown(root, uid, uid)
    daemon = FakeDaemon(str(root), row, uid, claims)
    with Peer(daemon.serve) as peer:
        peer.expect("ready")
        with Client.connect(daemon.path) as client:
            yield client, peer
        peer.kill()


def row_of(trap: Path, **fields: Any) -> dict[str, Any]:
    return {
        "code": "build-failed",
        "message": "building it failed",
        "type": "job.OwnError",
        "traceback": "Traceback: somewhere\n",
        "pickled": pickle.dumps(Trap(str(trap))),
        "exit_status": 1,
        "fields": {},
        **fields,
    }


def _nothing(b: Any) -> None:
    pass


class Local:
    """A realizer that no pickle holds."""

    ran = False

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: Any) -> list[StorePath]:
        self.ran = True
        raise AssertionError("it ran in a folder of another user's")

    def __reduce__(self) -> Any:
        raise TypeError("not to be pickled")


def closure_of(root: Path, realizer: Any) -> Closure:
    return instantiate(lambda r: mkdrv(mkconfig({"name": "x"}), match_latest(), realizer, r), S=new_store(root))[1]


@pytest.mark.parametrize("uid", [None, UID + 1], ids=["nobody says whose", "another's"])
def test_a_pickle_of_another_users_build_stays_shut(uid: Optional[int], place: Path) -> None:
    trap = place / "trap"
    row = row_of(trap) if uid is None else row_of(trap, uid=uid)
    with faked(place / "store", row) as (client, _):
        assert client.trusted, "the daemon is one's own"
        [(_, error)] = client.realize(closure_of(place / "plans", build_wrapper(_nothing))).failed
    assert not trap.exists()
    assert isinstance(error, BuildError)
    assert isinstance(error.exception, RemoteFailure)
    assert error.exception.type_name == "job.OwnError"
    assert "somewhere" in str(error.exception.__cause__)


def test_a_pickle_of_ones_own_build_is_opened(place: Path) -> None:
    trap = place / "trap"
    with faked(place / "store", row_of(trap, uid=UID)) as (client, _):
        assert len(client.realize(closure_of(place / "plans", build_wrapper(_nothing))).failed) == 1
    assert trap.exists(), "so the traps of the other tests are live"


@as_root
def test_root_opens_no_pickle_of_a_folders_owner(place: Path) -> None:
    trap = place / "trap"
    with faked(place / "store", row_of(trap, uid=UID), uid=OTHER_UID) as (client, _):
        assert not client.trusted
        [(_, error)] = client.realize(closure_of(place / "plans", build_wrapper(_nothing))).failed
    assert not trap.exists()
    assert isinstance(error, BuildError)


@as_root
def test_root_runs_no_realizer_in_a_folder_of_another_user(place: Path) -> None:
    realizer = Local()
    with faked(place / "store", row_of(place / "trap"), uid=OTHER_UID, claims=True) as (client, peer):
        operation = client.submit(closure_of(place / "plans", realizer))
        operation.outcome()
        peer.expect("abandon: daemon-foreign")
    assert not realizer.ran


@as_root
def test_root_hands_nothing_to_another_users_daemon(place: Path) -> None:
    dref = DRef(f"dref:{'0' * 32}-x")
    folder = place / "made"
    folder.mkdir()
    with faked(place / "store", row_of(place / "trap"), uid=OTHER_UID) as (client, _):
        with pytest.raises(DaemonForeign, match="another user"):
            insert_through(client.path, dref, {}, str(folder), 0.0)
        arriving = Arriving(RRef(f"rref:{'0' * 32}-{'0' * 32}-x"), {}, 0.0, 0.0, "h", None, None)
        with pytest.raises(DaemonForeign):
            Through(client, store_layout(new_store(place / "other"))).realization(arriving, lambda fd, name: None, [])
    assert folder.is_dir()


def test_whose_a_failure_is_only_the_daemon_says() -> None:
    sent = m.FailedRow(code="build-failed", message="no", uid=0)
    assert not isinstance(claim_row(sent, DRef("dref:x")).uid, int)
    assert not isinstance(failed_row_from_dump({"message": "no", "uid": 0}, DRef(f"dref:{'0' * 32}-x")).uid, int)


def test_what_stands_in_for_a_failure_has_all_that_is_known() -> None:
    row = m.FailedRow(code="remote-exception", message="no flour", type="job.OwnError", traceback="Traceback: x\n", pickled=b"?")
    error = failure(row, trusted=False)
    assert isinstance(error, PylightnixException)
    assert (type(error), str(error)) == (RemoteFailure, "job.OwnError: no flour")
