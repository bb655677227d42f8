"""What tests of every kind share: a store, and a process that no test leaves changed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings
from tests.client.daemons import environment
from tests.stores import AS_ROOT, OTHER_UID, new_store
from tests.zygote import Forked, said, zygote

from pylightnix import StorageSettings, fsinit, setregistry


@pytest.fixture(autouse=True)
def _no_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let no test read or leave anything in the user's own cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _no_default_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test touch the user's own store: what names no store fails."""
    monkeypatch.setenv("PYLIGHTNIX_ROOT", "/nonexistent/default-store")
    monkeypatch.delenv("PYLIGHTNIX_STORAGE", raising=False)
    monkeypatch.delenv("PYLIGHTNIX_TMP", raising=False)


STOP_SECONDS: Final = 60.0
_OF_THE_LIBRARY: Final = ("tests/unit/", "tests/property/")
"""Where a test that uses a store runs through a daemon, too, or says why it cannot."""


settings.register_profile("tests", deadline=None)  # a machine under load is no failure
settings.register_profile("quick", parent=settings.get_profile("tests"), max_examples=20)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="tests of the language on embedded stores only; fewer examples for properties")


def pytest_configure(config: pytest.Config) -> None:
    # A shell ignores SIGINT for what it starts with `&`, and so would every program that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.load_profile("quick" if config.getoption("--quick") else "tests")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test of the language twice, on a store of this process's own and on one that a daemon owns."""
    if "S" not in metafunc.fixturenames:
        return
    language, only = (metafunc.definition.get_closest_marker(name) for name in ("language", "embedded_only"))
    if only is not None and (len(only.args) != 1 or not isinstance(only.args[0], str) or not only.args[0].strip()):
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: embedded_only expects the reason, found {only.args!r}")
    if language is None:
        if only is None and metafunc.definition.nodeid.startswith(_OF_THE_LIBRARY):
            raise pytest.UsageError(f"{metafunc.definition.nodeid}: mark it `language`, or `embedded_only` with the reason")
        return
    if len(metafunc.definition._fixtureinfo.name2fixturedefs["S"]) != 1:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: a fixture S of its own would be the same store both times")
    embedded = only is not None or metafunc.config.getoption("--quick")
    metafunc.parametrize("S", ["embedded"] if embedded else ["embedded", "daemon"], indirect=True)


@pytest.fixture
def own_or_served(
    request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], StorageSettings]]:
    """Makes stores below the test's folder, by name: this process's own or, where the test runs through a daemon, each with its own."""
    through_daemon = "daemon" in getattr(request.node, "callspec", _NO_PARAMETERS).params.values()
    daemons: list[tuple[Forked, str]] = []

    def make(name: str) -> StorageSettings:
        settings = new_store(tmp_path / name)
        if through_daemon:
            log = str(tmp_path_factory.mktemp("daemon") / "log")
            daemons.append((zygote().serve(str(settings.root), log, environment()), log))
        return settings

    yield make
    for daemon, _ in daemons:
        daemon.terminate()
    for daemon, log in daemons:
        assert daemon.wait(STOP_SECONDS) == 0, said(log)
        assert "BUG" not in said(log), said(log)
        assert "Traceback" not in said(log), said(log)


class _NO_PARAMETERS:  # noqa: N801  # what stands for the parameters of a test that has none
    params: Final[dict[str, object]] = {}


@pytest.fixture
def S(own_or_served: Callable[[str], StorageSettings]) -> StorageSettings:
    """A fresh store, which is nobody's default; in tests marked `language`, once this process's own and once a daemon's."""
    return own_or_served("store")


@pytest.fixture
def defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tests that change the current store or registry, or the process's default: undo that."""
    yield
    monkeypatch.setenv("PYLIGHTNIX_ROOT", str(tmp_path / "undone"))
    setregistry(None)
    fsinit(None)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter and write. (`tmp_path` is closed to others.)"""
    folder = Path(tempfile.mkdtemp(prefix="test-pylightnix-"))
    folder.chmod(0o777)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwx", folder], check=True)
    shutil.rmtree(folder)


@pytest.fixture
def others_folder(open_folder: Path) -> Path:
    """A folder of another user, who can be met in `in_child(…, uid=OTHER_UID)`."""
    if not AS_ROOT:
        pytest.skip("it takes root to be another user")
    os.chown(open_folder, OTHER_UID, OTHER_UID)
    return open_folder
