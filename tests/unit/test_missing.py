"""Tests that need what is not there are skipped, but not by CI."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fetch.servers import running_nginx
from tests.missing import MUST_RUN, cannot_run

REPOSITORY = Path(__file__).resolve().parents[2]


def test_what_is_missing_fails_in_ci(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(MUST_RUN, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no gcc"):
        cannot_run("no gcc")
    monkeypatch.setenv(MUST_RUN, "1")
    with pytest.raises(pytest.fail.Exception, match="no gcc"):
        cannot_run("no gcc")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(pytest.fail.Exception, match="nginx is not installed"), running_nginx(tmp_path):
        pass


def test_ci_says_so() -> None:
    assert f"export {MUST_RUN}=1\n" in (REPOSITORY / ".ci" / "run").read_text()
