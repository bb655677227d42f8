"""Run pytest; run what failed once more, alone. A test that passes then is flaky: it is named at the end, and the run passes.

`python tests/run.py ARGUMENT…` takes the arguments of pytest. More than `RERUN_MAX` failures are no accident and are not run again.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Final

import pytest

RERUN_MAX: Final = 10
RERUN_SECONDS: Final = 600


class Failures:
    """Collects, in the process that controls the run, the tests that failed."""

    def __init__(self) -> None:
        self.tests: dict[str, None] = {}
        self.collected: bool = True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.tests[report.nodeid] = None

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.collected = self.collected and not report.failed


def passes_alone(test: str, arguments: list[str]) -> bool:
    """Run one test in a process of its own, with nothing else at work."""
    # The later -n wins, and an empty -m takes slow tests in: what is named here was chosen already.
    command = [sys.executable, "-m", "pytest", *arguments, "-n", "0", "-m", "", test]
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, timeout=RERUN_SECONDS).returncode == pytest.ExitCode.OK
    except subprocess.TimeoutExpired:
        return False


def options_only(arguments: list[str]) -> list[str]:
    """Return the arguments that concern a test which is run alone: plugins, and options of one word, less those about many tests."""
    plugins = [word for pair in itertools.pairwise(arguments) if pair[0] == "-p" for word in pair]
    return plugins + [word for word in arguments if word.startswith("--") and not word.startswith(("--durations", "--dist", "--maxfail"))]


def main(arguments: list[str]) -> int:
    failures = Failures()
    status = pytest.main(arguments, [failures])
    if status != pytest.ExitCode.TESTS_FAILED or not failures.collected or not failures.tests:
        return int(status)
    if len(failures.tests) > RERUN_MAX:
        print(f"{len(failures.tests)} tests failed: more than {RERUN_MAX} are not run again")
        return int(status)
    print(f"\nrunning what failed again, alone: {', '.join(failures.tests)}", flush=True)
    options = options_only(arguments)
    results = {test: passes_alone(test, options) for test in failures.tests}
    for test, passed in results.items():
        print(f"FLAKY: {test}" if passed else f"FAILED twice: {test}", flush=True)
    return 0 if all(results.values()) else int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
