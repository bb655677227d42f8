"""Outputs and promises: what a build must have left in each of its output folders.

A self-path in a config is a promise. It is kept by a file, a folder or a symbolic link, even one that
leads nowhere, inside the output folder. Must not know how outputs are made or what becomes of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final, Optional

from pylightnix.config import cfgsp
from pylightnix.errors import InvalidOutput, PromiseException, shown
from pylightnix.registry import written_config
from pylightnix.store.removal import make_movable
from pylightnix.types import Context, DRef, Output, Path, RealizeArg, Realizer, RealizerO, RefPath, StorageSettings
from pylightnix.workfolder import left_files, this_build

__all__ = ["OUTPUT_ADVICE", "absolute_outputs", "output_paths", "output_realizer", "output_validate"]

OUTPUT_ADVICE: Final = "make output folders under fstmpdir(S) of the S that the realizer is called with, for example with tempfile.mkdtemp"


def _is_kept(folder: str, selfpath: RefPath) -> bool:
    top = os.path.abspath(folder)
    promised = os.path.normpath(os.path.join(top, *selfpath[1:]))
    # A path that climbs out of the folder could be there and still not be part of the realization.
    return (promised == top or promised.startswith(f"{top}/")) and _is_there(top, promised)


def _is_there(top: str, path: str) -> bool:
    try:
        os.lstat(path)
    except PermissionError:
        return _is_there_unlocked(top, path)
    except OSError:
        return False
    return True


def _is_there_unlocked(top: str, path: str) -> bool:
    """Look again, letting the owner into each folder on the way. They get their modes when they are taken over."""
    on_the_way = top
    for part in os.path.relpath(path, top).split("/"):
        if os.path.islink(on_the_way) or not os.path.isdir(on_the_way):
            break
        make_movable(on_the_way)
        on_the_way = os.path.join(on_the_way, part)
    return os.path.lexists(path)


def output_validate(dref: DRef, o: Output[Path], S: Optional[StorageSettings] = None) -> list[Path]:
    """Return the output folders of `o` if each of them holds everything that the config of `dref` promises.

    Raises:
        PromiseException: something is missing; it lists all that is, in every folder.
    """
    promises = [selfpath for _, selfpath in cfgsp(written_config(dref, S))]
    broken = [(folder, selfpath) for folder in o.val for selfpath in promises if not _is_kept(folder, selfpath)]
    if broken:
        raise PromiseException(dref, broken, left_files())
    return list(o.val)


@dataclass(frozen=True, slots=True)
class OutputRealizer:
    """The realizer of a function that returns an `Output`. An instance, so that it can be pickled by name."""

    f: RealizerO

    @property
    def __wrapped__(self) -> RealizerO:
        return self.f

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: RealizeArg) -> list[Path]:
        output: object = self.f(S, dref, context, rarg)
        if not isinstance(output, Output):
            problem = f"returned {output!r:.200}"
            raise InvalidOutput(
                dref, "its realizer", problem, "expected an Output; a realizer that returns a list needs no output_realizer"
            )
        return output_validate(dref, output, S)


def output_realizer(f: RealizerO) -> Realizer:
    """Return a realizer that calls `f`, unwraps the `Output` it returns, and checks promises."""
    return OutputRealizer(f)


def absolute_outputs(dref: DRef, answer: Any) -> Any:
    """Return what a realizer returned with relative paths made absolute, while its working folder is still that of the process.

    Raises:
        InvalidOutput: the working folder itself is among them.
    """
    if not answer or not isinstance(answer, (list, tuple)) or not all(isinstance(item, (str, os.PathLike)) for item in answer):
        return answer
    paths = [os.path.abspath(os.fspath(item)) for item in answer]
    here = this_build()
    if here is not None and here.path in paths:
        problem = f"is not a folder of this build ({os.path.dirname(here.path)}), but the one that it works in"
        raise InvalidOutput(dref, here.path, problem, OUTPUT_ADVICE)
    return paths


def output_paths(dref: DRef, answer: Any) -> list[str]:
    """Return what a realizer returned as absolute paths of distinct folders, none inside another. Looks at no file.

    Raises:
        InvalidOutput: it is anything else.
    """
    if not isinstance(answer, (list, tuple)) or not answer:
        raise InvalidOutput(dref, "its realizer", f"returned {shown(answer, 200)}", "expected a list of one or more output folders")
    for item in answer:
        if not isinstance(item, (str, os.PathLike)):
            raise InvalidOutput(dref, "its realizer", f"returned {shown(item, 200)} as an output", "expected the path of a folder")
    paths = [os.path.abspath(os.fspath(item)) for item in answer]
    for path in paths:
        if any(other.startswith(f"{path}/") for other in paths):
            raise InvalidOutput(dref, path, "holds another output", "return folders that lie beside each other")
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise InvalidOutput(dref, twice, "was returned twice", "return each output folder once")
    return paths
