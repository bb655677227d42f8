"""py7zr in small steps: it reads little at a time, and makes little of it at a time.

By itself it reads a megabyte for each file, makes up to 128 MB of it at once, keeps what was not needed, and keeps the decoders of all
streams to the end. So it is given a file whose reads are short, and decoders that pass on smaller orders; both by their looks only,
as py7zr has no settings for that. Must not know what an archive holds.
"""

from __future__ import annotations

import io
from typing import IO, Any, Final, Optional

__all__ = ["BLOCK_BYTES", "SIP_BYTES", "Sips", "Stepwise"]

SIP_BYTES: Final = 1 << 10
"""How much is read at a time for coders that expand at once all that they get: zstd makes 32 MiB of it at most."""
BLOCK_BYTES: Final = 1 << 16
"""How much for the others."""
_STEP_BYTES: Final = 1 << 20
"""How much these make of it."""


class Sips(io.BufferedIOBase):
    """An archive of which each read gives little, but for its header, which py7zr wants whole, once.

    Attributes:
        name: the archive's own.
        size: how much at most.
        is_dry: whether there is nothing to read for the moment.
    """

    def __init__(self, file: IO[bytes], name: str, header_at: int) -> None:
        self.name, self.size, self.is_dry = name, SIP_BYTES, False
        self._file, self._header_at = file, header_at

    def read(self, size: Optional[int] = -1, /) -> bytes:
        if self._file.tell() == self._header_at:
            self._header_at = -1
            return self._file.read(-1 if size is None else size)
        if self.is_dry:
            return b""
        return self._file.read(self.size if size is None or size < 0 else min(size, self.size))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class Stepwise:
    """Stands for the decoder of one stream, of which py7zr asks as much as a file is long, and reads for it each time."""

    def __init__(self, decoder: Any, sips: Sips) -> None:
        self._decoder, self._sips = decoder, sips

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def decompress(self, fp: IO[bytes], max_length: int = -1) -> bytes:
        size = _STEP_BYTES if max_length < 0 else min(max_length, _STEP_BYTES)
        self._sips.is_dry = not _is_hungry(self._decoder.chain[0])
        try:
            found: bytes = self._decoder.decompress(fp, size)
        finally:
            self._sips.is_dry = False
        # A decoder that gave all that it was asked for cannot know that it has no more.
        return found or bytes(self._decoder.decompress(fp, size))


def _is_hungry(coder: Any) -> bool:
    """Tell whether a coder of py7zr, or the one of a library that it wraps, can do nothing without more input."""
    inner = next((found for name in ("_decompressor", "decoder") if (found := getattr(coder, name, None)) is not None), coder)
    return bool(getattr(inner, "needs_input", True))
