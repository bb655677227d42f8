from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylightnix.errors import TargetNotFound
from pylightnix_client.errors import InvalidArgument
from pylightnix_client.target import FileTarget, ModuleTarget, StoredTarget, Target, parse_arguments, parse_target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.py", FileTarget("a.py", "a.py", None)),
        ("x/y z.py:main", FileTarget("x/y z.py:main", "x/y z.py", "main")),
        ("odd:name.py", FileTarget("odd:name.py", "odd:name.py", None)),
        ("odd:name.py:train", FileTarget("odd:name.py:train", "odd:name.py", "train")),
        ("package.module:train", ModuleTarget("package.module:train", "package.module", "train")),
        ("module:_private", ModuleTarget("module:_private", "module", "_private")),
        ("dref:00", StoredTarget("dref:00")),
        ("package.module", ModuleTarget("package.module", "package.module", None)),
        ("no_such_module", StoredTarget("no_such_module")),
        ("1234abcd", StoredTarget("1234abcd")),
        ("./result", StoredTarget("./result")),
    ],
)
def test_kinds_of_targets(text: str, expected: Target) -> None:
    assert parse_target(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a target"),
        ("a.py:", "the name of a stage after the colon"),
        ("a.py:no-name", "found 'no-name'"),
        ("some/folder:main", "neither a Python file"),
        ("1module:main", "neither a Python file"),
        ("rref:00", "is a realization"),
    ],
)
def test_what_is_no_target_says_what_was_expected(text: str, says: str) -> None:
    with pytest.raises(TargetNotFound, match=says) as caught:
        parse_target(text)
    assert caught.value.exit_status == 2


def test_a_name_without_a_colon_is_a_module_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").touch()
    (tmp_path / "package").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_target("train") == ModuleTarget("train", "train", None)
    assert parse_target("package") == StoredTarget("package")
    (tmp_path / "package" / "__init__.py").touch()
    assert parse_target("package") == ModuleTarget("package", "package", None)


def test_arguments_are_json() -> None:
    assert parse_arguments(["a=1", 'b="x=y"', "c=[1, null]", "d={}"]) == {"a": 1, "b": "x=y", "c": [1, None], "d": {}}


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["a"], "expected NAME=JSON"),
        (["a-b=1"], "expected NAME=JSON"),
        (["r=1"], "r is the registry"),
        (["a=1", "a=2"], "a is given twice"),
        (["a=True"], "write --arg a=true"),
        (["a=None"], "write --arg a=null"),
    ],
)
def test_bad_arguments_say_what_to_write(texts: list[str], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        parse_arguments(texts)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00")))
def test_advice_for_bare_text_is_what_to_write(text: str) -> None:
    try:
        json.loads(text)
    except ValueError:
        with pytest.raises(InvalidArgument) as caught:
            parse_arguments([f"a={text}"])
        advice = str(caught.value)
        if " for that text write " in advice:
            _, option, argument = shlex.split(advice.partition(" for that text ")[2])
            assert option == "--arg"
            assert parse_arguments([argument]) == {"a": text}


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_any_json_value_comes_through(value: Any) -> None:
    assert parse_arguments([f"a={json.dumps(value)}"]) == {"a": value}
