"""How a build target is spelt: ``file.py``, ``file.py:stage``, ``package.module``, ``package.module:stage``, or what the store knows.

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

__all__ = ["FileTarget", "ModuleTarget", "StoredTarget", "Target", "parse_arguments", "parse_target"]

_FORMS: Final = "FILE.py, FILE.py:STAGE, PACKAGE.MODULE, PACKAGE.MODULE:STAGE or dref:…"
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
    stage: Optional[str]
    """As of a file."""


@dataclass(frozen=True, slots=True)
class StoredTarget:
    """A derivation that the store knows already: any reference to one."""

    text: str


Target: TypeAlias = Union[FileTarget, ModuleTarget, StoredTarget]


def parse_target(text: str) -> Target:
    """Return what `text` names. A name without a colon is a module if there is one, else a stage that the store knows.

    Raises:
        TargetNotFound: it is spelt like none of these.
    """
    if text.startswith("dref:"):
        return StoredTarget(text)
    if text.startswith("rref:"):
        raise TargetNotFound(f"{text} is a realization, which is built already; expected {_FORMS}; its folder: pylightnix path {text}")
    if text.endswith(".py"):
        return FileTarget(text, text, None)
    where, colon, stage = text.rpartition(":")
    if not text:
        raise TargetNotFound(f"expected a target {_FORMS}, found an empty text")
    if not colon:
        return ModuleTarget(text, text, None) if _is_module(text) else StoredTarget(text)
    if not stage.isidentifier():
        raise TargetNotFound(f"target {text!r}: expected the name of a stage after the colon, found {stage!r}")
    if where.endswith(".py"):
        return FileTarget(text, where, stage)
    if _MODULE.fullmatch(where) is None:
        raise TargetNotFound(f"target {text!r}: {where!r} is neither a Python file (FILE.py) nor a module (PACKAGE.MODULE)")
    return ModuleTarget(text, where, stage)


def _is_module(text: str) -> bool:
    """Tell whether `text` is spelt like a module; without a dot, whether there is one here. Imports nothing."""
    if "." in text:
        return _MODULE.fullmatch(text) is not None
    return text.isidentifier() and (os.path.isfile(f"{text}.py") or os.path.isfile(os.path.join(text, "__init__.py")))


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
