"""`pylightnix.Path`: a text everywhere, and what pathlib's is in everyday code, since a star import puts it in that name's place."""

from __future__ import annotations

import copy
import json
import os
import pathlib
import pickle
import shutil
from collections.abc import Callable
from typing import IO, Any

import pytest
from tests.stores import stage

from pylightnix import (
    Path,
    SPath,
    StorageSettings,
    allrrefs,
    catref,
    dircp,
    dirrm,
    dirsize,
    dref2path,
    gc,
    gc_exceptions,
    instantiate,
    kahntsort,
    linkrref,
    path2dref,
    path2rref,
    realize1,
    rref2dref,
    shell,
    spack,
    sunpack,
)


def read_and_close(file: IO[str]) -> str:
    with file:
        return file.read()


EVERYDAY: list[Callable[[Any, Any], Any]] = [
    lambda P, p: p / "sub" / "x.txt",
    lambda P, p: "base" / P("x"),
    lambda P, p: p / "/absolute",
    lambda P, p: P("a", "b", "../c"),
    lambda P, p: P(pathlib.Path("a"), "b"),
    lambda P, p: P(),
    lambda P, p: P.cwd(),
    lambda P, p: P.home(),
    lambda P, p: P("~").expanduser(),
    lambda P, p: (p.parent, p.parent.parent, p.name, p.stem, p.suffix, p.suffixes, p.parts, p.anchor, p.root, p.drive),
    lambda P, p: (list(p.parents), p.parents[0], len(p.parents)),
    lambda P, p: P("/"),
    lambda P, p: p.with_suffix(".json").with_name("y").with_stem("z"),
    lambda P, p: p.joinpath("a", "b").relative_to(p),
    lambda P, p: p.is_relative_to(p.parent),
    lambda P, p: (p.exists(), p.is_dir(), p.is_file(), p.is_symlink(), p.is_absolute()),
    lambda P, p: sorted(p.iterdir()),
    lambda P, p: sorted(p.glob("*.txt")),
    lambda P, p: sorted(p.rglob("*.txt")),
    lambda P, p: list(filter(P.is_file, sorted(p.iterdir()))),
    lambda P, p: (p / "one.txt").read_text(),
    lambda P, p: (p / "one.txt").read_bytes(),
    lambda P, p: read_and_close((p / "one.txt").open()),
    lambda P, p: read_and_close(open(p / "one.txt")),  # noqa: SIM115  # it closes it
    lambda P, p: (p / "one.txt").stat().st_size,
    lambda P, p: (p / "one.txt").match("*.txt"),
    lambda P, p: (p / "one.txt").samefile(os.path.join(p, "one.txt")),
    lambda P, p: ((p / "new").mkdir(parents=True, exist_ok=True), (p / "new").is_dir(), (p / "new").rmdir()),
    lambda P, p: ((p / "w.txt").write_text("written"), (p / "w.txt").read_text(), (p / "w.txt").unlink(), (p / "w.txt").exists()),
    lambda P, p: ((p / "t").touch(), (p / "t").rename(p / "u"), (p / "u").replace(p / "v"), (p / "v").unlink(missing_ok=True)),
    lambda P, p: ((p / "l").symlink_to("one.txt"), (p / "l").readlink(), (p / "l").resolve(), (p / "l").unlink()),
    lambda P, p: (str(os.fspath(p)), os.path.join(p, "a"), str(p), f"{p}/x", p.as_posix(), p.as_uri()),
    lambda P, p: [os.path.basename(shutil.copy(p / "one.txt", p / "two.bin")), (p / "two.bin").unlink()],
    lambda P, p: isinstance(p, os.PathLike),
]


def plain(value: Any) -> Any:
    """Return a value of either kind with texts in the place of paths; ours must be paths of our class."""
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, (pathlib.Path, Path)) else value


@pytest.mark.parametrize("use", EVERYDAY, ids=range(len(EVERYDAY)))
def test_does_what_pathlib_does(use: Callable[[Any, Any], Any], tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "folder.d"
    (folder / "sub").mkdir(parents=True)
    for name in ("one.txt", "sub/two.txt", "three.csv"):
        (folder / name).write_text(name)
    theirs, ours = use(pathlib.Path, folder), use(Path, Path(str(folder)))
    assert plain(ours) == plain(theirs)
    assert kinds(ours) == kinds(theirs)


def kinds(value: Any) -> Any:
    """Tell which parts of a value are paths."""
    if isinstance(value, (tuple, list)):
        return [kinds(one) for one in value]
    return "path" if isinstance(value, (pathlib.Path, Path)) else type(value).__name__


@pytest.mark.parametrize("text", ["a/b", "", "a//b/", "./x", "~/y", "dref:x", "ž"])
def test_is_the_text_that_it_was_made_of(text: str) -> None:
    path = Path(text)
    assert isinstance(path, str)
    assert (path, hash(path), dict.fromkeys([str(path)], 1)[path], json.dumps([path]), repr(path)) == (
        text,
        hash(text),
        1,
        json.dumps([text]),
        repr(text),
    )
    assert (path + "/c", path.upper(), path.split("/"), path.replace("a", "z"), len(path)) == (
        *(text + "/c", text.upper(), text.split("/"), text.replace("a", "z"), len(text)),
    )
    for twin in (pickle.loads(pickle.dumps(path)), copy.deepcopy(path), Path(path)):
        assert (type(twin), twin) == (Path, text)


def test_methods_of_texts_win() -> None:
    path = Path("a/b.txt")
    assert (path.replace("b", "c"), path.replace("/", "|", 1), path.index("b"), path.count("t"), path.format()) == (
        *("a/c.txt", "a|b.txt", 2, 2, "a/b.txt"),
    )
    assert "".join(sorted([Path("b"), Path("a")])) == "ab"
    assert path.join(["x", "y"]) == "xa/b.txty"


def test_a_path_in_a_store_is_a_path() -> None:
    path = SPath("/store/x")
    assert isinstance(path, SPath)
    assert type(path / "y") is Path
    assert path.parent == "/store"


@pytest.mark.parametrize("part", [None, 5, b"bytes", object()])
def test_what_is_no_path_is_refused_as_pathlib_refuses_it(part: Any) -> None:
    with pytest.raises(TypeError):
        Path(part)
    with pytest.raises(TypeError):
        Path("a") / part


@pytest.mark.parametrize("name", ["nothing", "_parts", "val", "__array__"])
def test_other_attributes_are_missing(name: str) -> None:
    with pytest.raises(AttributeError, match=f"'Path' object has no attribute '{name}'"):
        getattr(Path("x"), name)
    assert not hasattr(Path, name)


def test_completion_offers_both() -> None:
    assert {"exists", "parent", "with_suffix", "startswith", "glob"} <= set(dir(Path("x")))


# --- pathlib's paths, where ours are expected -----------------------------------------------------------


@pytest.mark.embedded_only("what a path is does not depend on who builds")
def test_functions_take_pathlibs_paths(S: StorageSettings, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rref = realize1(instantiate(stage, S=S))
    link = linkrref(rref, destdir=str(tmp_path), format="link", S=S)
    kinds: list[Any] = [pathlib.Path, Path, str]
    for kind in kinds:
        assert path2rref(kind(link)) == rref
        assert path2dref(kind(dref2path(rref2dref(rref), S))) == rref2dref(rref)
        assert catref(kind(tmp_path / "link"), ["out.txt"]) == catref(kind(tmp_path / "link" / "out.txt")) == ["stage"]
        assert gc_exceptions([kind(tmp_path)], S) == gc_exceptions(kind(tmp_path), S) == ([], [rref]), "one is meant as a list of it"
        dircp(kind(link), kind(tmp_path / "copy"), make_rw=True)
        assert dirsize(kind(tmp_path / "copy")) > 0
        dirrm(kind(tmp_path / "copy"))
        assert not (tmp_path / "copy").exists()
        monkeypatch.setenv("SHELL", "/bin/true")
        shell(kind(tmp_path), S)
        shell(kind(tmp_path / "link" / "out.txt"), S)
        spack([rref], kind(tmp_path / "archive"), S)
        sunpack(kind(tmp_path / "archive"), S)
        gc(kind(tmp_path), interactive=False, verbose=False, S=S)
    assert list(allrrefs(S)) == [rref]


def test_a_circle_of_anything_has_no_order() -> None:
    numbers: Any = [1, 2, 3]
    assert kahntsort(numbers, lambda n: {n % 3 + 1}) is None
