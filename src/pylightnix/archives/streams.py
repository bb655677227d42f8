"""The bytes of an archive as they come out of its compression: gzip, bzip2, xz, zstd or none.

Streamed, in bounded memory whatever the archive declares, and to the end: a stream that stops early is an error. What follows behind
is passed over where the programs of that compression do so: behind gzip and bzip2, not behind xz and zstd. Raw LZMA is there for what
lies in zip archives. Must not know what the bytes are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Final, Protocol

from pylightnix.archives.limits import Unpacking, raise_limit

__all__ = ["COMPRESSIONS", "ByteStream", "compression_of", "opened_lzma", "opened_stream"]

_BLOCK_BYTES: Final = 1 << 16
_AT_ONCE_BYTES: Final = 1 << 12
"""One call of zstd and Deflate64 expands all that it is given, by up to 32,000 times."""
_ZSTD_HEADER_BYTES: Final = 18
"""What the header of a frame has at most."""
_OUTPUT_BYTES: Final = 1 << 20
_XZ_MEMORY_SPARE_BYTES: Final = 1 << 20
"""What decoding takes besides the dictionary."""
_FORGIVING: Final = frozenset({"gzip", "bzip2"})
"""Whose programs say "trailing garbage ignored"."""

COMPRESSIONS: Final[dict[str, bytes]] = {"gzip": b"\x1f\x8b\x08", "bzip2": b"BZh", "xz": b"\xfd7zXZ\0", "zstd": b"\x28\xb5\x2f\xfd"}
"""How each begins."""
_SKIPPABLE: Final = tuple(bytes((low,)) + b"\x2a\x4d\x18" for low in range(0x50, 0x60))
"""How frames begin that only zstd's own programs look into: of pzstd, of the seekable format."""


def _begins(begin: bytes, kind: str) -> bool:
    return begin.startswith((COMPRESSIONS[kind], *_SKIPPABLE) if kind == "zstd" else COMPRESSIONS[kind])


def compression_of(begin: bytes) -> str | None:
    """Return the compression of something that begins with these bytes, or None."""
    return next((kind for kind in COMPRESSIONS if _begins(begin, kind)), None)


class _Decoder(Protocol):
    """Decompresses one stream."""

    @property
    def hungry(self) -> bool:
        """Whether it can do nothing without more input."""

    @property
    def ended(self) -> bool:
        """Whether the stream is at its end."""

    @property
    def rest(self) -> bytes:
        """What was given to it and lies behind that end."""

    def feed(self, block: bytes) -> bytes: ...


class _Gzip:
    def __init__(self, unpacking: Unpacking) -> None:
        import zlib

        self._zlib = zlib.decompressobj(wbits=31)  # 31: with the header and the checksum of gzip
        self._left = b""
        self._full = False

    @property
    def hungry(self) -> bool:
        return not (self._left or self._full)

    @property
    def ended(self) -> bool:
        return self._zlib.eof

    @property
    def rest(self) -> bytes:
        return self._zlib.unused_data

    def feed(self, block: bytes) -> bytes:
        found = self._zlib.decompress(self._left + block, _OUTPUT_BYTES)
        self._left, self._full = self._zlib.unconsumed_tail, len(found) == _OUTPUT_BYTES
        return found


class _Standard(Protocol):
    """How decompressors of the standard library look."""

    @property
    def needs_input(self) -> bool: ...
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _OfStandard:
    def __init__(self, decompressor: _Standard) -> None:
        self._decompressor = decompressor

    @property
    def hungry(self) -> bool:
        return self._decompressor.needs_input

    @property
    def ended(self) -> bool:
        return self._decompressor.eof

    @property
    def rest(self) -> bytes:
        return self._decompressor.unused_data

    def feed(self, block: bytes) -> bytes:
        return self._decompressor.decompress(block, _OUTPUT_BYTES)


class _Zstd:
    hungry = True

    def __init__(self, unpacking: Unpacking) -> None:
        import zstandard

        self._parameters = zstandard.get_frame_parameters
        self._unpacking = unpacking
        self._begin = b""
        """What came of the frame's header."""
        # The limit is checked below, by name; here it must be within what the library takes.
        window = min(max(unpacking.limits.zstd_window_bytes, 1 << 10), 1 << 31)
        self._zstd = zstandard.ZstdDecompressor(max_window_size=window).decompressobj()

    @property
    def ended(self) -> bool:
        return bool(self._zstd.eof)

    @property
    def rest(self) -> bytes:
        return self._zstd.unused_data

    def feed(self, block: bytes) -> bytes:
        if len(self._begin) < _ZSTD_HEADER_BYTES:
            self._begin += block[: _ZSTD_HEADER_BYTES - len(self._begin)]
            self._check_window()
        return self._zstd.decompress(block)

    def _check_window(self) -> None:
        try:
            window = self._parameters(self._begin).window_size
        except (ValueError, self._error()):
            return  # there is too little of it yet, or it is damaged
        self._unpacking.expect_memory(window, "zstd_window_bytes")

    @staticmethod
    def _error() -> type[Exception]:
        import zstandard

        return zstandard.ZstdError


class _Deflate64:
    """Of zip archives that Windows makes of large files, by the package inflate64, which comes with py7zr."""

    hungry = True
    rest = b""

    def __init__(self, unpacking: Unpacking) -> None:
        try:
            import inflate64
        except ImportError as error:
            advice = "install it with: pip install 'pylightnix[archives]'"
            raise unpacking.failed("it is compressed with Deflate64, for which the package inflate64 is needed", advice) from error
        self._inflater = inflate64.Inflater()

    @property
    def ended(self) -> bool:
        return bool(self._inflater.eof)

    def feed(self, block: bytes) -> bytes:
        return bytes(self._inflater.inflate(block))


def _bzip2(unpacking: Unpacking) -> _Decoder:
    import bz2

    return _OfStandard(bz2.BZ2Decompressor())


def _xz(unpacking: Unpacking) -> _Decoder:
    import lzma

    return _OfStandard(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=unpacking.limits.memory_bytes + _XZ_MEMORY_SPARE_BYTES))


_DECODERS: Final[dict[str, Callable[[Unpacking], _Decoder]]] = {
    "gzip": _Gzip,
    "bzip2": _bzip2,
    "xz": _xz,
    "zstd": _Zstd,
    "deflate64": _Deflate64,
}


def _damages() -> tuple[type[Exception], ...]:
    """Return what decoders raise on bytes that are not theirs; that of bzip2 raises `OSError`."""
    import lzma
    import zlib

    import zstandard

    return (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError, OSError, ValueError)


class ByteStream:
    """Bytes in their order, each once. Errors of the file that they lie in are raised as they are."""

    def __init__(self, read: Callable[[int], bytes], unpacking: Unpacking) -> None:
        self._read = read
        self._unpacking = unpacking
        self._ahead = b""
        self._at = 0
        """How much of what lies ahead was read. It is not cut off: one call of a decoder may give megabytes, and headers are small."""

    def read(self, size: int) -> bytes:
        """Return some bytes, `size` at most, and none at the end."""
        if self._at == len(self._ahead):
            self._ahead, self._at = self._read(size), 0
        found = self._ahead[self._at : self._at + size]
        self._at += len(found)
        return found

    def peek(self, size: int) -> bytes:
        """Return the next bytes, fewer only at the end, and leave them to be read."""
        self._ahead, self._at = self._ahead[self._at :], 0
        while len(self._ahead) < size and (more := self._read(_BLOCK_BYTES)):
            self._ahead += more
        return self._ahead[:size]

    def take(self, size: int) -> bytes:
        """Return exactly so many bytes; raises `UnpackFailed` if there are fewer. For small pieces."""
        pieces = []
        while size:
            piece = self.read(size)
            if not piece:
                raise self._unpacking.failed("the archive ends early, in the middle of it: it was cut short")
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def drain(self) -> None:
        """Read what is left, so that its checksums are compared."""
        while self.read(_OUTPUT_BYTES):
            pass


def opened_stream(file: IO[bytes], kind: str | None, unpacking: Unpacking) -> ByteStream:
    """Return the bytes of a file, decompressed from `kind` unless that is None. They are counted."""
    if kind is None:

        def counted(size: int) -> bytes:
            found = file.read(size)
            unpacking.count_bytes(len(found))
            return found

        return ByteStream(counted, unpacking)
    return ByteStream(_Inflating(file, kind, _DECODERS[kind](unpacking), unpacking).read, unpacking)


def opened_lzma(file: IO[bytes], properties: bytes, unpacking: Unpacking) -> ByteStream:
    """Return the bytes of a file of raw LZMA, with its five bytes of properties. They are counted.

    Such a stream need not say where it ends: ask for no more than there is.
    """
    import lzma

    if len(properties) != 5 or properties[0] >= 9 * 5 * 5:
        raise unpacking.failed("its lzma data are damaged (the properties are none)")
    dict_bytes = int.from_bytes(properties[1:], "little")
    unpacking.expect_memory(dict_bytes, "memory_bytes")
    lp_pb, lc = divmod(properties[0], 9)
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": max(dict_bytes, 4096), "lc": lc, "lp": lp_pb % 5, "pb": lp_pb // 5}]
    try:
        decoder = _OfStandard(lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters))
    except (lzma.LZMAError, ValueError) as error:
        raise unpacking.failed(f"its lzma data are damaged ({error})") from error
    return ByteStream(_Inflating(file, "lzma", decoder, unpacking).read, unpacking)


class _Inflating:
    """Decompresses the streams in a file, one behind the other, as compressors make of several files."""

    def __init__(self, file: IO[bytes], kind: str, decoder: _Decoder, unpacking: Unpacking) -> None:
        self._file, self._kind, self._unpacking = file, kind, unpacking
        self._raw = b""
        self._decoder: _Decoder | None = decoder
        self._damages = _damages()
        self._block_bytes = _AT_ONCE_BYTES if kind in ("zstd", "deflate64") else _BLOCK_BYTES

    def read(self, size: int) -> bytes:
        """Return some bytes, as many as come at once, and none at the end."""
        while self._decoder is not None:
            if self._decoder.ended:
                self._raw = self._decoder.rest + self._raw
                self._decoder = self._next()
                continue
            found = self._feed(self._decoder)
            if found:
                self._unpacking.count_bytes(len(found))
                return found
        return b""

    def _feed(self, decoder: _Decoder) -> bytes:
        block = b""
        if decoder.hungry:
            block = self._raw[: self._block_bytes] or self._file.read(self._block_bytes)
            self._raw = self._raw[self._block_bytes :]
            if not block:
                raise self._unpacking.failed(f"its {self._kind} data end early: it was cut short")
        try:
            return decoder.feed(block)
        except self._damages as error:
            if self._kind == "xz" and "memory" in str(error).lower():
                allowed = self._unpacking.limits.memory_bytes
                problem = f"its compression looks back more than the {allowed} bytes that are allowed"
                raise self._unpacking.failed(problem, raise_limit("memory_bytes", 4 * allowed)) from error
            raise self._unpacking.failed(f"its {self._kind} data are damaged ({error})") from error

    def _next(self) -> _Decoder | None:
        """Return a decoder of the next stream, None behind the last. Zeros may stand between them, as on tapes."""
        if self._kind not in COMPRESSIONS:
            return None
        self._raw = self._raw.lstrip(b"\0")
        while len(self._raw) < len(COMPRESSIONS[self._kind]) and (more := self._file.read(_BLOCK_BYTES)):
            self._raw = (self._raw + more).lstrip(b"\0")
        if not self._raw:
            return None
        if not _begins(self._raw, self._kind):
            if self._kind in _FORGIVING:
                return None
            raise self._unpacking.failed(f"something that is not {self._kind} follows its {self._kind} data")
        return _DECODERS[self._kind](self._unpacking)
