"""A realizer that does next to nothing, where workers can import it."""

from __future__ import annotations

import os
from typing import Any

from pylightnix import Context, DRef, Path, StorageSettings


def trivial(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
    folder = Path(f"{S.tmpdir}/out")
    os.mkdir(folder)
    with open(f"{folder}/artifact", "w") as file:
        file.write(dref)
    return [folder]
