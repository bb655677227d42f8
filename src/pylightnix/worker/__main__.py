"""The program of the worker."""

from __future__ import annotations

import sys

from pylightnix.worker.service import serve

if __name__ == "__main__":
    if len(sys.argv) != 3 or not all(argument.isdecimal() for argument in sys.argv[1:]):
        sys.exit("usage: python -P -m pylightnix.worker CONTROL_FD OWNER_FD (started by the daemon, not by hand)")
    serve(int(sys.argv[1]), int(sys.argv[2]))
