"""The surroundings that a program's builds are to run in: interpreter, import path, umask, environment variables.

Must not know how a process is started in them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Optional

from pylightnix.errors import Misuse
from pylightnix.workfolder import absolute_variables, program_folder

__all__ = ["Environment", "build_environment_key", "capture_environment", "worker_key"]

_LEFT_BEHIND: Final = frozenset({"TERM", "PWD", "OLDPWD", "SHLVL", "_", "DISPLAY"})
_LEFT_BEHIND_PREFIXES: Final = ("SSH_", "DBUS_", "XDG_SESSION_")
_SECRET_PARTS: Final = ("TOKEN", "SECRET", "PASSWORD")


@dataclass(frozen=True, slots=True)
class Environment:
    """What a process needs to run another one's code as that would."""

    interpreter: str
    """The absolute path of the Python program; in a virtual environment, the one in there."""
    import_path: tuple[str, ...]
    """`sys.path`, every entry absolute."""
    umask: int
    variables: dict[str, str]
    """Undecodable bytes are surrogates, as in `os.environ`."""
    _keys: dict[Optional[tuple[str, ...]], str] = field(default_factory=dict, init=False, compare=False, repr=False)
    """What `worker_key` and, for declared variables, `build_environment_key` have found: the variables never change."""


def capture_environment(declared: Iterable[str] = ()) -> Environment:
    """Return the environment of this process, as far as it is to travel.

    Left behind are variables that belong to a terminal or a login session, and those that seem to hold a
    secret, unless their names are in `declared`. Relative folders, which would mean others in another
    process, are made absolute.

    Raises:
        Misuse: this Python does not know its own program, as happens when it is embedded in another.
    """
    if not sys.executable:
        raise Misuse("sys.executable is empty, so nobody else can start this Python; set it to the path of a Python program")
    kept = set(declared)
    variables = {name: value for name, value in os.environ.items() if name in kept or not _is_left_behind(name)}
    folder = program_folder()
    if folder is not None:
        variables.update(absolute_variables(variables, folder))
    return Environment(
        interpreter=os.path.abspath(sys.executable),
        # An empty entry means the working folder. One that is twice is found at its first place only.
        import_path=tuple(dict.fromkeys(_absolute_entries(folder))),
        umask=_umask(),
        variables=variables,
    )


def _absolute_entries(folder: Optional[str]) -> Iterator[str]:
    for entry in sys.path:
        if folder is not None or os.path.isabs(entry):  # relative to a folder that was removed is nothing
            yield os.path.normpath(os.path.join(folder or "/", entry))


def _is_left_behind(name: str) -> bool:
    upper = name.upper()
    return name in _LEFT_BEHIND or name.startswith(_LEFT_BEHIND_PREFIXES) or any(part in upper for part in _SECRET_PARTS)


def _umask() -> int:
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass  # no /proc here
    # The system tells it only in exchange for a new one. Another thread's files are made with the cautious value meanwhile.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def worker_key(environment: Environment) -> str:
    """Return 64 hex digits that are equal for equal environments, those whose builds one worker can run."""
    if None not in environment._keys:
        environment._keys[None] = _key(environment, environment.variables)
    return environment._keys[None]


def build_environment_key(environment: Environment, declared: Iterable[str] = ()) -> str:
    """Return 64 hex digits for what of the environment tells one build from another.

    That is the interpreter, the import path, the umask and the `declared` variables, absent ones included.
    """
    names = tuple(declared)
    if names not in environment._keys:
        environment._keys[names] = _key(environment, {name: environment.variables.get(name) for name in names})
    return environment._keys[names]


def _key(environment: Environment, variables: Mapping[str, Any]) -> str:
    parts = [environment.interpreter, list(environment.import_path), environment.umask, sorted(variables.items())]
    # ASCII JSON can hold the surrogates that undecodable bytes become, UTF-8 could not.
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode("ascii")).hexdigest()
