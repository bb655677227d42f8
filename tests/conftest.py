"""What tests of every kind share: a store, and a process that no test leaves changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stores import AS_ROOT, OTHER_UID, new_store

from pylightnix import StorageSettings, fsinit, setregistry


@pytest.fixture(autouse=True)
def _no_default_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test touch the user's own store: what names no store fails."""
    monkeypatch.setenv("PYLIGHTNIX_ROOT", "/nonexistent/default-store")
    monkeypatch.delenv("PYLIGHTNIX_STORAGE", raising=False)
    monkeypatch.delenv("PYLIGHTNIX_TMP", raising=False)


@pytest.fixture
def S(tmp_path: Path) -> StorageSettings:
    """A fresh store, which is nobody's default."""
    return new_store(tmp_path / "store")


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
