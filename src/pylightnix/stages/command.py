"""`command`: a stage that runs a program. All of it stands in the config; no Python is needed to build it.

The program gets the environment that was listed and nothing else, an empty standard input, and a fresh
working directory that is no part of its output. What it prints goes to a log file in the build folder.
When it ends, everything that it started and left in its process group is killed before its output is
looked at. Must not know how outputs are taken over.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from pylightnix.build import Build, build_config, build_path, build_wrapper
from pylightnix.config import mkconfig
from pylightnix.errors import InvalidConfig, Misuse
from pylightnix.matchers import match_only
from pylightnix.refs import isdref, isrefpath, isselfpath, mkrefpath, selfref
from pylightnix.registry import Registry, mkdrv
from pylightnix.stages._process import run_program
from pylightnix.stages.node import checked_mapping, checked_name, problem_with_entry
from pylightnix.storage import fstmpdir
from pylightnix.types import Context, DRef, Path, RealizeArg, RefPath, StorageSettings
from pylightnix.workfolder import this_build

__all__ = ["CommandRealizer", "command"]

Item = str | RefPath | Sequence[str]
"""A text, taken as it is unless it is a DRef; or a refpath or self-path, which becomes an absolute path."""

_KEY = "__command__"


# --- building -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CommandRealizer:
    """Runs the program that the config's item ``__command__`` describes. Good for every such derivation."""

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: RealizeArg) -> list[Path]:
        return build_wrapper(run_command)(S, dref, context, rarg)


def run_command(b: Build) -> None:
    """Run the program of a build's config.

    Raises:
        CommandFailed: it could not be started, or did not exit with status 0.
    """
    import tempfile

    described = build_config(b).val.get(_KEY)
    if not isinstance(described, dict):
        raise InvalidConfig(f"config.{_KEY}", f"{described!r:.80} describes no program", "register the stage with command(…)")
    argv = [_resolved(b, item) for item in described["argv"]]
    env = {name: _resolved(b, item) for name, item in described.get("env", {}).items()}
    inputs = {name: _resolved(b, item) for name, item in described.get("inputs", {}).items()}
    folder = tempfile.mkdtemp(prefix="command-", dir=fstmpdir(b.S))
    if (here := this_build()) is not None:
        work = here.path
        here.given.update(inputs)
    else:
        work = os.path.join(folder, "work")
        os.mkdir(work)
    for name, target in inputs.items():
        os.symlink(target, os.path.join(work, name))
    run_program(argv, env=env, cwd=work, log=os.path.join(folder, "log"))


def _resolved(b: Build, item: Any) -> str:
    if isinstance(item, str):
        return build_path(b, mkrefpath(item)) if isdref(item) else item
    return build_path(b, item)


# --- declaring ----------------------------------------------------------------------------------------


def command(
    argv: Sequence[Item],
    env: Mapping[str, Item] = {},  # never changed, and part of the published signature
    inputs: Mapping[str, Item] = {},  # as above
    outputs: Sequence[str] = ["out"],
    name: str = "command",
    r: Optional[Registry] = None,
) -> DRef:
    """Register a derivation that is realized by running a program.

    Wherever a text is expected a refpath ``[dref, 'file']`` or self-path ``[selfref, 'file']`` may stand,
    and becomes an absolute path; a DRef alone becomes the folder of its realization. One realization of
    each must be matched. Every self-path is a promise.

    Args:
        argv: the program and its arguments. A program without a slash is looked for in the `PATH` of
            `env`, else in the system's default path; there is no shell unless it is called.
        env: the whole environment of the program.
        inputs: symbolic links to make in the working directory, by name.
        outputs: what the program undertakes to leave in the output folder, ``'file'`` or
            ``'folder/file'``. Tell it where by a self-path in `argv` or `env`.
        name: the name of the derivation.
        r: the registry, else the current one.

    Raises:
        Misuse: something is not of these shapes.

    Building raises a `BuildError` that holds a `CommandFailed` if the program does not exit with status 0.
    """
    if isinstance(argv, (str, bytes)) or not isinstance(argv, Sequence) or not argv:
        raise Misuse(f"command expects a list of the program and its arguments, found {argv!r:.100}; for a shell line: ['sh', '-c', line]")
    if isinstance(outputs, str):
        raise Misuse(f"command expects a list of outputs, found the text {outputs!r}; write [{outputs!r}]")
    if not isinstance(outputs, Sequence):
        raise Misuse(f"command expects a list of outputs, found {outputs!r:.100}; write ['out']")
    env = checked_mapping("command", "env", env, "{'NAME': 'value'}")
    inputs = checked_mapping("command", "inputs", inputs, "{'name': dref}")
    described = {
        "argv": [_checked(f"argv[{i}]", item) for i, item in enumerate(argv)],
        "env": {_variable(key): _checked(f"env[{key!r}]", item) for key, item in env.items()},
        "inputs": {_entry("input", key): _path(f"inputs[{key!r}]", item) for key, item in inputs.items()},
        "outputs": [[selfref, *_components(item)] for item in outputs],
    }
    return mkdrv(mkconfig({"name": checked_name("command", name, "command"), _KEY: described}), match_only(), CommandRealizer(), r)


def _path(where: str, item: object) -> list[str] | str:
    if isinstance(item, str) and isdref(item):
        return str(item)
    found = list(item) if isinstance(item, (list, tuple)) else item
    if not (isrefpath(found) or isselfpath(found)) or not isinstance(found, list):
        raise Misuse(f"command: {where}: expected a DRef, a refpath or a self-path, found {item!r:.100}")
    return [str(part) for part in found]


def _checked(where: str, item: object) -> list[str] | str:
    if not isinstance(item, str):
        if isinstance(item, (list, tuple)):
            return _path(where, item)
        raise Misuse(f"command: {where}: expected text or a refpath, found {item!r:.100}; numbers become text with str()")
    if "\0" in item:
        raise Misuse(f"command: {where}: expected text without NUL characters, which programs cannot be given, found {item!r:.100}")
    return item


def _variable(key: object) -> str:
    if not isinstance(key, str) or not key or "=" in key or "\0" in key:
        raise Misuse(f"command: env: expected the name of a variable, without '=', found {key!r:.100}")
    return key


def _entry(what: str, key: object) -> str:
    problem = problem_with_entry(key)
    if problem:
        raise Misuse(f"command: expected the name of an {what}, found {key!r:.100}: {problem}")
    return str(key)


def _components(output: object) -> list[str]:
    if not isinstance(output, str):
        raise Misuse(f"command: outputs: expected the names of files or folders, found {output!r:.100}")
    return [_entry("output", part) for part in output.split("/")]
