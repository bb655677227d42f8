"""The real program in a process of its own, in a folder with stages, on a store of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Optional

import pytest
from tests.zygote import zygote

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 60

STAGES = """
import os

from pylightnix import build_outpath, build_wrapper, match_latest, mkconfig, mkdrv


def _writes(text):
    def realize(b):
        print("the realizer prints")
        os.system("echo its child prints")
        with open(os.path.join(build_outpath(b), "out.txt"), "w") as file:
            file.write(text)
    return build_wrapper(realize)


def _derivation(r, name, realizer, **config):
    return mkdrv(mkconfig({"name": name, **config}), match_latest(), realizer, r)


def _fails(b):
    with open(os.path.join(build_outpath(b), "half.txt"), "w") as file:
        file.write("half")
    raise ValueError("no such luck")


def first(r, text="one"):
    return _derivation(r, "first", _writes(text), text=text)


def main(r):
    return _derivation(r, "second", _writes("two"), dep=first(r))


def broken(r):
    return _derivation(r, "broken", build_wrapper(_fails))


def above(r):
    return _derivation(r, "above", _writes("never"), dep=broken(r))
"""


@dataclass
class Ran:
    """How one run of the program ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    @property
    def last(self) -> dict[str, Any]:
        return self.objects[-1]


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "surrogateescape")


@dataclass
class Program:
    """`pylightnix`, ready to run."""

    folder: Path
    store: Path
    daemon: bool = False
    """Whether `build` may start a daemon; most tests are about something else."""

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYLIGHTNIX", "PYTHON"))}
        path = os.pathsep.join(str(REPOSITORY / part) for part in ("src", "client", "daemon"))
        return {**kept, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYLIGHTNIX_ROOT": str(self.store), "COLUMNS": "120"}

    def _arguments(self, *arguments: str) -> tuple[str, ...]:
        if arguments[:1] == ("build",) and not self.daemon:
            return ("build", "--no-daemon", *arguments[1:])
        return arguments

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-W", "error", "-m", "pylightnix_client", *self._arguments(*arguments)]

    def start(self, *arguments: str, **extra: Any) -> subprocess.Popen[bytes]:
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.folder, "env": self.environment}
        return subprocess.Popen(self.command(*arguments), **{**options, **extra})

    def __call__(self, *arguments: str, env: Optional[dict[str, str]] = None) -> Ran:
        """Run the command in a fork that has everything imported. What takes an interpreter of its own is for `start`."""
        with open(os.devnull, "rb") as null, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            child = zygote().start(
                "pylightnix",
                *self._arguments(*arguments),
                environment={**self.environment, **(env or {})},
                folder=str(self.folder),
                streams=(null.fileno(), stdout.fileno(), stderr.fileno()),
                warnings=["error"],
            )
            try:
                status = child.wait(SECONDS)
            finally:
                child.kill()
            return Ran(status, *(_text(file) for file in (stdout, stderr)))

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


@pytest.fixture
def program(tmp_path: Path) -> Program:
    folder = tmp_path / "project"
    folder.mkdir()
    made = Program(folder, tmp_path / "store")
    made.write("stages.py", STAGES)
    return made


@pytest.fixture
def fresh_imports() -> Iterator[None]:
    """Undo what importing users' files leaves in this process."""
    path, modules = list(sys.path), dict(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]


@pytest.fixture
def built(program: Program) -> Callable[[str], str]:
    """Builds a target and gives its RRef."""

    def build(target: str) -> str:
        ran = program("build", target, "--json")
        assert ran.status == 0, ran.stderr
        found: str = ran.last["realized"][0]
        return found

    return build
