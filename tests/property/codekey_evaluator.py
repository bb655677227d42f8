"""Says of programs what code their stages are and what they give; one process, which forks for every few of them.

In: a JSON list of folders, each with a `prog.py` that has a function `stage`. Out: for each folder a map of
`digest`, `unseen`, `again` (the digest after the stage has run) and `output`, or of `error`.
With the argument `run` each is run as a program in a fork of its own; out comes what it prints.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable

import numpy  # noqa: F401  # loaded once, ahead of the forks

import pylightnix
from pylightnix.codekey import code_manifest

FOLDERS_IN_A_FORK = 60
pylightnix.fsinit  # noqa: B018  # loaded ahead of the forks


def evaluated(folder: str) -> dict[str, object]:
    sys.path.insert(0, folder)
    os.chdir(folder)
    loaded = set(sys.modules)
    try:
        import prog  # type: ignore[import-not-found]  # of the folder

        manifest = code_manifest([prog.stage])
        found = {"digest": manifest.digest, "unseen": list(manifest.unresolved), "output": prog.stage()}
        return {**found, "again": code_manifest([prog.stage]).digest}
    except BaseException:  # noqa: BLE001, ASYNC103  # all of it is told
        return {"error": traceback.format_exc()}
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - loaded:
            if getattr(sys.modules[name], "__file__", None) is None or str(sys.modules[name].__file__).startswith(folder):
                del sys.modules[name]


def ran(folder: str) -> str:
    os.chdir(folder)
    sys.path[0] = folder
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(printed):
        try:
            runpy.run_path(os.path.join(folder, "prog.py"), run_name="__main__")
        except BaseException:  # noqa: BLE001, ASYNC103  # all of it is told
            traceback.print_exc()
    return printed.getvalue()


def forked(folders: list[str], said: Callable[[str], object]) -> list[object]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with os.fdopen(writer, "w") as file:
            json.dump([said(folder) for folder in folders], file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(pid, 0)
    found = json.loads(text) if text else [{"error": "its process died"}] * len(folders)
    assert isinstance(found, list)
    return found


def main() -> None:
    folders = json.load(sys.stdin)
    said: Callable[[str], object] = ran if "run" in sys.argv else evaluated
    if said is evaluated:
        warnings.simplefilter("ignore")
    # A fork costs more than what is done in it; but programs that are run may leave anything behind.
    at_once = 1 if said is ran else FOLDERS_IN_A_FORK
    gc.freeze()
    pieces = [folders[start : start + at_once] for start in range(0, len(folders), at_once)]
    json.dump([found for piece in pieces for found in forked(piece, said)], sys.stdout)


if __name__ == "__main__":
    main()
