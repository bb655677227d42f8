"""Identity, three times: as the package computes it, as the golden file has it, and from first principles.

References are promises to stores that exist. If a test here fails, the code is wrong, not the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pylightnix import (
    Config,
    allrrefs,
    fstmpdir,
    instantiate,
    match_only,
    mkconfig,
    mkdrv,
    realize1,
    rref2path,
)
from pylightnix.config import canonical_bytes, cfghash, cfgname
from pylightnix.context import context_file_text, context_key, parse_context, realization_hash
from pylightnix.nar import tree_hash
from pylightnix.refs import mkdref, trimhash, undref
from pylightnix.registry import Registry
from pylightnix.store.derivations import derivation_ref
from pylightnix.types import Context, DRef, RealizeArg, RRef, StorageSettings
from pylightnix.types import Path as FolderPath

pytestmark = pytest.mark.language

GOLDEN: dict[str, list[dict[str, Any]]] = json.loads((Path(__file__).resolve().parents[1] / "golden" / "identity.json").read_text("utf-8"))


def by_what(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", GOLDEN[kind], ids=lambda case: case["what"])


# --- first principles -------------------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    """Sorted keys, minimal separators, UTF-8; NaN and the infinities in Python's spelling."""
    if isinstance(value, dict):
        return b"{" + b",".join(canonical(key) + b":" + canonical(value[key]) for key in sorted(value)) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(canonical, value)) + b"]"
    return json.dumps(value, ensure_ascii=False).encode("utf-8")


def half_sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def nar_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + b"\0" * (-len(text) % 8)


def nar(files: Mapping[str, bytes]) -> bytes:
    """Serialize a folder of plain files."""
    parts = [b"nix-archive-1", b"(", b"type", b"directory"]
    for name in sorted(files):
        parts += [b"entry", b"(", b"name", name.encode(), b"node", b"(", b"type", b"regular", b"contents", files[name], b")", b")"]
    return b"".join(map(nar_text, [*parts, b")"]))


def rref_from_first_principles(dref: str, tree_hash: str, deps: Mapping[str, list[str]], dynamic: Mapping[str, list[str]]) -> str:
    context = {"deps": {d: sorted(deps[d]) for d in deps}, "dynamic": {d: sorted(dynamic[d]) for d in dynamic}}
    digest = half_sha256(b"pylightnix-rref-1\0" + tree_hash.encode() + b"\0" + canonical(context))
    return f"rref:{digest}-{dref.removeprefix('dref:')}"


# --- the golden file --------------------------------------------------------------------------------


@by_what("configs")
def test_a_golden_config(case: dict[str, Any]) -> None:
    value = json.loads(case["json"])
    expected = bytes.fromhex(case["canonical_hex"])
    assert canonical(value) == expected
    assert f"dref:{half_sha256(expected)}-{value.get('name', 'unnamed')}" == case["dref"]

    config = mkconfig(value)
    assert canonical_bytes(config.val) == expected
    assert mkdref(trimhash(cfghash(config)), cfgname(config)) == case["dref"]
    assert derivation_ref(expected, cfgname(config)) == case["dref"]


def test_some_golden_bytes_are_readable() -> None:
    texts = {case["what"]: bytes.fromhex(case["canonical_hex"]).decode() for case in GOLDEN["configs"]}
    assert texts["empty"] == "{}"
    assert texts["a name and a number"] == '{"epochs":3,"name":"model"}'
    assert texts["what JSON proper has not"] == '{"x":[NaN,Infinity,-Infinity]}'
    assert texts["text beyond ASCII"] == '{"Z":3,"a":4,"é":"☃ 😀","\uffff":1,"😀":2}'


def test_d10_the_same_config_written_otherwise_is_the_same_derivation() -> None:
    drefs = [case["dref"] for case in GOLDEN["configs"]]
    assert drefs[1] == drefs[2]
    assert len(set(drefs)) == len(drefs) - 1


@by_what("realizations")
def test_a_golden_realization(case: dict[str, Any]) -> None:
    deps, dynamic = case["deps"], case["dynamic"]
    expected = bytes.fromhex(case["canonical_hex"])
    assert canonical({"deps": {d: sorted(deps[d]) for d in deps}, "dynamic": {d: sorted(dynamic[d]) for d in dynamic}}) == expected
    assert rref_from_first_principles(case["dref"], case["tree_hash"], deps, dynamic) == case["rref"]

    assert canonical_bytes(json.loads(context_file_text(deps, dynamic))) == expected
    parsed = parse_context(json.loads(expected))
    dhash, name = undref(case["dref"])
    for some_deps, some_dynamic in ((deps, dynamic), parsed):
        assert f"rref:{realization_hash(case['tree_hash'], some_deps, some_dynamic)}-{dhash}-{name}" == case["rref"]
        assert context_key(some_deps) == case["context_key"] == half_sha256(canonical({d: sorted(deps[d]) for d in deps}))


def test_golden_realizations_differ() -> None:
    rrefs = [case["rref"] for case in GOLDEN["realizations"]]
    assert len(set(rrefs)) == len(rrefs)


# --- through the store ------------------------------------------------------------------------------


def make_stage(config: Config, files: Mapping[str, bytes], r: Registry) -> DRef:
    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: RealizeArg) -> list[FolderPath]:
        folder = FolderPath(os.path.join(fstmpdir(S), "output"))
        os.mkdir(folder)
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        return [folder]

    return mkdrv(config, match_only(), realizer, r)


def test_a_store_holds_what_first_principles_say(S: StorageSettings) -> None:
    below_files = {"data.bin": b"hello\n", "__init__.py": b""}
    top_files = {"out": b"x" * 9}
    below_config: dict[str, Any] = {"name": "below", "seed": 1.0}

    def stage(r: Registry) -> DRef:
        below = make_stage(mkconfig(below_config), below_files, r)
        return make_stage(mkconfig({"input": [below, "data.bin"], "out": ["__self__", "out"]}), top_files, r)

    top, closure = instantiate(stage, S=S)
    below_dref = f"dref:{half_sha256(canonical(below_config))}-below"
    top_dref = f"dref:{half_sha256(canonical({'input': [below_dref, 'data.bin'], 'out': ['__self__', 'out']}))}-unnamed"
    assert top == top_dref

    below_tree, top_tree = (hashlib.sha256(nar(files)).hexdigest() for files in (below_files, top_files))
    below_rref = rref_from_first_principles(below_dref, below_tree, {}, {})
    top_rref = rref_from_first_principles(top_dref, top_tree, {below_dref: [below_rref]}, {})
    assert realize1((top, closure)) == top_rref
    assert set(allrrefs(S)) == {below_rref, top_rref}

    written = Path(rref2path(RRef(top_rref), S), "context.json").read_bytes()
    assert json.loads(written) == {"deps": {below_dref: [below_rref]}, "dynamic": {}}
    assert json.loads(Path(rref2path(RRef(below_rref), S), "../config.json").read_bytes()) == below_config


def test_the_tree_hash_of_plain_files(tmp_path: Path) -> None:
    files = {"b": b"", "a": b"12345678", "c.txt": b"hello\n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert tree_hash(str(tmp_path)).sha256 == hashlib.sha256(nar(files)).hexdigest()
