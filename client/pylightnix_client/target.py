"""How a build target is spelt: ``file.py``, ``file.py:stage``, ``package.module:stage`` or a DRef.

Purely textual, but for a look at the file system to word an error. Also the spelling of ``--arg``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Optional, TypeAlias, Union

from pylightnix.errors import TargetNotFound
from pylightnix_client.errors import InvalidArgument

__all__ = ["DRefTarget", "FileTarget", "ModuleTarget", "Target", "parse_arguments", "parse_target"]

_FORMS: Final = "FILE.py, FILE.py:STAGE, PACKAGE.MODULE:STAGE or dref:…"
_MODULE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, slots=True)
class FileTarget:
    """A stage in a Python file."""

    text: str
    path: str
    stage: Optional[str]
    """Its name, or None for the only one or `main`."""


@dataclass(frozen=True, slots=True)
class ModuleTarget:
    """A stage in an importable module."""

    text: str
    module: str
    stage: str


@dataclass(frozen=True, slots=True)
class DRefTarget:
    """A derivation that the store knows already: a DRef, or how one begins."""

    text: str


Target: TypeAlias = Union[FileTarget, ModuleTarget, DRefTarget]


def parse_target(text: str) -> Target:
    """Return what `text` names.

    Raises:
        TargetNotFound: it is spelt like none of the four kinds.
    """
    if text.startswith("dref:"):
        return DRefTarget(text)
    if text.startswith("rref:"):
        raise TargetNotFound(f"{text} is a realization, which is built already; expected {_FORMS}; its folder: pylightnix path {text}")
    if text.endswith(".py"):
        return FileTarget(text, text, None)
    where, colon, stage = text.rpartition(":")
    if not colon:
        raise TargetNotFound(f"expected a target {_FORMS}, found {text!r}{_suggestion(text)}")
    if not stage.isidentifier():
        raise TargetNotFound(f"target {text!r}: expected the name of a stage after the colon, found {stage!r}")
    if where.endswith(".py"):
        return FileTarget(text, where, stage)
    if _MODULE.fullmatch(where) is None:
        raise TargetNotFound(f"target {text!r}: {where!r} is neither a Python file (FILE.py) nor a module (PACKAGE.MODULE)")
    return ModuleTarget(text, where, stage)


def _suggestion(text: str) -> str:
    if os.path.isfile(text + ".py"):
        return f"; did you mean {text}.py?"
    if _MODULE.fullmatch(text):
        return f"; for a module say which stage: {text}:STAGE"
    return ""


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Return the values of ``--arg NAME=JSON``, in order.

    Raises:
        InvalidArgument: one is spelt otherwise, given twice, or its value is not JSON.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise _bad_argument(text, "expected NAME=JSON with a Python name")
        if name == "r":
            raise _bad_argument(text, "r is the registry, which every stage is given")
        if name in found:
            raise _bad_argument(text, f"{name} is given twice")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _bad_argument(text, f"the value is not JSON ({error}){_quoting(name, value)}") from error
    return found


def _bad_argument(text: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"--arg {text}: {problem}")


def _quoting(name: str, value: str) -> str:
    known = {"True": "true", "False": "false", "None": "null"}
    if value in known:
        return f"; write --arg {name}={known[value]}"
    return f"; for that text write --arg {shlex.quote(f'{name}={json.dumps(value, ensure_ascii=False)}')}"
