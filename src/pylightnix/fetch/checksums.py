"""Checksums of files, in the spellings that people meet: hexadecimal, Nix's base 32, and SRI (``sha256-…=``).

Purely textual; must not know which file they are of.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Final

from pylightnix.errors import InvalidChecksum, kind_of

__all__ = ["ALGORITHMS", "Checksum", "parse_checksum"]

ALGORITHMS: Final = {"sha256": 32, "sha512": 64, "sha1": 20}
"""Each algorithm with the bytes of its digest, the one to take by default first."""
_NIX32: Final = "0123456789abcdfghijklmnpqrsvwxyz"
_HEX: Final = re.compile(r"[0-9a-fA-F]*")


@dataclass(frozen=True, slots=True, order=True)
class Checksum:
    """What a file's digest is, or must be. Made by `parse_checksum`, or of what hashlib says."""

    algorithm: str
    """One of `ALGORITHMS`."""
    hex: str
    """The digest, in lower-case hexadecimal."""

    @property
    def sri(self) -> str:
        """The spelling of web pages and of newer Nix."""
        return f"{self.algorithm}-{base64.b64encode(bytes.fromhex(self.hex)).decode()}"

    @property
    def nix32(self) -> str:
        """The spelling of older Nix."""
        value = int.from_bytes(bytes.fromhex(self.hex), "little")
        length = _nix32_length(self.algorithm)
        return "".join(_NIX32[value >> 5 * place & 31] for place in reversed(range(length)))


def _nix32_length(algorithm: str) -> int:
    return -(-ALGORITHMS[algorithm] * 8 // 5)


def parse_checksum(text: object, algorithm: str) -> Checksum:
    """Return the checksum that `text` spells, told apart by length and prefix.

    Args:
        text: hexadecimal, Nix's base 32, or SRI; the first two also after ``sha256:``.
        algorithm: one of `ALGORITHMS`. A text that names another is refused.

    Raises:
        InvalidChecksum: it is none of these, or not of this algorithm.
    """
    if not isinstance(text, str):
        raise InvalidChecksum(algorithm, text, f"it is {kind_of(text)}, not text")
    named = re.match(r"(sha\d+)[-:]", text)
    if named and named[1] != algorithm:
        raise InvalidChecksum(algorithm, text, f"it says that it is of {named[1]}")
    rest = text[named.end() :] if named else text
    if named and named[0].endswith("-"):
        digest = _from_base64(rest)
    else:
        digest = _from_digits(rest, algorithm)
    if digest is None or len(digest) != ALGORITHMS[algorithm]:
        raise InvalidChecksum(algorithm, text, _problem(rest, algorithm))
    return Checksum(algorithm, digest.hex())


def _from_base64(text: str) -> bytes | None:
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    # Spare bits at the end would let one digest be spelt in several ways.
    return digest if base64.b64encode(digest).decode() == text else None


def _from_digits(text: str, algorithm: str) -> bytes | None:
    size = ALGORITHMS[algorithm]
    if len(text) == 2 * size and _HEX.fullmatch(text):
        return bytes.fromhex(text)
    if len(text) == _nix32_length(algorithm) and set(text) <= set(_NIX32):
        value = 0
        for character in text:
            value = value << 5 | _NIX32.index(character)
        return value.to_bytes(size, "little") if value >> 8 * size == 0 else None
    return None


def _problem(rest: str, algorithm: str) -> str:
    size = ALGORITHMS[algorithm]
    if _HEX.fullmatch(rest) and len(rest) != 2 * size:
        return f"it has {len(rest)} hexadecimal digits, not {2 * size}"
    return f"it is neither {2 * size} hexadecimal digits, nor {_nix32_length(algorithm)} of Nix's base 32, nor {algorithm}-… in base 64"
