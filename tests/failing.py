"""A daemon whose calls to the system fail while a test wants them to.

    python tests/failing.py FILE [any words] pylightnixd OPTIONS...

runs the program `pylightnixd`. While FILE holds a line ``function number text``, every call of that function of `os` by the daemon
itself fails with that error, if one of its arguments, as text, holds `text`; of ``sync`` and ``commit``, which are no such
functions, the steps of that name fail. It imports nothing of `tests`, for it runs as a program too.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any, Final

FUNCTIONS: Final = ("open", "write", "mkdir", "rename", "unlink", "rmdir", "pipe2", "utime", "stat", "lstat", "fchmod", "listdir", "close")
POINTS: Final = {"before_sync": "sync", "before_valid": "commit"}


def fail(path: Path, function: str, number: int, text: str = "") -> None:
    """Have a function fail from now on."""
    draft = path.with_suffix(".new")
    draft.write_text(f"{function} {number} {text}")
    draft.rename(path)


def recover(path: Path) -> None:
    """Have nothing fail any more."""
    path.unlink()


def wrapper(path: Path) -> tuple[str, ...]:
    """Return what `Daemon` is given as its wrapper."""
    return (sys.executable, os.path.abspath(__file__), str(path))


def _install(path: str) -> None:
    me, real = os.getpid(), {name: getattr(os, name) for name in FUNCTIONS}

    def order() -> list[str]:
        if os.getpid() != me:
            return []
        try:
            fd = real["open"](path, os.O_RDONLY)
        except FileNotFoundError:
            return []
        try:
            return os.read(fd, 1000).decode().split(" ")
        finally:
            real["close"](fd)

    def check(name: str, arguments: tuple[Any, ...]) -> None:
        said = order()
        if said and said[0] == name and (not said[2] or any(said[2] in str(argument) for argument in arguments)):
            number = int(said[1])
            named = arguments[:1] if arguments and isinstance(arguments[0], (str, bytes)) else ()
            raise OSError(number, os.strerror(number), *named)

    def failing(name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            if name == "close":  # it closes even if it fails
                real[name](*arguments)
                return check(name, arguments)
            check(name, arguments)
            return real[name](*arguments, **named)

        return call

    for name in FUNCTIONS:
        setattr(os, name, failing(name))
    for group in (os.supports_dir_fd, os.supports_follow_symlinks, os.supports_fd):
        group |= {getattr(os, name) for name in FUNCTIONS if real[name] in group}

    from pylightnix.store.faults import set_hook

    set_hook(lambda point: check(POINTS[point], ()) if point in POINTS else None)


def main() -> None:
    """Run the daemon."""
    options = sys.argv[sys.argv.index("pylightnixd", 2) + 1 :]
    from pylightnixd.main import main as serve

    _install(sys.argv[1])
    sys.argv = ["pylightnixd", *options]
    serve()


NUMBERS: Final = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.EDQUOT, errno.ESTALE)

if __name__ == "__main__":
    main()
