"""Who built a realization, when and where: a file for each, in the store's folder `provenance/`.

It says the same as the realization's row in the index, so that a lost index can be rebuilt from the trees. It lies outside of
the tree, for what a realizer leaves is its own, whatever its name. It is written when a realization is put in place, and goes
when that goes; later builds of the same realization are noted in the index only. Realizations of versions before it was
introduced have none. Must not know the index, nor how trees get into the store.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass
from typing import Any, Final, Optional

from pylightnix.store.layout import StoreLayout
from pylightnix.store.trash import put_away
from pylightnix.types import RRef

__all__ = ["Provenance", "drop_provenance", "parse_provenance", "provenance_text", "read_provenance", "write_provenance"]

_MARK: Final = "pylightnix-provenance"
_FORMAT: Final = 1
_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Provenance:
    """What is known of the build that made a tree."""

    uid: Optional[int]
    """The user id of whoever built it; None if it came from elsewhere and nobody said."""
    builder: str
    """The name of that user, on the host where it was entered."""
    host: str
    started: float
    """UTC seconds since the epoch."""
    stopped: float
    realizer_digest: Optional[str] = None
    build: Optional[str] = None
    """The name of the daemon's build."""
    isolation: Optional[str] = None
    """What kept the build apart from the rest of the host, where that is known."""


def provenance_text(provenance: Provenance) -> bytes:
    """Return the content of such a file."""
    return (json.dumps({_MARK: _FORMAT, **asdict(provenance)}, indent=1) + "\n").encode("ascii")


def parse_provenance(data: bytes) -> Provenance:
    """Return what such a file says. Keys of later versions are ignored.

    Raises:
        ValueError: it is none of ours, or damaged.
    """
    try:
        said = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(said, dict) or not isinstance(said.get(_MARK), int):
        raise ValueError(f"it has no {_MARK!r}")
    return Provenance(
        uid=_of(said, "uid", int),
        builder=_of(said, "builder", str) or "",
        host=_of(said, "host", str) or "",
        started=float(_of(said, "started", int, float) or 0.0),
        stopped=float(_of(said, "stopped", int, float) or 0.0),
        realizer_digest=_of(said, "realizer_digest", str),
        build=_of(said, "build", str),
        isolation=_of(said, "isolation", str),
    )


def _of(said: dict[str, Any], key: str, *kinds: type) -> Any:
    value = said.get(key)
    if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
        raise ValueError(f"its {key!r} is {value!r:.80}")
    return value


def write_provenance(layout: StoreLayout, rref: RRef, provenance: Provenance) -> None:
    """Write the file of a realization that is being put in place; what is left there of an earlier one goes."""
    path = layout.provenance(rref)
    drop_provenance(layout, rref)
    try:
        fd = _made(path)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = _made(path)
    except FileExistsError:
        return  # it can be neither removed nor moved, which was told; no build fails for that
    try:
        view = memoryview(provenance_text(provenance))
        while view:  # a disk that is nearly full takes a part
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def _made(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o444)


def drop_provenance(layout: StoreLayout, rref: RRef) -> None:
    """Remove the file of a realization that goes, if it has one. What cannot be removed is set aside, and holds up nothing."""
    path = layout.provenance(rref)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError:
        put_away(layout, path)


def read_provenance(path: str) -> Optional[Provenance]:
    """Return what the file of a realization says; None if it has none, or none that can be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            return parse_provenance(file.read(_BYTES_MAX))
    except (OSError, ValueError, OverflowError):
        return None
