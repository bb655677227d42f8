"""Laws of sources: equal trees are one derivation, any difference is another, and what is left out never matters."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from typing import Final, TypeAlias

from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from pylightnix.nar import tree_hash
from pylightnix.sources import Memo, copy_source, excluding, source_digest

Tree: TypeAlias = "tuple[bytes, bool] | bytes | dict[bytes, Tree]"
"""A file with its executable bit, a link's target, or a folder."""

LATER_NS: Final = 10_000_000_000

names = (st.binary(min_size=1, max_size=6) | st.sampled_from([b"a", b"b", b"a0", b"a.", b"\xff"])).filter(
    lambda name: name not in (b".", b"..") and not {0, 47} & set(name)
)
leaves = st.tuples(st.binary(max_size=20), st.booleans()) | st.sampled_from([b"a", b"../..", b"/etc/passwd"])
trees: st.SearchStrategy[Tree] = st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=5), max_leaves=12)
tops = st.dictionaries(names, trees, max_size=5)


def write(tree: Tree, path: bytes) -> None:
    if isinstance(tree, dict):
        os.mkdir(path)
        for name, inner in tree.items():
            write(inner, path + b"/" + name)
    elif isinstance(tree, bytes):
        os.symlink(tree, path)
    else:
        with open(path, "wb") as file:
            file.write(tree[0])
        os.chmod(path, 0o755 if tree[1] else 0o644)


def digest(path: str, memo: Memo, *exclude: str) -> str:
    return source_digest(path, exclude, memo, now_ns=lambda: time.time_ns() + LATER_NS)


COMMON: Final = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])


@COMMON
@given(tops)
def test_it_is_the_same_each_time_and_wherever_it_lies(tree: dict[bytes, Tree]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(tree, f"{folder}/one".encode())
        write(dict(reversed(tree.items())), f"{folder}/two".encode())
        memo = Memo(f"{folder}/memo")
        first = digest(f"{folder}/one", memo)
        assert digest(f"{folder}/one", memo) == first
        assert digest(f"{folder}/two", memo) == first
        assert copy_source(f"{folder}/one", (), folder, "copy") == first
        assert tree_hash(f"{folder}/copy") == tree_hash(f"{folder}/one")


@COMMON
@given(tops, tops)
def test_it_tells_apart_what_the_tree_hash_tells_apart(one: dict[bytes, Tree], two: dict[bytes, Tree]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(one, f"{folder}/one".encode())
        write(two, f"{folder}/two".encode())
        memo = Memo(f"{folder}/memo")
        same = tree_hash(f"{folder}/one").sha256 == tree_hash(f"{folder}/two").sha256
        assert (digest(f"{folder}/one", memo) == digest(f"{folder}/two", memo)) == same


changes = st.lists(
    st.tuples(st.sampled_from(["rewrite", "chmod", "remove", "add", "link"]), st.integers(0, 100), leaves, names), min_size=1, max_size=5
)


@COMMON
@given(tops, changes)
def test_a_memo_never_changes_the_answer(tree: dict[bytes, Tree], made: list[tuple[str, int, tuple[bytes, bool] | bytes, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = f"{folder}/top".encode()
        write(tree, top)
        memo = Memo(f"{folder}/memo")
        digest(f"{folder}/top", memo)
        for number, (kind, which, leaf, name) in enumerate(made):
            change(top, kind, which, leaf, name)
            fresh = Memo(f"{folder}/fresh{number}")
            assert digest(f"{folder}/top", memo) == digest(f"{folder}/top", fresh)


def change(top: bytes, kind: str, which: int, leaf: tuple[bytes, bool] | bytes, name: bytes) -> None:
    folders = [at for at, _, _ in os.walk(top)]
    files = [os.path.join(at, file) for at, _, found in os.walk(top) for file in found if not os.path.islink(os.path.join(at, file))]
    folder = folders[which % len(folders)]
    if kind in ("add", "link"):
        path = folder + b"/" + name
        if not os.path.lexists(path):
            write(leaf if kind == "add" else b"target", path)
    elif files:
        path = files[which % len(files)]
        if kind == "remove":
            os.unlink(path)
        elif kind == "chmod":
            os.chmod(path, 0o644 if os.access(path, os.X_OK) else 0o755)
        else:
            with open(path, "r+b") as file:  # in place: inode and, often, size stay
                file.write(leaf[0] if isinstance(leaf, tuple) else leaf)


plain_names = st.sampled_from([b"a", b"b", b"out", b"x.pyc", b"build", b"keep.pyc"])
plain_trees: st.SearchStrategy[Tree] = st.recursive(leaves, lambda inner: st.dictionaries(plain_names, inner, max_size=4), max_leaves=10)
plain_tops = st.dictionaries(plain_names, plain_trees, max_size=4)
_PATTERNS = [
    "*.pyc",
    "build/",
    "/out",
    "a/b",
    "**/b",
    "!keep.pyc",
    "a/*",
    "!a/b",
    "x.*",
    "a/**",
    "!a/**",
    "*",
    "**/",
    "!*/",
    "a/**/b",
    "!build",
]
patterns = st.lists(st.sampled_from(_PATTERNS), min_size=1, max_size=4)


@COMMON
@given(plain_tops, patterns)
def test_what_is_excluded_never_matters(tree: dict[bytes, Tree], exclude: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = f"{folder}/top"
        write(tree, top.encode())
        memo = Memo(f"{folder}/memo")
        before = digest(top, memo, *exclude)
        copy_source(top, exclude, folder, "copy")
        left = {
            os.path.relpath(os.path.join(at, name), f"{folder}/copy")
            for at, dirs, files in os.walk(f"{folder}/copy")
            for name in dirs + files
        }
        for at, _, files in os.walk(top):
            for name in files:
                path = os.path.join(at, name)
                if os.path.relpath(path, top) not in left:
                    os.unlink(path)
                    os.mkfifo(path)  # which would be refused
        assert digest(top, memo, *exclude) == before
        assert digest(f"{folder}/copy", memo) == before


git_names = st.sampled_from(
    [
        *(b"a", b"b", b"ab", b"A", b"a1", b"log.1", b"log.x", b"x.tmp", b"keep.tmp", b"#a", b"!a", b" a", b"a ", b"a\t", b"-"),
        *(b"new\nline", b"a\\b", b"a*b", b"[a]", b"]", b"\xc3\xa9", b"\xff\xfe", b"a\r", b"**", b".hidden", b"^", b"\x0b", b"_"),
    ]
)
git_trees: st.SearchStrategy[Tree] = st.recursive(leaves, lambda inner: st.dictionaries(git_names, inner, max_size=4), max_leaves=14)
git_tops = st.dictionaries(git_names, git_trees, min_size=1, max_size=6)
_CLASS_NAMES: Final = [
    *("alnum", "alpha", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "xdigit", "word")
]
brackets = st.one_of(
    st.builds("[{}{}]".format, st.sampled_from(["", "!", "^"]), st.sampled_from([f"[:{name}:]" for name in _CLASS_NAMES])),
    st.sampled_from(["[[:digit:][:alpha:]]", "[![:digit:]_]", "[[:digit:]-z]", "[[:foo]", "[[:]", "[[:digit:", "[]]", "[]-a]", "[!]a-]"]),
    st.sampled_from(
        ["[a-", "[", "[]", "[!", "[^]", "[a-c]", "[c-a]", "[\\]]", "[a\\-z]", "[\\a-z]", "[a-\\z]", "[é]", "[/]", "[!/]", "[^^]", "[!!]"]
    ),
)
pieces = st.sampled_from(
    [
        *"ab1#! -*?/\\[]",
        "*",
        "**",
        "/",
        "**/",
        "/**",
        "/**/",
        "***",
        "log.",
        ".tmp",
        "keep",
        "new",
        "\\#",
        "\\!",
        "\\ ",
        "\\*",
        "\\\\",
        "\t",
        "é",
        "\udcff",
    ]
)
git_patterns = st.lists(
    st.builds("{}{}{}".format, st.sampled_from(["", "", "!", "/", "#", "\\"]), st.lists(pieces | brackets, max_size=4).map("".join), pieces)
    | git_names.map(os.fsdecode).filter(lambda name: "\n" not in name)
    | st.sampled_from(_PATTERNS),
    min_size=1,
    max_size=5,
)


def git_keeps(top: str, exclude: list[str]) -> set[bytes]:
    """Return the files and links that Git does not ignore."""
    try:
        if not os.path.isdir(f"{top}/.git"):
            subprocess.run(["git", "init", "-q", top], check=True, capture_output=True)
    except FileNotFoundError:
        assume(False)
    with open(f"{top}/.git/patterns", "wb") as file:
        file.write(b"\n".join(map(os.fsencode, [*exclude, "/.git/"])) + b"\n")
    command = ["git", "-C", top, "ls-files", "-z", "--others", f"--exclude-from={top}/.git/patterns"]
    return set(subprocess.run(command, check=True, capture_output=True).stdout.split(b"\0")) - {b""}


def ours_keep(top: str, exclude: list[str], folder: str) -> set[bytes]:
    copy_source(top, [*exclude, "/.git/"], folder, "copy")
    copied = f"{folder}/copy".encode()
    return {
        os.path.relpath(os.path.join(at, name), copied)
        for at, dirs, files in os.walk(copied)
        for name in [*files, *(each for each in dirs if os.path.islink(os.path.join(at, each)))]
    }


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@example({b"keep.pyc": {b"x.pyc": {b"a": b"to"}}}, ["*.pyc", "!keep.pyc"])
@example({b"a": {b"b": b"to", b"out": b"to"}}, ["a/**", "!a/b"])
@example({b"ab": {b"a": {b"b": b"to"}}}, ["a**/b"])
@given(plain_tops | git_tops, patterns | git_patterns)
def test_patterns_mean_what_git_makes_of_them(tree: dict[bytes, Tree], exclude: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(tree, f"{folder}/top".encode())
        assert ours_keep(f"{folder}/top", exclude, folder) == git_keeps(f"{folder}/top", exclude)


NAMES: Final = [
    *(name for byte in range(1, 256) if byte not in b"./" for name in (bytes((byte,)), b"x" + bytes((byte,))) if name not in (b"a", b"xx")),
    *(b"xx/y", b"a/x/b", b"a/b", b"ax/y/b", b"foo\n/a.tmp", b"a b ", b"..x", b"up/y/z"),
]
"""One with each byte, and a few in folders."""
LISTED: Final = [
    *(f"x[{before}[:{name}:]]" for name in _CLASS_NAMES for before in ("", "!", "^")),
    *("x[[:upper:][:digit:]_]", "x[a-f0-9]", "x[]-a]", "x[!]-a]", "x[--0]", "x[a-]", "x[\\]]", "x[[:space:]", "x[", "x[!", "x[a-", "\\"),
    *(
        "a/**",
        "**/b",
        "a/**/b",
        "a**/b",
        "**",
        "/**",
        "x**",
        "x**y",
        "a/***/b",
        "**/x/**",
        "*/y",
        "x/*",
        "?",
        "x?",
        "??",
        "*\n",
        "é",
        "?/*",
    ),
    *(
        "\\#",
        "\\!",
        "#",
        "!",
        "",
        "/",
        "//",
        " ",
        "\\ ",
        "\t",
        "x\t",
        "x\\ ",
        "a b ",
        "a b\\ ",
        "\\a",
        "\\\\",
        "*.tmp",
        "foo*",
        "foo?",
        "x\r",
    ),
]


def test_each_of_these_patterns_means_what_git_makes_of_it() -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = f"{folder}/top".encode()
        for name in NAMES:
            os.makedirs(os.path.dirname(top + b"/" + name), exist_ok=True)
            with open(top + b"/" + name, "wb"):
                pass
        for pattern in LISTED:
            excluded = excluding([pattern])
            assert excluded is not None
            kept = {name for name in NAMES if not any(excluded(path, path != name) for path in with_parents(name))}
            assert kept == git_keeps(os.fsdecode(top), [pattern]), pattern


def with_parents(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[: count + 1]) for count in range(len(parts))]


def test_lines_of_a_file_may_have_their_ends() -> None:
    for end in ("\n", "\r\n", "\r"):
        excluded = excluding(["\ufeff*.tmp" + end, "/build/" + end])
        assert excluded is not None
        assert excluded(b"a.tmp", False)
        assert excluded(b"build", True)
        assert not excluded(b"build", False)
