"""`why-rebuild` names what changed, whether a script or the command line built what is compared, with a daemon and without."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client import daemons
from tests.stores import new_store

from pylightnix import StorageSettings

SCRIPT = """
from pathlib import Path

from helpers import half
from pylightnix import autostage, fsinit, instantiate, realize1, selfref

FACTOR = 3

def scale(x):
    return x * 2

class Box:
    def get(self):
        return 4

@autostage(name={name!r}, out=[selfref, "out.txt"])
def stage(out):
    Path(out).write_text(str(scale(FACTOR) + half(1) + Box().get()))

if __name__ == "__main__":
    fsinit()
    print(realize1(instantiate(stage)))
"""
HELPERS = "def half(x):\n    return x / 2\n"


@pytest.fixture(scope="module", params=["embedded", "daemon"])
def S(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageSettings]:
    if request.param == "embedded":
        yield new_store(tmp_path_factory.mktemp("store"))
    else:
        with daemons.served_store() as S:
            yield S


class Folder:
    def __init__(self, folder: Path, S: StorageSettings, name: str) -> None:
        self.folder, self.S = folder, S
        (folder / "q.py").write_text(SCRIPT.format(name=name))
        (folder / "helpers.py").write_text(HELPERS)

    def run(self, *command: str) -> str:
        environment = {**daemons.environment(), "PYLIGHTNIX_ROOT": str(self.S.root)}
        ran = subprocess.run([sys.executable, *command], cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return ran.stdout

    def cli(self, *arguments: str) -> str:
        return self.run("-m", "pylightnix_client", *arguments)

    def build(self, how: str) -> str:
        """Build with the script, the script as a module, or the command line; return the reference."""
        ways = {"script": ["q.py"], "module": ["-m", "q"], "cli": ["-m", "pylightnix_client", "build", "q.py"]}
        return self.run(*ways[how]).split()[0]

    def edit(self, old: str, new: str) -> None:
        for path in self.folder.glob("*.py"):
            path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("first", "second", "old", "new", "expected"),
    [
        ("script", "script", "x * 2", "x * 22", "the function q.scale changed"),
        ("script", "cli", "x * 2", "x * 22", "the function q.scale changed"),
        ("cli", "script", "FACTOR = 3", "FACTOR = 5", "the data q.FACTOR is 5, and was 3"),
        ("script", "cli", "x / 2", "x / 4", "the function helpers.half changed"),
        ("cli", "script", "return 4", "return 5", "the class q.Box changed"),
        ("script", "module", "str(scale", "repr(scale", "the function q.stage changed"),
    ],
)
def test_first_difference_is_named_in_both_orders(
    S: StorageSettings, tmp_path: Path, first: str, second: str, old: str, new: str, expected: str
) -> None:
    folder = Folder(tmp_path, S, tmp_path.name)
    before = folder.build(first)
    folder.edit(old, new)
    assert f"unlike {before}: {expected}\n" in folder.cli("plan", "q.py")
    after = folder.build(second)
    assert after != before
    assert folder.cli("why-rebuild", after) == f"unlike {before}: {expected}\n"
