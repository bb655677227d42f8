"""`export`, `import` and `import-v0`: realizations that go from store to store."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.client.daemons import chain, environment, fail, served_store, short_store, write_config
from tests.old_stores import OldStore
from tests.stores import new_store

from pylightnix import (
    DRef,
    InUse,
    InvalidOutput,
    Registry,
    RRef,
    StorageSettings,
    allrrefs,
    instantiate,
    match_latest,
    mkconfig,
    mkdrv,
    mkSS,
    realize1,
    rmref,
    rrefctx,
)
from pylightnix.arch import copyclosure, spack, sunpack
from pylightnix.build import Build, build_outpath, build_wrapper
from pylightnix.either import either_isLeft, either_status, mkdrvE, realizeE
from pylightnix.protocol import messages as m
from pylightnix.query import realization_info
from pylightnix.refs import mkrref, undref
from pylightnix.storage import store_layout
from pylightnix.v0 import import_v0
from pylightnix_client.client import Client
from pylightnix_client.exchange import Ask


@pytest.fixture
def other(program: Any, tmp_path: Path) -> Any:
    """The same program on another store."""
    return type(program)(program.folder, tmp_path / "other")


def test_export_and_import(program: Any, built: Any, other: Any) -> None:
    rref = built("stages.py:main")
    ran = program("export", rref, "-o", "out.xz", "--json")
    assert ran.status == 0, ran.stderr
    size = os.path.getsize(program.folder / "out.xz")
    assert ran.last == {"kind": "exported", "path": "out.xz", "roots": [rref], "derivations": 2, "realizations": 2, "bytes": size}
    first = other("import", "out.xz")
    assert (first.status, first.stdout, first.stderr) == (0, f"{rref}\n", "2 realizations imported, 0 present before\n")
    again = other("import", "out.xz", "--json")
    assert again.last == {"kind": "imported", "roots": [rref], "derivations": 2, "realizations": [], "present": 2}
    assert other("build", "stages.py:main").stderr.endswith("2 reused\n")
    assert other("cat", rref, "out.txt").stdout == "two"


def test_through_a_pipe(program: Any, built: Any, other: Any) -> None:
    rref = built("stages.py:main")
    sending = program.start("export", rref, stdin=subprocess.DEVNULL)
    taking = other.start("import", "--json", stdin=sending.stdout)
    sending.stdout.close()
    out, err = taking.communicate(timeout=60)
    assert (sending.wait(60), taking.returncode) == (0, 0), err + sending.stderr.read()
    sending.stderr.close()
    assert rref in out.decode()
    assert other("path", rref).status == 0


def test_a_reader_that_goes_away(program: Any, built: Any) -> None:
    rref = built("stages.py:main")
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with os.fdopen(write_fd, "wb") as pipe:
        child = program.start("export", rref, stdout=pipe, stdin=subprocess.DEVNULL)
        _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (141, b"")


def test_a_derivation_stands_for_its_realizations(program: Any, built: Any, other: Any) -> None:
    rref = built("stages.py:first")
    assert program("export", "dref:" + rref.split("-", 1)[1], "-o", "out").status == 0
    assert other("import", "out").stdout == f"{rref}\n"


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (("export", "rref:" + "0" * 32 + "-" + "1" * 32 + "-x", "-o", "out"), 66, "missing-realization"),
        (("export", "junk", "-o", "out"), 2, "invalid-reference"),
        (("export", "REF"), 2, "usage"),
        (("export",), 2, "usage"),
        (("export", "REF", "-o", "no/such/folder/out"), 74, "archive-io"),
        (("import", "missing"), 74, "archive-io"),
        (("import", "stages.py"), 65, "invalid-archive"),
        (("import", "/dev/null"), 65, "invalid-archive"),
        (("import",), 65, "invalid-archive"),
        (("import-v0", "."), 2, "invalid-storage"),
    ],
)
def test_what_does_not_work(program: Any, built: Any, arguments: tuple[str, ...], status: int, code: str) -> None:
    rref = built("stages.py:first")
    before = sorted(os.listdir(program.folder))
    ran = program(*(rref if word == "REF" else word for word in arguments), "--json")
    assert (ran.status, ran.last["kind"], ran.last["code"]) == (status, "error", code)
    assert sorted(os.listdir(program.folder)) == before


def test_old_stores(program: Any) -> None:
    old = OldStore(str(program.folder / "old"))
    low = old.derivation(name="low")
    high = old.derivation(name="high", low=low)
    rref = old.realization(low, {"out.txt": "old"})
    old.realization(high, {"out.txt": "high"}, (rref,))
    dry = program("import-v0", "old", "--dry-run")
    assert dry.status == 0
    assert dry.stderr == "2 realizations would be imported, 0 of them present before; 0 refused\n"
    assert not program.store.exists()
    ran = program("import-v0", "old")
    assert (ran.status, ran.stdout) == (0, dry.stdout)
    new = dict(line.split("\t") for line in ran.lines)
    assert program("cat", new[rref], "out.txt").stdout == "old"
    assert program("import-v0", "old", "--json").last["present"] == 2

    spoilt = old.realization(low, {"out.txt": "other"})
    os.chmod(old.folder(spoilt), 0o700)
    (Path(old.folder(spoilt)) / "out.txt").write_text("spoilt")
    refused = program("import-v0", "old", "--json")
    assert refused.status == 65
    assert refused.objects[0] == {
        "kind": "remark",
        "what": "refused",
        "path": old.folder(spoilt),
        "reason": "its files do not have the hash that its name says",
    }
    assert (refused.last["kind"], refused.last["refused"], refused.last["dry_run"]) == ("imported-v0", 1, False)
    assert program("import-v0", "old").stderr.startswith(f"refused: {old.folder(spoilt)}: ")


# --- with a daemon ----------------------------------------------------------------------------------------


def test_a_store_that_a_daemon_owns_exports_and_imports(tmp_path: Path) -> None:
    D = new_store(tmp_path / "to")
    old = OldStore(str(tmp_path / "old"))
    old.realization(old.derivation(name="low"), {"out.txt": "x"})
    with served_store() as S:
        rref = realize1(instantiate(chain, S=S))
        spack([rref], str(tmp_path / "out"), S)
        sunpack(str(tmp_path / "out"), D)
        assert rrefctx(rref, D) == rrefctx(rref, S)
        assert list(allrrefs(D)) == list(allrrefs(S))
        copyclosure([rref], S, new_store(tmp_path / "copy"))
    with served_store() as S:
        assert import_v0(old.root, S, dry_run=True).present == 0
        assert len(import_v0(old.root, S).realizations) == 1
        copyclosure([rref], D, S)
        assert set(allrrefs(D)) < set(allrrefs(S))
    with served_store() as S:
        for expected in ("3 realizations imported, 0 present", "0 realizations imported, 3 present"):
            argv = [sys.executable, "-m", "pylightnix_client", "--store", str(S.root), "import", str(tmp_path / "out")]
            ran = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=60)
            assert (ran.returncode, ran.stdout) == (0, f"{rref}\n")
            assert expected in ran.stderr
        assert list(allrrefs(S)) == list(allrrefs(D))


def test_where_and_when_it_was_built_travels_to_a_daemon_and_what_it_found_too(tmp_path: Path) -> None:
    D = new_store(tmp_path / "from")

    def outer(r: Registry) -> DRef:
        def realizer(b: Build) -> None:
            with open(f"{build_outpath(b)}/found", "w") as file:
                file.write(realize1(instantiate(chain, S=b.S)))

        return mkdrv(mkconfig({"name": "outer"}), match_latest(), build_wrapper(realizer), r)

    rref = realize1(instantiate(outer, S=D))
    with served_store() as S:
        copyclosure([rref], D, S)
        assert list(allrrefs(S)) == list(allrrefs(D))
        info, before = realization_info(rref, S), realization_info(rref, D)
        assert before is not None
        assert info == replace(before, realizer_digest=None), "nobody can tell what code it was"
        assert realize1(instantiate(outer, S=S)) == rref


def test_what_a_daemon_is_told_to_expect_it_insists_on(tmp_path: Path) -> None:
    with served_store() as S, Client.connect(store_layout(S)) as client:
        dref, _ = instantiate(lambda r: mkdrv(mkconfig({"name": "leaf"}), match_latest(), build_wrapper(write_config), r), S=S)
        folder = client.call(Ask("insert.open", m.InsertOpen())).folder  # type: ignore[attr-defined]  # it is InsertOpened
        os.mkdir(f"{folder}/one")
        told = m.Insert(dref=str(dref), context=b"{}", output="one", started=1.0)
        with pytest.raises(InvalidOutput, match=r"have the reference rref:.* was expected"):
            client.call(Ask("insert", msgspec.structs.replace(told, rref=str(mkrref("0" * 32, *undref(dref))))))
        assert list(allrrefs(S)) == []
        [rref] = [client.call(Ask("insert", told)).rref]  # type: ignore[attr-defined]  # it is Inserted
        with pytest.raises(InUse, match="handed over"):
            rmref(RRef(rref), S)
        client.close()
        deadline = time.monotonic() + 30
        while True:
            try:
                return rmref(RRef(rref), S)
            except InUse:
                assert time.monotonic() < deadline, "what was inserted is let go when the connection ends"


def _left_or_right(good: bool) -> Any:
    def main(r: Any) -> Any:
        from pylightnix import mkconfig

        low = mkdrvE(mkconfig({"name": "low"}), match_latest(), build_wrapper(write_config if good else fail), r)
        return mkdrvE(mkconfig({"name": "high", "low": low}), match_latest(), build_wrapper(write_config), r)

    return main


def test_failures_are_realizations_through_a_daemon_too() -> None:
    with served_store() as S:
        failed = realizeE(instantiate(_left_or_right(good=False), S=S))
        assert either_isLeft(failed)
        assert "no such luck" in (either_status(failed) or "")
        plan = instantiate(_left_or_right(good=True), S=S)
        assert realizeE(plan) == failed
        low = plan[1].derivations[0].dref
        assert not either_isLeft(realizeE(plan, force_rebuild=[low]))
        assert not either_isLeft(realizeE(plan))


def test_a_daemon_serves_what_was_imported_before_it_came(tmp_path: Path) -> None:
    S = new_store(tmp_path / "from")
    rref = realize1(instantiate(chain, S=S))
    spack([rref], str(tmp_path / "out"), S)
    with short_store() as D:
        sunpack(str(tmp_path / "out"), D)
        assert _served(D) == [*allrrefs(S)]


def _served(D: StorageSettings) -> list[RRef]:
    from tests.client.daemons import end_daemon, start_daemon

    daemon = start_daemon(str(D.root))
    try:
        return list(allrrefs(mkSS(str(D.root))))
    finally:
        end_daemon(daemon)


def test_import_takes_limits(program: Any, tmp_path: Path) -> None:
    assert program("build", "stages.py:first", "--out-link", str(tmp_path / "out")).status == 0
    archive = str(tmp_path / "a.gz")
    assert program("export", str(tmp_path / "out"), "-o", archive).status == 0
    elsewhere = ("--store", str(tmp_path / "elsewhere"))
    ran = program(*elsewhere, "import", archive, "--limit", "entries=2")
    assert (ran.status, "more than 2 files, folders and links" in ran.stderr) == (65, True), ran.stderr
    assert "import --limit entries=N" in ran.stderr
    assert program(*elsewhere, "find").lines == []
    for wrong in ("entries", "entries=x", "entries=-1", "size=1"):
        ran = program(*elsewhere, "import", archive, "--limit", wrong)
        assert ran.status == 2, (wrong, ran.stderr)
    assert program(*elsewhere, "import", archive, "--limit", "entries=3", "--limit", "ratio=5000").status == 0
