"""Says of programs what code their stages are and what they give; one process, in which the versions of each have a fork.

In: a JSON list of lists of folders, each with a `prog.py` that has a function `stage`. Out: for each folder a map of
`digest`, `unseen`, `again` (the digest after the stage has run) and `output`, or of `error`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
import warnings

import numpy  # noqa: F401  # loaded once, ahead of the forks

from pylightnix.codekey import code_manifest


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


def forked(folders: list[str]) -> list[dict[str, object]]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with os.fdopen(writer, "w") as file:
            json.dump([evaluated(folder) for folder in folders], file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(pid, 0)
    found = json.loads(said) if said else [{"error": "its process died"}] * len(folders)
    assert isinstance(found, list)
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    gc.freeze()
    json.dump([forked(folders) for folders in json.load(sys.stdin)], sys.stdout)
