from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

from pylightnix import errors
from pylightnix.config import mkconfig
from pylightnix.errors import BuildError, CommandFailed, PylightnixException, StoreBusy
from pylightnix.types import DRef, Output
from pylightnix.types import Path as StorePath
from pylightnix_client.errors import TargetFailed
from pylightnix_client.failures import build_report, report, user_traceback
from pylightnix_client.loading import load_file, users_code

DREF = DRef("dref:" + "0" * 32 + "-thing")


def every_error() -> list[type[PylightnixException]]:
    found, stack = [], [PylightnixException]
    while stack:
        kind = stack.pop()
        if kind.__module__.startswith("pylightnix"):
            found.append(kind)
        stack.extend(kind.__subclasses__())
    return found


@pytest.fixture
def users(tmp_path: Path) -> ModuleType:
    """A module of a user's."""
    path = tmp_path / "users.py"
    path.write_text(
        "from pylightnix.config import mkconfig\n"
        "def inner(): raise ValueError('no luck')\n"
        "def outer():\n"
        "    try: inner()\n"
        "    except ValueError as error: raise KeyError('a') from error\n"
        "def misuse(): mkconfig({'x': (1, 2)})\n"
        "def called(f): f()\n"
    )
    spec = importlib.util.spec_from_file_location("users", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def caught(function: object, *arguments: object) -> BaseException:
    assert callable(function)
    try:
        function(*arguments)
    except Exception as error:  # noqa: BLE001  # it is what is asked for
        return error
    raise AssertionError("it did not raise")


def test_traceback_begins_with_the_users_frames(users: ModuleType) -> None:
    # A frame of ours leads to the user's, as the driver's does.
    def run() -> None:
        with users_code("t", "it"):
            users.outer()

    error = caught(run)
    assert isinstance(error, TargetFailed)
    found = report(error)
    assert found.exit_status == 2
    assert found.code == "target-failed"
    assert found.message == "t: it raised KeyError: 'a'; nothing was built"
    assert found.traceback is not None
    assert "loading.py" not in found.traceback
    assert found.traceback.endswith("KeyError: 'a'\n")
    assert "in inner" in found.traceback
    assert "ValueError: no luck" in found.traceback


def test_our_frames_below_the_users_stay(users: ModuleType) -> None:
    shown = user_traceback(caught(users.misuse))
    assert shown is not None
    assert shown.index("in misuse") < shown.index("in mkconfig")


def test_our_own_errors_without_users_frames_have_no_traceback() -> None:
    # As if only the driver's frames had led there.
    assert user_traceback(CommandFailed(["false"], "1", "")) is None


def test_syntax_errors_name_the_file_once(tmp_path: Path) -> None:
    (tmp_path / "broken_syntax.py").write_text("def broken(:\n")
    found = report(caught(load_file, str(tmp_path / "broken_syntax.py")))
    assert found.traceback is not None
    assert found.traceback.startswith(f'  File "{tmp_path}/broken_syntax.py", line 1')
    sys.path.remove(str(tmp_path))


def test_failed_build_shows_cause_and_kept_folder(users: ModuleType) -> None:
    error = BuildError(None, DREF, Output([StorePath("/kept/here")]), caught(users.inner))
    found = build_report(error)
    assert (found.code, found.exit_status, found.kept) == ("build-failed", 1, ("/kept/here",))
    assert found.traceback is not None
    assert "in inner" in found.traceback
    assert found.fields()["kept"] == ["/kept/here"]


def test_whatever_fails_in_a_build_has_the_status_of_builds(users: ModuleType) -> None:
    assert build_report(caught(users.inner)).exit_status == 1
    assert build_report(caught(users.inner)).message == "ValueError: no luck"
    assert build_report(caught(mkconfig, {"x": (1,)})).exit_status == 1
    assert build_report(caught(mkconfig, {"x": (1,)})).code == "invalid-config"


def test_reports_of_each_sort() -> None:
    assert report(click.UsageError("what?")).exit_status == 2
    assert report(click.UsageError("what?")).code == "usage"
    assert report(KeyboardInterrupt()).exit_status == 130
    assert report(SystemExit(3)).exit_status == 1
    busy = report(StoreBusy("/s", ["pid 1"], 10))
    assert (busy.code, busy.exit_status, busy.traceback) == ("store-busy", 75, None)


def test_defects_show_everything() -> None:
    found = report(caught(int, "x"))
    assert (found.code, found.exit_status) == ("internal", 70)
    assert found.traceback is not None
    assert "in caught" in found.traceback
    assert "report it" in found.message


def test_every_exit_status_is_in_the_help_and_in_the_reference() -> None:
    from pylightnix_client.cli import cli

    reference = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "cli.md").read_text()
    statuses = {kind.exit_status for kind in every_error()} | {0, 70, 130, 141}
    assert errors.StoreBusy.exit_status in statuses
    epilog = cli.epilog or ""
    for status in statuses:
        assert f"\n{status:>5}  " in epilog, f"{status} is not in --help"
        assert f"\n| {status} |" in reference, f"{status} is not in docs/reference/cli.md"


def test_codes_are_distinct() -> None:
    leaves = [kind.code for kind in every_error() if not kind.__subclasses__()]
    assert len(set(leaves)) == len(leaves)
