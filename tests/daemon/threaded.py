"""A stage of a module that starts a thread when a worker's build imports it."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from pylightnix import autostage, match_all, selfref

if "pylightnix.worker.service" in sys.modules:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


@autostage(nouts=2, matcher=match_all, out=[selfref, "out.txt"])
def tells_process(rindex: int, out: str) -> None:
    Path(out).write_text(f"{rindex} {os.getpid()}")
