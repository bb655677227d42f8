"""What `pylightnix` offers, and what importing it costs.

`public_surface.txt` records the names that are ours; one that comes or goes on purpose is recorded there. `star_names.txt`
has what a star import brought in 0.x.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pylightnix
from pylightnix._formerly import FORMERLY, MODULES

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
OURS = sorted(set(pylightnix.__all__) & set(vars(pylightnix)) - set(MODULES) - {"fetch"})

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
    recorded = (GOLDEN / "public_surface.txt").read_text().split()
    assert (sorted(set(OURS) - set(recorded)), sorted(set(recorded) - set(OURS))) == ([], []), "(unrecorded, gone)"
    assert recorded == OURS


def test_a_star_import_brings_what_it_brought_in_0x_and_what_is_ours() -> None:
    recorded = (GOLDEN / "star_names.txt").read_text().split()
    assert len(recorded) == len(set(recorded)) == 411
    assert set(recorded) - set(pylightnix.__all__) == set()
    assert set(pylightnix.__all__) - set(recorded) <= set(OURS)
    assert set(pylightnix.__all__) == {*OURS, *FORMERLY, *MODULES, "fetch", "PYLIGHTNIX_REPL_HELPER"}


def test_all_is_sorted_without_duplicates() -> None:
    assert list(pylightnix.__all__) == sorted(set(pylightnix.__all__))


def test_public_names_resolve() -> None:
    assert [name for name in OURS if getattr(pylightnix, name) is None] == []


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
