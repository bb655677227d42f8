"""Derivation folders: `<dhash>-<name>/config.json`, written once and certified by their own name.

A derivation needs no row in the index: its folder's name is the hash of what is in it. So it is
written without fsync; what a power cut leaves half-written is found out here and written again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Optional

from pylightnix.config import Config, canonical_bytes, cfgname, readable_text
from pylightnix.errors import MissingDerivation, PylightnixException, StoreCorrupt
from pylightnix.refs import assert_valid_name
from pylightnix.store.faults import reach
from pylightnix.store.layout import CONFIG_FILE, StoreLayout
from pylightnix.store.set_aside import discard
from pylightnix.system_errors import refusal
from pylightnix.types import DRef

if TYPE_CHECKING:
    from pylightnix.store.owner import Owner

__all__ = ["derivation_ref", "is_written", "read_canonical", "read_config", "write_derivation"]


def derivation_ref(canonical: bytes, name: str) -> DRef:
    """Return the reference of the derivation whose canonical config these bytes are."""
    assert_valid_name(name)
    return DRef(f"dref:{hashlib.sha256(canonical).hexdigest()[:32]}-{name}")


def _parse(data: bytes) -> tuple[bytes, Any]:
    """Return (canonical bytes, value) of a config file's text; ValueError if it is none."""
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return canonical_bytes(value), value


def is_written(layout: StoreLayout, dref: DRef, canonical: bytes, value: dict[str, Any]) -> bool:
    """Tell whether the derivation's folder is there and right. Arguments as of `write_derivation`."""
    return _is_intact(layout.config(dref), canonical, _file_of(value))


def _file_of(value: dict[str, Any]) -> bytes:
    return readable_text(value).encode("utf-8")


def _is_intact(path: str, canonical: bytes, expected: bytes) -> bool:
    """Tell whether a file holds a config: as it would be written, or the same value spelt in another way."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            data = os.read(fd, len(expected) + 1)
            if data == expected:
                return True
            while more := os.read(fd, 1 << 16):
                data += more
        finally:
            os.close(fd)
        return _parse(data)[0] == canonical
    except (OSError, ValueError):
        return False


def write_derivation(layout: StoreLayout, dref: DRef, canonical: bytes, value: dict[str, Any], owner: Optional[Owner] = None) -> bool:
    """Make sure that the derivation's folder is there and right; tell whether anything was written.

    Args:
        layout: the store.
        dref: what `derivation_ref` gives for `canonical`.
        canonical: the canonical config.
        value: the same, parsed.
        owner: whose folder to write in. For those who hold the store's lock already; without it the lock
            is taken for this write.

    Raises:
        InvalidStorage: the store was never made.
        StoreReadOnly, StoreForeign, StoreFull, StoreBusy, StoreIOError: it cannot be written.
    """
    folder, data = layout.derivation(dref), _file_of(value)
    if _is_intact(f"{folder}/{CONFIG_FILE}", canonical, data):
        return False
    from pylightnix.store.access import translated_errors, write_access

    access = nullcontext(owner) if owner is not None else write_access(layout)
    with access as writer, translated_errors(layout, f"writing the derivation {dref}"):
        draft = writer.make_folder()
        try:
            _write_draft(draft, folder, data)
        except BaseException:
            discard(layout, draft)
            raise
        reach("derivation_written")
    return True


def _write_draft(draft: str, folder: str, data: bytes) -> None:
    """Write `config.json` into the draft, and rename that to `folder`, or the file into `folder` if that is there."""
    _write_file(f"{draft}/{CONFIG_FILE}", data)
    os.chmod(draft, 0o755)
    try:
        os.rename(draft, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # The folder is there, with realizations perhaps, and its config.json is bad or missing.
        os.rename(f"{draft}/{CONFIG_FILE}", f"{folder}/{CONFIG_FILE}")
        os.rmdir(draft)


def _write_file(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        os.fchmod(fd, 0o444)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def read_canonical(layout: StoreLayout, dref: DRef | str) -> bytes:
    """Return the canonical config of a derivation in the store, checked against its name."""
    return canonical_bytes(read_config(layout, dref).val)


def read_config(layout: StoreLayout, dref: DRef | str) -> Config:
    """Read a derivation's config from the store.

    Raises:
        MissingDerivation: the store does not have it.
        StoreCorrupt: its `config.json` is not what the folder's name says.
    """
    path = layout.config(dref)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise MissingDerivation(str(dref), path) from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise StoreCorrupt(path, f"{error.strerror}, where a file is expected", "remove it and instantiate the stage again") from error
    except OSError as error:
        raise refusal(error, "reading a config", path) from error
    advice = "instantiate its stage again, which rewrites it"
    try:
        canonical, value = _parse(data)
    except ValueError as error:
        raise StoreCorrupt(path, f"not a config ({error})", advice) from error
    config = Config.__new__(Config)
    config.val = value
    try:
        found = derivation_ref(canonical, cfgname(config))
    except PylightnixException as error:
        raise StoreCorrupt(path, f"not a config ({error})", advice) from error
    if found != dref:
        raise StoreCorrupt(path, f"its content has the reference {found}", advice)
    return config
