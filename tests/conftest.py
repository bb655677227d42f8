"""What tests of every kind share: a store, and a process that no test leaves changed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stores import AS_ROOT, OTHER_UID, new_store
from tests.zygote import Zygote, said

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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test of the language twice, on a store of this process's own and on one that a daemon owns."""
    if "S" not in metafunc.fixturenames or metafunc.definition.get_closest_marker("language") is None:
        return
    ways = ["embedded", "daemon"]
    only = metafunc.definition.get_closest_marker("embedded_only")
    if only is not None:
        if len(only.args) != 1 or not isinstance(only.args[0], str) or not only.args[0].strip():
            raise pytest.UsageError(f"{metafunc.definition.nodeid}: embedded_only expects the reason, found {only.args!r}")
        ways = ["embedded"]
    metafunc.parametrize("S", ways, indirect=True)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """What forks daemons."""
    with Zygote() as running:
        yield running


@pytest.fixture
def S(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorageSettings]:
    """A fresh store, which is nobody's default; in tests marked `language`, once this process's own and once a daemon's."""
    settings = new_store(tmp_path / "store")
    if getattr(request, "param", "embedded") == "embedded":
        yield settings
        return
    log = str(tmp_path / "daemon.log")
    running: Zygote = request.getfixturevalue("zygote")
    pid = running.start(str(settings.root), log)
    yield settings
    os.kill(pid, signal.SIGTERM)
    assert running.wait(pid) == 0, said(log)
    assert "BUG" not in said(log), said(log)
    assert "Traceback" not in said(log), said(log)


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
