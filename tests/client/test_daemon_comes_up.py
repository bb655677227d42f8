"""A daemon that comes up in the middle of a call of the library: the call goes on through it."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.client import daemons
from tests.peers import Line, Peer
from tests.stores import new_store
from tests.waiting import wait_until

from pylightnix import (
    RRef,
    StorageSettings,
    allrrefs,
    dref2path,
    drefcfg_,
    instantiate,
    mkclosure,
    mkregistry,
    realize1,
    repl_continue,
    repl_realize,
    repl_rref,
    rmref,
    rootrrefs,
    rref2dref,
    rref2path,
    spack,
    sunpack,
)
from pylightnix.errors import StoreForeign
from pylightnix.garb import collect
from pylightnix.insertion import insert_output
from pylightnix.remote import _Search
from pylightnix.storage import store_layout
from pylightnix.store import faults
from pylightnix.store.collection import remove_alone
from pylightnix.store.layout import StoreLayout
from pylightnix.store.locks import StoreOwned, exclusive_lock
from pylightnix.store.ownership import DAEMON_ROLE, LINK_NAME, daemon_socket
from pylightnix_client.errors import NoDaemon

SECONDS = 60


@pytest.fixture(scope="module")
def served() -> Iterator[StorageSettings]:
    with daemons.served_store() as S:
        yield S


@contextmanager
def coming_up(layout: StoreLayout) -> Iterator[Callable[[], None]]:
    """Hide the daemon, as it is when it has the store's lock and does not listen yet; yields what shows it again."""
    said, link = Path(layout.lock).read_bytes(), f"{layout.state}/{LINK_NAME}"
    Path(layout.lock).write_bytes(b"")
    os.rename(link, f"{link}.hidden")

    def show() -> None:
        Path(layout.lock).write_bytes(said)
        if os.path.lexists(f"{link}.hidden"):
            os.rename(f"{link}.hidden", link)

    try:
        assert daemon_socket(layout) is None
        yield show
    finally:
        show()


def is_waited_for(layout: StoreLayout) -> bool:
    """Tell whether somebody waits for the store's lock, and so has passed the question whether there is a daemon."""
    fd = os.open(layout.gate, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def answer_in_the_middle(layout: StoreLayout, call: Callable[[], Any]) -> Any:
    """Return what `call` does, for which the daemon appears only while it waits for the store."""
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # noqa: BLE001  # raised again below
            answers.append(error)

    with coming_up(layout) as show:
        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: is_waited_for(layout) or bool(answers))
        assert not answers, answers
        show()
        thread.join(SECONDS)
    (answer,) = answers
    if isinstance(answer, BaseException):
        raise answer
    return answer


def one(S: StorageSettings, name: str) -> RRef:
    return realize1(instantiate(lambda r: daemons.stage(r, name, daemons.write_config, text=name), S=S))


def _instantiate(S: StorageSettings, tmp_path: Path) -> Callable[[], object]:
    def call() -> object:
        dref: Any = instantiate(lambda r: daemons.stage(r, "instantiated", daemons.write_config), S=S)[0]
        return os.path.isdir(dref2path(dref, S))

    return call


def _mkdrv(S: StorageSettings, tmp_path: Path) -> Callable[[], object]:
    """And then look at what it wrote."""
    registry = mkregistry(S)
    return lambda: drefcfg_(daemons.stage(registry, "registered", daemons.write_config), S).val["name"] == "registered"


def _realize(S: StorageSettings, tmp_path: Path) -> Callable[[], object]:
    closure = instantiate(lambda r: daemons.stage(r, "realized", daemons.write_config), S=S)
    return lambda: os.path.isdir(rref2path(realize1(closure), S))


def _insert(S: StorageSettings, tmp_path: Path) -> Callable[[], object]:
    rref = one(S, "inserted")
    out = Path(store_layout(S).state, "own-output")
    out.mkdir()
    (out / "other").write_text("by hand")
    return lambda: os.path.isdir(rref2path(insert_output(rref2dref(rref), {}, str(out), S), S))


def _rmref(S: StorageSettings, tmp_path: Path) -> Callable[[], object]:
    rref = one(S, "removed")

    def call() -> object:
        rmref(rref, S)
        return not os.path.exists(rref2path(rref, S))

    return call


def _collect(S: StorageSettings, tmp_path: Path) -> Callable[[], object]:
    """One batch of a collection of garbage."""
    rref = one(S, "collected")
    return lambda: collect({rref2dref(rref)}, {rref}, S) and not os.path.exists(rref2path(rref, S))


def _spack(S: StorageSettings, tmp_path: Path) -> Callable[[], object]:
    rref = one(S, "exported")

    def call() -> object:
        spack([rref], str(tmp_path / "archive"), S)
        return os.path.getsize(tmp_path / "archive")

    return call


def _sunpack(S: StorageSettings, tmp_path: Path) -> Callable[[], object]:
    other = new_store(tmp_path / "other")
    rref = one(other, "imported")
    spack([rref], str(tmp_path / "archive"), other)

    def call() -> object:
        sunpack(str(tmp_path / "archive"), S)
        return os.path.isdir(rref2path(rref, S))

    return call


def _repl(S: StorageSettings, tmp_path: Path) -> Callable[[], object]:
    """Pause where the daemon is, go on where it seems not to be yet."""
    closure = instantiate(lambda r: daemons.stage(r, "stepped", daemons.write_config), S=S)
    helper = repl_realize(closure)

    def call() -> object:
        repl_continue(None, rh=helper)
        rref = repl_rref(helper)
        return rref is not None and os.path.isdir(rref2path(rref, S))

    return call


def _enumerate(S: StorageSettings, tmp_path: Path) -> Callable[[], object]:
    rref = one(S, "listed")
    return lambda: rref in allrrefs(S)


def _ask_about_roots(S: StorageSettings, tmp_path: Path) -> Callable[[], object]:
    rref = one(S, "root")
    return lambda: rref in rootrrefs(S)


CALLS = [_instantiate, _mkdrv, _realize, _insert, _rmref, _collect, _spack, _sunpack, _repl, _enumerate, _ask_about_roots]


@pytest.mark.parametrize("prepared", CALLS)
def test_d3_a_call_goes_along_with_a_daemon_that_comes_up(
    served: StorageSettings, tmp_path: Path, prepared: Callable[[StorageSettings, Path], Callable[[], object]]
) -> None:
    assert answer_in_the_middle(store_layout(served), prepared(served, tmp_path))


def test_d3_mkdrv_goes_along_with_a_daemon_that_comes_up_and_is_gone_again(S: StorageSettings) -> None:
    """It had the store when `mkdrv` came by, and was killed before it could be asked."""
    owned = iter([StoreOwned(store_layout(S).state, ["a daemon"], "/nowhere")])

    def come_and_go(point: str) -> None:
        if point == "derivation_written" and (error := next(owned, None)) is not None:
            raise error

    registry = mkregistry(S)
    faults.set_hook(come_and_go)
    try:
        dref = daemons.stage(registry, "registered", daemons.write_config)
    finally:
        faults.set_hook(None)
    assert os.path.isdir(rref2path(realize1(mkclosure(dref, registry)), S))


def test_d3_whoever_wants_the_store_alone_goes_to_a_daemon_that_has_come(S: StorageSettings) -> None:
    layout = store_layout(S)

    def serve(line: Line) -> None:
        path = f"{layout.state}/socket"
        with socket.socket(socket.AF_UNIX) as listener, exclusive_lock(layout, DAEMON_ROLE, socket=path):
            listener.bind(path)
            listener.listen()
            line.say("serving")
            line.hear()

    with Peer(serve) as peer:
        peer.expect("serving")
        with pytest.raises(StoreOwned):
            remove_alone(layout, [], [])
        peer.say("end")
        peer.end()


def test_d3_who_may_not_write_the_store_waits_for_the_next_daemon(S: StorageSettings) -> None:
    """The owner's own programs go on without one; others cannot."""
    layout = store_layout(S)
    barred = StoreForeign(layout.state, "owner", "other")
    sockets = iter(["/first", None, "/second"])
    search = _Search(layout, lambda _: next(sockets))
    assert search.goes_on(NoDaemon("/first", "it was killed"), search.socket())
    assert search.goes_on(barred, search.socket())
    assert search.socket() == "/second"
    never_served = _Search(layout, lambda _: None)
    assert not never_served.goes_on(barred, never_served.socket())
