"""What `pylightnix` 0.x had for its own use and programs could reach. Nothing here is used by us."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from pylightnix.errors import Misuse
from pylightnix.types import DRef

__all__ = ["APACK", "AUNPACK", "C", "CURL", "D", "DRefLike", "TL", "WGET", "try_executable"]

TL: Final = threading.local()
C = TypeVar("C")
D = TypeVar("D")
DRefLike = TypeVar("DRefLike", bound=DRef)


def try_executable(name: str, envname: str, not_found_message: str, not_found_warning: str) -> Callable[[], str]:
    """Return a function that returns the path of a program: as an environment variable says it, else as found on PATH.

    Raises (the function): Misuse with `not_found_message`. The warning is not told, since we need no program.
    """

    def executable() -> str:
        found = os.environ.get(envname) or shutil.which(name)
        if found is None:
            raise Misuse(not_found_message)
        return found

    return executable


def _tool(name: str) -> Callable[[], str]:
    return try_executable(name, f"PYLIGHTNIX_{name.upper()}", f"{name} is not installed, and Pylightnix does not need it any more", "")


APACK, AUNPACK, CURL, WGET = (_tool(name) for name in ("apack", "aunpack", "curl", "wget"))
