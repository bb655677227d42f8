"""Small files in one call, and what comes of failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from pylightnix import (
    maybereadjson,
    maybereadstr,
    readjson,
    readstr,
    trycatch,
    tryread,
    tryread_def,
    tryreadjson,
    tryreadjson_def,
    tryreadstr,
    tryreadstr_def,
    trywrite,
    writejson,
    writestr,
)


def test_text_and_json_come_back(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    writestr(path, "žluť\n")
    assert readstr(path) == tryreadstr(path) == "žluť\n"
    assert tryread(path) == "žluť\n"
    writejson(path, {"a": [1, None]})
    assert readjson(path) == tryreadjson(path) == {"a": [1, None]}
    writejson(path, {"a": 1}, indent=2)
    assert readstr(path) == '{\n  "a": 1\n}'


def test_a_value_that_is_not_json_leaves_the_file_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    writestr(path, "kept")
    with pytest.raises(TypeError):
        writejson(path, {"a": object()})
    assert readstr(path) == "kept"


def test_what_cannot_be_read(tmp_path: Path) -> None:
    absent, binary = str(tmp_path / "absent"), str(tmp_path / "binary")
    Path(binary).write_bytes(b"\xff{")
    for path in (absent, binary, str(tmp_path)):
        assert tryreadstr(path) is None
        assert tryreadjson(path) is None
        assert tryreadstr_def(path, "default") == "default"
        assert tryreadjson_def(path, [1]) == [1]
        assert tryread(path) is None
        assert tryread_def(path, "x") == "x"
    with pytest.raises(FileNotFoundError):
        readstr(absent)


def test_what_is_empty_is_not_missing(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    assert trywrite(path, "")
    assert (tryread_def(path, "x"), tryreadstr_def(path, "x")) == ("", "")


def test_writing_where_one_cannot(tmp_path: Path) -> None:
    assert not trywrite(str(tmp_path / "no" / "file"), "x")
    assert not trywrite(str(tmp_path), "x")


def test_the_default_is_parsed_as_the_file_would_be(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    assert maybereadstr(path, "7", int) == 7
    writestr(path, "5")
    assert maybereadstr(path, "7", int) == 5
    assert maybereadjson(path, 7, lambda value: value + 1) == 6
    writestr(path, "five")
    assert maybereadstr(path, "7", int) == 7
    assert maybereadjson(path, 7, lambda value: value + 1) == 8
    assert trycatch(lambda: "1", "2", int) == 1
