"""Arrays, numbers and types of numpy, as plain values. Never imports numpy: who has an array has it loaded.

Must not know how values are hashed.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any, Final, Optional

from pylightnix._wrappers import instance_attributes

__all__ = ["array_fingerprint", "array_value", "is_array", "numpy_value"]


_BLOCK_BYTES: Final = 1 << 13


def _numpy() -> Any:
    return sys.modules.get("numpy")


def is_array(value: Any) -> bool:
    """Tell whether a value is an array, of whatever class, or a number of numpy's."""
    np = _numpy()
    return np is not None and hasattr(np, "generic") and issubclass(type(value), (np.ndarray, np.generic))


def numpy_value(value: Any) -> Optional[list[Any]]:
    """Return what a value of numpy's that is no array counts by, None if that is not known here."""
    np = _numpy()
    if np is None or not hasattr(np, "ufunc"):
        return None
    if issubclass(type(value), np.dtype):
        return ["dtype", _type(value)]
    if type(value) is np.vectorize:
        return ["vectorize", value.pyfunc, value.otypes, value.signature, value.excluded, value.cache]
    if type(value) is np.ufunc:
        import gc

        # That of `frompyfunc` shows its function to nobody else.
        functions = [held for held in gc.get_referents(value) if callable(held) and not isinstance(held, type)]
        return ["ufunc", value.__name__, value.nin, value.nout, functions]
    return None


def array_value(value: Any) -> list[Any]:
    """Return what an array counts by, beside its class and attributes."""
    np = _numpy()
    kind = value.dtype
    plain = np.asarray(value) if issubclass(type(value), np.generic) else value.view(np.ndarray)
    found = ["array", _type(kind), list(value.shape), bool(plain.flags.f_contiguous and not plain.flags.c_contiguous)]
    if kind.hasobject:
        return [*found, plain.ravel().tolist()]
    found.append(hashlib.sha256(_bytes(plain)).digest())
    if isinstance(value, np.ma.MaskedArray):
        mask = np.ma.getmask(value)
        found += [None if mask is np.ma.nomask else array_value(mask), array_value(np.asarray(value.fill_value)), bool(value.hardmask)]
    return found


def array_fingerprint(value: Any) -> tuple[Any, ...]:
    """Return what changes, within this process, if an array does."""
    np = _numpy()
    if value.dtype.hasobject:
        return (id(value), [id(item) for item in np.asarray(value).ravel().tolist()])
    plain = np.asarray(value)
    mask = np.ma.getmask(value) if isinstance(value, np.ma.MaskedArray) else False
    attributes = {name: id(held) for name, held in instance_attributes(value).items() if name != "_fill_value"}
    return (value.dtype, value.shape, _checksum(_bytes(plain)), attributes, _checksum(_bytes(np.asarray(mask))))


def _checksum(content: Any) -> int:
    """Return a number that changes if bytes do. It is asked for often: of many, all sums of rows and of columns must do."""
    import zlib

    np = _numpy()
    end = len(content) // _BLOCK_BYTES * _BLOCK_BYTES
    found = zlib.crc32(content[end:])
    if end:
        table = np.frombuffer(content, np.uint64, end // 8).reshape(-1, _BLOCK_BYTES // 8)
        found = zlib.crc32(table.sum(0).data, zlib.crc32(table.sum(1).data, found))
    return found


def _bytes(plain: Any) -> Any:
    """Return the items of an array in C order, as a buffer; of an array in that order without a copy."""
    np = _numpy()
    return np.ascontiguousarray(plain).reshape(-1).view(np.uint8).data if plain.size and plain.dtype.itemsize else b""


def _type(kind: Any) -> list[Any]:
    """Return what a type of elements counts by: its letters, fields, offsets, titles, alignment and order of bytes."""
    found: list[Any] = [kind.str, kind.itemsize, kind.type.__name__, bool(kind.isalignedstruct)]
    if kind.subdtype is not None:
        found += ["of", _type(kind.subdtype[0]), list(kind.subdtype[1])]
    if kind.names is not None:
        found += [[name, _type(kind.fields[name][0]), kind.fields[name][1], list(kind.fields[name][2:])] for name in kind.names]
    if kind.metadata:
        found += ["metadata", dict(kind.metadata)]
    return found
