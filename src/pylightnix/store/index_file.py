"""Whether the file of an index is fit to be opened: looked at before SQLite may touch it.

SQLite takes an absent or an empty file for a new database, deletes the write-ahead log that lies beside an empty one, and reads
what a file lacks at its end as zeros. So damage of these kinds must be found before, and be refused: a store whose
index is taken for new forgets all that is in it.

The index is made durable in its first format before the first tree is put in place (`Index.migrate`), so an index
without content beside trees has lost it. Takes no lock, and writes nothing. Must not know what the tables hold.
"""

from __future__ import annotations

import os
import re
import shlex
import struct
import time
from typing import Final, Optional

from pylightnix.errors import StoreCorrupt
from pylightnix.store.layout import STORAGE_NAME, StoreLayout, state_folder

__all__ = ["corrupt_index", "file_problem", "has_trees", "is_new_index", "refuse_lost_index", "store_command"]

_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100
_WAL_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_LOOKS: Final = 3
"""How often to look before damage is believed: another process may just be writing a checkpoint."""
_PAUSE_SECONDS: Final = 0.01
_DERIVATION: Final = re.compile(r"[0-9a-f]{32}-.+", re.ASCII)
_REALIZATION: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


# --- the file -----------------------------------------------------------------------------------------


def file_problem(path: str) -> Optional[str]:
    """Return what is wrong with the file of an index that is there and is not empty; None if nothing can be seen from outside.

    Raises:
        OSError: it cannot be read.
    """
    if os.path.lexists(f"{path}-journal"):
        return None  # the power went while it was made: SQLite undoes that, and says itself what is wrong then
    with open(path, "rb") as file:
        header = file.read(_HEADER_BYTES)
    if not header.startswith(_MAGIC[: len(header)]):
        return "it is no SQLite database"
    page_bytes = int.from_bytes(header[16:18], "big")
    page_bytes = 65536 if page_bytes == 1 else page_bytes
    if len(header) == _HEADER_BYTES and (page_bytes < 512 or page_bytes & (page_bytes - 1)):
        return f"its header is damaged: it says that pages have {page_bytes} bytes"
    problem = _lack(path, page_bytes)
    for _ in range(_LOOKS - 1):
        if problem is not None:
            time.sleep(_PAUSE_SECONDS)
            problem = _lack(path, page_bytes)
    return problem


def _lack(path: str, page_bytes: int) -> Optional[str]:
    """Return what a file lacks at its end, and its log does not have either."""
    with open(path, "rb") as file:
        header, size = file.read(_HEADER_BYTES), os.fstat(file.fileno()).st_size
    if size < _HEADER_BYTES:
        return f"it is cut short: it has {size} bytes" if size else None
    changed, pages, counted = struct.unpack(">24xII60xI4x", header)
    whole = size // page_bytes
    # SQLite, too, believes the count of pages only if the count of changes beside it is that of the file.
    if changed != counted or pages <= whole or not set(range(whole + 1, pages + 1)) - _pages_in_log(f"{path}-wal", page_bytes):
        return None
    return f"it is cut short: it has {size} bytes of {pages * page_bytes}"


def _pages_in_log(path: str, page_bytes: int) -> set[int]:
    """Return which pages a write-ahead log has. A checkpoint copies the first page first: until it ends, the file lacks others."""
    found: set[int] = set()
    try:
        with open(path, "rb") as file:
            salts = file.read(_WAL_HEADER_BYTES)[16:24]
            while len(frame := file.read(_FRAME_HEADER_BYTES)) == _FRAME_HEADER_BYTES:
                if frame[8:16] != salts:
                    break  # left by an earlier round of the log
                found.add(int.from_bytes(frame[:4], "big"))
                file.seek(page_bytes, os.SEEK_CUR)
    except FileNotFoundError:
        pass
    return found


# --- beside trees -------------------------------------------------------------------------------------


def is_new_index(layout: StoreLayout, may_open: bool) -> bool:
    """Tell whether there is no index yet, or one that is empty, in a store that has no trees either.

    Args:
        layout: the store.
        may_open: whether to look into the file. Where a connection to it is open, that is out of the question, and needless.

    Raises:
        StoreCorrupt: the index is absent or empty, and there are trees; or its file is damaged.
        OSError: it cannot be looked at.
    """
    while True:
        size = _size(layout.index)
        if size:
            problem = file_problem(layout.index) if may_open else None
            if problem is not None:
                raise corrupt_index(layout, problem)
            return False
        if not has_trees(layout):
            return True
        if not _size(layout.index):  # else another process has made it, and a realization, meanwhile
            raise refuse_lost_index(layout, "no such file" if size is None else "an empty file")


def _size(path: str) -> Optional[int]:
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except FileNotFoundError:
        return None


def has_trees(layout: StoreLayout) -> bool:
    """Tell whether there is any realization's folder."""
    try:
        with os.scandir(layout.storage) as derivations:
            return any(_has_tree(entry) for entry in derivations if _DERIVATION.fullmatch(entry.name))
    except FileNotFoundError:
        return False


def _has_tree(derivation: os.DirEntry[str]) -> bool:
    try:
        with os.scandir(derivation.path) as entries:
            return any(_REALIZATION.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False) for entry in entries)
    except OSError:
        return False


def refuse_lost_index(layout: StoreLayout, found: str) -> StoreCorrupt:
    """Return the error of a store whose index says nothing of the trees that are there."""
    return corrupt_index(layout, f"expected the index of the realizations in {layout.storage}, found {found}")


def corrupt_index(layout: StoreLayout, problem: str) -> StoreCorrupt:
    """Return the error of an index that cannot be used."""
    return StoreCorrupt(layout.index, problem, f"nothing was changed; make it anew from the trees: {store_command(layout, 'reindex')}")


def store_command(layout: StoreLayout, *words: str) -> str:
    """Return a command line of `pylightnix store` on this store, ready to be copied into a shell."""
    root, name = os.path.split(layout.storage)
    if name == STORAGE_NAME:
        where, state = f"pylightnix --store {shlex.quote(root)}", root
    else:
        where, state = f"PYLIGHTNIX_STORAGE={shlex.quote(layout.storage)} pylightnix", state_folder("", layout.storage)
    apart = [] if layout.state == state else ["--state", layout.state]
    return f"{where} store {shlex.join([*words, *apart])}"
