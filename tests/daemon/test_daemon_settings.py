"""The settings of the daemon: options, file, what wins, what is wrong, what changes while it runs, and what the reference says of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.daemon import stages
from tests.daemon.conftest import Daemon

from pylightnix.protocol import messages as m
from pylightnixd.listening import SocketTrouble
from pylightnixd.settings_file import (
    FetchTable,
    InvalidSettings,
    KeepFailedTable,
    KeepLogs,
    SettingsFile,
    UnreadableSettings,
    parse_bytes,
    parse_patience,
    parse_seconds,
    read_settings,
)

REFERENCE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "pylightnixd.md").read_text()
TABLES = re.findall(r"^\| (.+?) \|", REFERENCE, re.MULTILINE)


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pylightnixd", *options], capture_output=True, text=True, timeout=60)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


# --- the file ---------------------------------------------------------------------------------------------


def test_every_key(file: Path) -> None:
    file.write_text(
        'store = "s"\nstate = "/state"\nsocket = "~/sock"\njobs = 3\nexit-when-idle = 1\ndrain = 0.5\n'
        'timeout = 10\nsilent-timeout = 5.5\ntimeout-max = 20\nsilent-timeout-max = 30\nmemory = "1K"\ntags = { gpu = 2 }\n'
        'matcher-timeout = 7\nworker-timeout = 9\nlog-size = "1.5K"\nkeep-logs = { days = 3, size = "2g" }\n'
        'fetch = { transfers = 2, transfers-per-host = 1, hashed-mirrors = ["https://mirror.example/x"] }\n'
    )
    assert read_settings(str(file)) == SettingsFile(
        store=str(file.parent / "s"),
        state="/state",
        socket=str(Path.home() / "sock"),
        jobs=3,
        exit_when_idle=parse_seconds(1),
        drain=parse_seconds(0.5),
        timeout=parse_seconds(10),
        silent_timeout=parse_seconds(5.5),
        timeout_max=parse_seconds(20),
        silent_timeout_max=parse_seconds(30),
        matcher_timeout=parse_seconds(7),
        worker_timeout=parse_patience(9),
        memory=parse_bytes(1024),
        tags={"gpu": 2},
        log_size=parse_bytes(1536),
        keep_logs=KeepLogs(days=3, size=parse_bytes(2 << 30)),
        fetch=FetchTable(transfers=2, transfers_per_host=1, hashed_mirrors=["https://mirror.example/x"]),
    )


def test_all_faults_are_told_together(file: Path) -> None:
    file.write_text(
        'jbos = 4\nstore = 3\nsocket = ""\njobs = true\ntimeout = nan\nsilent_timeout = 1\nexit-when-idle = "5"\ndrain = -1\n'
        "log-size = 1.5\nnonsense = 1\n[keep-logs]\ndays = -1\nsizze = 3\nsize = true\n"
    )
    with pytest.raises(InvalidSettings) as caught:
        read_settings(str(file))
    told = dict(fault.split(": ", 1) for fault in caught.value.faults)
    assert all(line.startswith(f"{file}: ") for line in str(caught.value).splitlines())
    assert told["jbos"] == "there is no such key; did you mean jobs?"
    assert told["silent_timeout"] == "there is no such key; did you mean silent-timeout?"
    assert told["keep-logs.sizze"] == "there is no such key; did you mean keep-logs.size?"
    assert told["nonsense"].startswith("there is no such key; the keys are store, state, socket, jobs, ")
    assert told["jobs"] == "expected a whole number, 1 to 10000, found True"
    assert told["timeout"] == "expected a number of seconds, 0 or more, found nan"
    assert told["exit-when-idle"] == "expected a number of seconds, 0 or more, found '5'"
    assert told["log-size"] == 'expected a number of bytes, 0 or more, or a text like "64K", "256M" or "1.5G", found 1.5'
    wrong = ["jbos", "store", "socket", "jobs", "timeout", "silent_timeout", "exit-when-idle", "drain", "log-size", "nonsense"]
    assert sorted(told) == sorted([*wrong, "keep-logs.days", "keep-logs.sizze", "keep-logs.size"])


@pytest.mark.parametrize("tags", ["3", "{ GPU = 1 }", "{ gpu = -1 }", "{ gpu = 10001 }", '{ gpu = "1" }', "{ gpu = true }", '{ "" = 1 }'])
def test_what_are_no_tags(file: Path, tags: str) -> None:
    file.write_text(f"tags = {tags}")
    with pytest.raises(InvalidSettings, match=r"tags: expected a table of lower-case names .* up to 10000, like \{ gpu = 2 \}"):
        read_settings(str(file))


@pytest.mark.parametrize("option", ["gpu", "gpu=", "gpu=-1", "GPU=1", "=1", "gpu=10001", "gpu=1.5", "gpu=1,port=2"])
def test_what_is_no_tag(option: str) -> None:
    ended = run("--tag", option)
    assert ended.returncode == 2
    assert "expected a lower-case name and a whole number" in ended.stderr


@pytest.mark.parametrize("text", ["jobs", "jobs = 1\njobs = 2", "a = " + "[" * 5000, "\x00"])
def test_what_is_no_toml(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidSettings, match="expected TOML"):
        read_settings(str(file))


def test_a_file_that_is_not_there(file: Path) -> None:
    with pytest.raises(UnreadableSettings, match="there is no such file"):
        read_settings(str(file))
    assert read_settings(str(file), may_be_absent=True) == SettingsFile()
    with pytest.raises(UnreadableSettings, match="directory"):
        read_settings(str(file.parent), may_be_absent=True)


@given(st.integers(0, 1 << 30), st.sampled_from(["", "K", "M", "G"]))
def test_sizes_are_numbers_of_units(number: int, unit: str) -> None:
    assert parse_bytes(f"{number}{unit}") == parse_bytes(f"{number} {unit.lower()}".strip()) == number * 1024 ** " KMG".index(unit or " ")
    assert parse_bytes(number) == number


@pytest.mark.parametrize("value", ["", "1.5", "-1", "1T", "K", "1e3", "١", " 1", "1KB", -1, True, None, 1.0, 1 << 63, "9" * 18 + "G"])
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(ValueError, match="a number of bytes"):
        parse_bytes(value)


@pytest.mark.parametrize("value", ["", "x", "-1", "nan", float("nan"), -0.1, True, None, [1], 10**400])
def test_what_is_no_time(value: object) -> None:
    with pytest.raises(ValueError, match="a number of seconds"):
        parse_seconds(value)


# --- the program ------------------------------------------------------------------------------------------


def test_faults_end_the_program_before_it_touches_the_store(file: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    file.write_text("jbos = 4\n")
    ended = run("--store", store, "--config", str(file))
    assert (ended.returncode, ended.stdout) == (InvalidSettings.exit_status, "")
    assert ended.stderr == f"pylightnixd: {file}: jbos: there is no such key; did you mean jobs?\n"
    ended = run("--store", store, "--config", str(tmp_path / "none"))
    assert ended.returncode == UnreadableSettings.exit_status
    ended = run("--store", store, "--log-size", "1.5")
    assert ended.returncode == 2
    assert "expected a number of bytes" in ended.stderr
    assert not Path(store).exists()


@pytest.mark.parametrize("option", ["--store=", "--state=", "--socket=", "--config=", "--config=-"])
def test_an_empty_path_is_no_path(option: str, tmp_path: Path) -> None:
    """An unset variable of a script must not mean the current folder, nor the usual place."""
    command = [sys.executable, "-m", "pylightnixd", f"--store={tmp_path}/store", "--foreground", option]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert ended.returncode == 2, ended.stderr
    assert "found an empty text" in ended.stderr
    assert option.partition("=")[0] in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_options_win_over_the_file_and_the_file_may_be_absent(file: Path, tmp_path: Path) -> None:
    file.write_text("jobs = 7\ndrain = 0\nstore = '/nonexistent'\n")
    for config, options, slots in ((str(file), [], 7), (str(file), ["--jobs", "5"], 5), (f"-{tmp_path}/none", ["-j", "3"], 3)):
        with Daemon(tmp_path / f"store{slots}", "--config", config, *options) as daemon, daemon.wait_ready().client() as client:
            assert client.status().slots == slots


def test_a_hangup_changes_what_can_change(file: Path, tmp_path: Path) -> None:
    file.write_text("jobs = 1\n")
    with Daemon(tmp_path / "store", "--config", str(file)) as daemon, daemon.wait_ready().client() as client:
        closure = stages.one(daemon.plans, stages.ticks, seconds=None)
        operation = client.submit(closure)
        while client.status().busy < 1:
            pass
        file.write_text("jobs = 'many'\n")
        daemon.hang_up()
        daemon.wait_said("the settings stay as they are")
        daemon.wait_said("jobs: expected a whole number, 1 to 10000, found 'many'")
        file.write_text("jobs = 2\nlog-size = 50\nsocket = 'other'\n")
        daemon.hang_up()
        daemon.wait_said("socket_path cannot change while the daemon runs")
        daemon.wait_said("settings read again")
        assert client.status().slots == 2
        (row,) = [row for op in [client.build(stages.one(daemon.plans, stages.chatters, lines=9))[0]] for row in client.failed(op)]
        assert "log-size of 50 bytes" in row.message
        assert client.status().busy == 1, "what had begun goes on as it was"
        file.write_text("jobs = 1\nexit-when-idle = 0.1\n")
        daemon.hang_up()
        while client.status().slots != 1:
            pass
        client.call("cancel", m.Cancel(operation=operation), m.Done)
        client.close()
        assert daemon.wait() == 0


# --- the reference ----------------------------------------------------------------------------------------


def test_the_reference_has_every_option() -> None:
    said = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", run("--help").stdout.split("Options:")[1]))
    described = {name for cell in TABLES if cell.startswith("`-") for name in re.findall(r"`(--?[a-z][a-z-]*)", cell)}
    assert described == said


def test_the_reference_has_every_key() -> None:
    section = REFERENCE.split("## Settings file")[1].split("## Signals")[0]
    described = {name for cell in re.findall(r"^\| (`.+?) \|", section, re.MULTILINE) for name in re.findall(r"`([a-z-]+)`", cell)}
    assert described == {field.encode_name for field in msgspec.structs.fields(SettingsFile)}
    for field in [*msgspec.structs.fields(KeepLogs), *msgspec.structs.fields(KeepFailedTable), *msgspec.structs.fields(FetchTable)]:
        assert f"`{field.encode_name}`" in section
    (example,) = re.findall(r"```toml\n(.+?)```", section, re.DOTALL)
    assert "keep-logs" in example


def test_the_example_of_the_reference_is_valid(file: Path) -> None:
    (example,) = re.findall(r"```toml\n(.+?)```", REFERENCE, re.DOTALL)
    file.write_text(example)
    assert read_settings(str(file)).jobs == 8


@pytest.mark.parametrize("error", [InvalidSettings, UnreadableSettings, SocketTrouble])
def test_the_reference_has_every_status(error: type[InvalidSettings | UnreadableSettings | SocketTrouble]) -> None:
    assert str(error.exit_status) in TABLES
