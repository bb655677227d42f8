"""Scripts whose stages pickle what the script defines, or hand it to other processes: through a daemon as without one."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client.daemons import environment, served_store

from pylightnix import StorageSettings

SCRIPT = """
import concurrent.futures, dataclasses, enum, inspect, multiprocessing, os, pickle, typing
{sibling}
from pylightnix import autostage, instantiate, realize1, rref2path, selfref

RAN = []

class Base:
    kind = "base"

class Net(Base):
    def __init__(self, n):
        self.n = n

class Unseen(Net):
    pass

@dataclasses.dataclass
class Point:
    x: int
    y: "Colour"

class Colour(enum.Enum):
    red = 1

Pair = typing.NamedTuple("Pair", [("left", int), ("right", int)])

def work(x):
    return Point(x, Colour.red)

def get(point):
    return point.x, point.y is Colour.red

def in_pool(kind, out):
    with multiprocessing.get_context(kind).Pool(2) as pool:
        write(out, pool.map(work, [1, 2]), pool.map(get, [Point(3, Colour.red)]))

def write(out, *things):
    with open(out, "w") as file:
        print(*things, file=file, end="")

def told(name):
    return autostage(name={prefix!r} + name, out=[selfref, "out"])

@told("fork")
def fork(out):
    in_pool("fork", out)

@told("spawn")
def spawn(out):
    in_pool("spawn", out)

@told("forkserver")
def forkserver(out):
    in_pool("forkserver", out)

@told("futures")
def futures(out):
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        write(out, list(pool.map(work, [1, 2])))

@told("save")
def save(out):
    with open(out, "wb") as file:
        pickle.dump([Net(3), work(1), Colour.red, Pair(1, 2), work], file)

@told("load")
def load(out):
    with open({given!r}, "rb") as file:
        thing = pickle.load(file)
    write(out, type(thing).__name__, isinstance(thing, Net), thing.n, thing.kind, RAN)

@told("source")
def source(out):
    write(out, inspect.getsource(Net), inspect.getsource(work), os.path.basename(__file__), sibling.X, typing.get_type_hints(Point)["y"])

@told("raises")
def raises(out):
    raise type("Own", (ValueError,), dict())("no such luck")

STAGES = [fork, spawn, forkserver, futures, source, load, save]
if __name__ == "__main__":
    RAN.append(1)
    with open({given!r}, "wb") as file:
        pickle.dump(Unseen(7), file)
    for stage in STAGES:
        found = os.path.join(rref2path(realize1(instantiate(stage))), "out")
        with open(found, "rb") as file:
            content = file.read() if stage is not save else pickle.load(file)
        print(stage.__name__, content if stage is save else content.decode())
    try:
        realize1(instantiate(raises))
    except Exception as error:
        import traceback
        traceback.print_exc()
"""
POINTS = "[Point(x=1, y=<Colour.red: 1>), Point(x=2, y=<Colour.red: 1>)]"
NET = "class Net(Base):\n    def __init__(self, n):\n        self.n = n\n"
WORK = "def work(x):\n    return Point(x, Colour.red)\n"


@pytest.fixture(scope="module")
def served() -> Iterator[StorageSettings]:
    with served_store() as S:
        yield S


def run(S: StorageSettings, folder: Path, *words: str) -> str:
    variables = {**environment(), "PYLIGHTNIX_ROOT": str(S.root)}
    ran = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=folder, env=variables, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def check(said: str, name: str) -> None:
    assert f"fork {POINTS} [(3, True)]\nspawn {POINTS} [(3, True)]\nforkserver {POINTS} [(3, True)]\nfutures {POINTS}\n" in said
    assert f"source {NET} {WORK} {name} 5 <enum 'Colour'>\n" in said
    assert "load Unseen True 7 base [1]\n" in said, "what stands below the guard ran in the build"
    assert "save [<__main__.Net object at " in said
    assert "Point(x=1, y=<Colour.red: 1>), <Colour.red: 1>, Pair(left=1, right=2), <function work at " in said
    assert 'raise type("Own", (ValueError,), dict())("no such luck")' in said, "the traceback lacks the line"


def test_a_script(served: StorageSettings, tmp_path: Path) -> None:
    (tmp_path / "sibling.py").write_text("X = 5\n")
    (tmp_path / "prog.py").write_text(SCRIPT.format(sibling="import sibling", prefix="s-", given=str(tmp_path / "given")))
    check(run(served, tmp_path, "prog.py"), "prog.py")


def test_a_module_of_a_package_that_is_run(served: StorageSettings, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sibling.py").write_text("X = 5\n")
    (package / "prog.py").write_text(SCRIPT.format(sibling="from . import sibling", prefix="m-", given=str(tmp_path / "given")))
    check(run(served, tmp_path, "-m", "package.prog"), "prog.py")


UNGUARDED = """
import pickle
from pylightnix import autostage, instantiate, realize1, rref2path, selfref

class Early: pass

with open({given!r}, "wb") as file:
    pickle.dump(Early(), file)

@autostage(name="early", out=[selfref, "out"])
def early(out):
    with open({given!r}, "rb") as file, open(out, "w") as result:
        result.write(type(pickle.load(file)).__name__)

@autostage(name="late", out=[selfref, "out"])
def late(out):
    import __main__
    with open(out, "w") as result:
        result.write(str(hasattr(__main__, "Late")) + str(hasattr(__main__, "nowhere")))
        try:
            __main__.Late
        except AttributeError as error:
            result.write(str(error))

for stage in (early, late):
    with open(rref2path(realize1(instantiate(stage))) + "/out") as file:
        print(file.read())

class Late: pass
"""


def test_a_script_without_a_guard_is_not_run_by_its_builds(served: StorageSettings, tmp_path: Path) -> None:
    (tmp_path / "unguarded.py").write_text(UNGUARDED.format(given=str(tmp_path / "given")))
    said = run(served, tmp_path, "unguarded.py")
    assert said.startswith("Early\nFalseFalse")
    assert "unguarded.py is loaded by a build, which looks for its Late; put what it does when it is run below: if __name__" in said


LOADER = """
import pickle, sys
class Net: pass
print(vars(pickle.load(open(sys.argv[1], "rb"))[0]))
"""


def test_what_a_build_pickled_other_programs_load_by_the_names_of_their_own(served: StorageSettings, tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(
        "import pickle\nfrom pylightnix import autostage, instantiate, realize1, rref2path, selfref\n"
        "class Net:\n    def __init__(self): self.n = 3\n"
        "@autostage(name='other', out=[selfref, 'out'])\ndef other(out):\n    pickle.dump([Net()], open(out, 'wb'))\n"
        "print(rref2path(realize1(instantiate(other))))\n"
    )
    (tmp_path / "loader.py").write_text(LOADER)
    folder = run(served, tmp_path, "prog.py").strip()
    assert run(served, tmp_path, "loader.py", os.path.join(folder, "out")) == "{'n': 3}\n"
    assert b"__main__" in Path(folder, "out").read_bytes()
    with pytest.raises(AttributeError), open(os.path.join(folder, "out"), "rb") as file:
        pickle.load(file)
