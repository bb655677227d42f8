"""What a worker imports ahead of builds, and when it is no longer fit for them."""

from __future__ import annotations

import ast
import os
import sysconfig
import venv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.daemon import realizers
from tests.daemon.worker_driver import Refusal, Worker, arguments

from pylightnix.travel import capture_environment


@dataclass
class Place:
    """A virtual environment of its own, which sees this one's packages."""

    interpreter: str
    packages: Path

    def worker(self, where: Path) -> Worker:
        environment = capture_environment()
        return Worker(
            where,
            interpreter=self.interpreter,
            environment=replace(environment, import_path=(str(self.packages), *environment.import_path)),
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    folder = tmp_path / "venv"
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (packages / "__pycache__").mkdir()  # as pip leaves it; were it made later, that would look like a package
    (packages / "others.pth").write_text("\n".join(entry for entry in capture_environment().import_path if os.path.isdir(entry)))
    return Place(str(folder / "bin" / "python"), packages)


def evaluated(worker: Worker, text: str) -> Any:
    return ast.literal_eval(worker.build(realizers.evaluated, args=arguments(text=text)).text())


def loaded(worker: Worker, *names: str) -> list[str]:
    """Return which of these modules a build finds loaded when it begins."""
    return [name for name in names if evaluated(worker, f"{name!r} in sys.modules")]


def load(worker: Worker, name: str) -> None:
    assert evaluated(worker, f"__import__({name!r}).__name__") == name


def test_what_builds_load_is_loaded_ahead_of_later_ones(place: Place, tmp_path: Path) -> None:
    (place.packages / "sample_package").mkdir()
    (place.packages / "sample_package" / "__init__.py").write_text("from sample_package import inner")
    (place.packages / "sample_package" / "inner.py").write_text("import os; loaded_by = os.getpid()")
    with place.worker(tmp_path / "w") as worker:
        names = ("colorsys", "sample_package", "sample_package.inner")
        assert loaded(worker, *names) == []
        load(worker, "colorsys")
        load(worker, "sample_package")
        assert loaded(worker, *names) == list(names)
        assert evaluated(worker, "sys.modules['sample_package.inner'].loaded_by") == worker.process.pid


def test_project_files_are_not_loaded_ahead(tmp_path: Path) -> None:
    (tmp_path / "sample_project.py").write_text("import os; loaded_by = os.getpid()")
    environment = capture_environment()
    environment = replace(environment, import_path=(str(tmp_path), *environment.import_path))
    with Worker(tmp_path / "w", environment=environment) as worker:
        load(worker, "sample_project")
        assert loaded(worker, "sample_project") == []


def test_a_module_that_starts_a_thread_is_not_loaded_ahead(place: Place, tmp_path: Path) -> None:
    (place.packages / "sample_thread.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    with place.worker(tmp_path / "w") as worker:
        load(worker, "sample_thread")
        assert loaded(worker, "sample_thread") == []


def test_a_module_that_starts_a_thread_in_the_worker_only_makes_it_unfit(place: Place, tmp_path: Path) -> None:
    lines = ["import os, threading", "if os.getsid(0) == os.getppid():", "    pass"]
    lines += ["if 'pylightnix.worker.__main__' in str(__import__('sys').modules['__main__'].__spec__):"]
    lines += ["    threading.Thread(target=threading.Event().wait, daemon=True, name='culprit').start()"]
    (place.packages / "sample_unfit.py").write_text("\n".join(lines))
    with place.worker(tmp_path / "w") as worker:
        load(worker, "sample_unfit")
        with pytest.raises(Refusal, match="culprit") as caught:
            worker.start(realizers.trivial)
        assert caught.value.code == "worker-unfit"


def test_a_module_that_fails_in_the_worker_does_no_harm(place: Place, tmp_path: Path) -> None:
    (place.packages / "sample_failing.py").write_text("import sys; sys.modules['__main__'].__spec__ is None or sys.exit('not here')")
    with place.worker(tmp_path / "w") as worker:
        load(worker, "sample_failing")
        assert loaded(worker, "sample_failing") == []
        assert "not imported ahead: sample_failing" in worker.log


def test_a_worker_is_stale_when_packages_were_installed(place: Place, tmp_path: Path) -> None:
    with place.worker(tmp_path / "w") as worker:
        running = worker.start(realizers.hangs)
        worker.await_log(running, "ready")
        (place.packages / "newcomer-1.0.dist-info").mkdir()
        with pytest.raises(Refusal) as caught:
            worker.start(realizers.trivial)
        assert caught.value.code == "worker-stale"
        worker.ask("kill", build=running.build)
        assert worker.finish(running).ended is not None
