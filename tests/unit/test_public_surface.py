"""What `pylightnix` offers, and what importing it costs.

A name that comes or goes on purpose is recorded with:
``python -c 'import pylightnix; print(*pylightnix.__all__, sep="\\n")' >tests/golden/public_surface.txt``
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pylightnix

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "public_surface.txt"

# Slow to load, or the business of one feature: loaded by whoever first needs them. A program that only describes
# stages, and each forked worker, pays for what `import pylightnix` loads.
HEAVY_MODULES = frozenset(
    {
        *("asyncio", "trio", "httpx", "http.client", "ssl"),
        *("ctypes", "multiprocessing", "subprocess", "sqlite3"),
        *("click", "platformdirs", "numpy", "matplotlib"),
        *("pylightnix_client", "pylightnixd"),
    }
)


def test_public_names_are_those_on_record() -> None:
    recorded = GOLDEN.read_text().split()
    offered = sorted(pylightnix.__all__)
    assert (sorted(set(offered) - set(recorded)), sorted(set(recorded) - set(offered))) == ([], []), "(unrecorded, gone)"
    assert recorded == offered


def test_all_is_sorted_without_duplicates() -> None:
    assert list(pylightnix.__all__) == sorted(set(pylightnix.__all__))


@pytest.mark.parametrize("name", sorted(pylightnix.__all__))
def test_public_name_resolves(name: str) -> None:
    assert getattr(pylightnix, name) is not None


def test_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert pylightnix.__version__ == version("pylightnix")


def test_import_loads_nothing_heavy() -> None:
    script = "import sys, json; before = set(sys.modules); import pylightnix; print(json.dumps(sorted(set(sys.modules) - before)))"
    # -I would hide an editable install's path file, so only the caller's own settings are left out.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYLIGHTNIX", "COV"))}
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60, cwd="/")
    assert child.returncode == 0, child.stderr
    assert sorted(HEAVY_MODULES & set(json.loads(child.stdout))) == []
