"""`unpack`: a stage that unpacks an archive, of this machine or of another realization.

Must not know how archives are read, nor where they come from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, Final, Optional

from pylightnix.build import Build, build_config, build_outpath, build_path, build_wrapper
from pylightnix.config import mkconfig
from pylightnix.errors import InvalidConfig, Misuse, UnpackFailed
from pylightnix.fetch.checksums import parse_checksum
from pylightnix.matchers import match_only
from pylightnix.refs import isrefpath, isselfpath
from pylightnix.registry import Registry, mkdrv
from pylightnix.stages.node import checked_name
from pylightnix.types import Context, DRef, Path, RealizeArg, RefPath, StorageSettings
from pylightnix.unpack_limits import UnpackLimits, checked_limits
from pylightnix.workfolder import absolute

__all__ = ["UnpackRealizer", "unpack", "unpack_into"]

_ALGORITHMS: Final = {"sha1", "sha256"}


# --- building -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UnpackRealizer:
    """Unpacks the archive that the config's items ``path`` or ``refpath`` name. Good for every such derivation."""

    limits: Optional[UnpackLimits] = None
    """What it may unpack to; None for the usual."""

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: RealizeArg) -> list[Path]:
        return build_wrapper(lambda b: unpack_into(b, self.limits))(S, dref, context, rarg)


def unpack_into(b: Build, limits: Optional[UnpackLimits] = None) -> None:
    """Unpack the archive of a build's config into its output folder.

    Raises:
        UnpackFailed: it is damaged, has another checksum, or holds what must not be unpacked.
        ArchiveIOError: it cannot be read, or the folder not be written.
    """
    from pylightnix.archives import opened_archive, unpack_file

    config = build_config(b).val
    path = _where(b, config)
    with opened_archive(path) as file:
        _check(file, path, config)
        unpack_file(file, build_outpath(b), where=path, limits=limits)


def _where(b: Build, config: dict[str, Any]) -> str:
    path, refpath = config.get("path"), config.get("refpath")
    if isinstance(path, str) and refpath is None:
        return path
    if path is None and isrefpath(refpath) and isinstance(refpath, list):
        return build_path(b, refpath)
    raise InvalidConfig("config", "it does not say by 'path' or 'refpath' which archive to unpack", "register the stage with unpack(…)")


def _check(file: BufferedReader, path: str, config: dict[str, Any]) -> None:
    """Compare the checksums of a file with those that the config has, and leave it at its start."""
    import hashlib

    for algorithm in sorted(_ALGORITHMS & config.keys()):
        found = hashlib.file_digest(file, algorithm).hexdigest()
        file.seek(0)
        if found != config[algorithm]:
            problem = f"expected the {algorithm} {config[algorithm]}, found {found}"
            raise UnpackFailed(
                path, None, problem, "fetch the archive again, or give unpack the checksum of this one if it is to be trusted"
            )


# --- declaring ----------------------------------------------------------------------------------------


def unpack(
    path: Optional[str | os.PathLike[str]] = None,
    refpath: Optional[RefPath] = None,
    name: Optional[str] = None,
    sha256: Optional[str] = None,
    sha1: Optional[str] = None,
    aunpack_args: Sequence[str] = [],  # never changed, and part of the published signature
    r: Optional[Registry] = None,
    *,
    limits: UnpackLimits | Mapping[str, int] | None = None,
    **kwargs: Any,
) -> DRef:
    """Register a derivation that is realized by unpacking an archive.

    Taken are tar, plain or compressed with gzip, bzip2, xz or zstd; zip; 7z, if the package py7zr is installed
    (``pip install 'pylightnix[archives]'``); and single files compressed with one of these. What the archive is is told
    by its bytes.

    If all of it is below one name at its top, that stands in the output folder afterwards; otherwise it stands in a
    folder named after the archive, ``data`` for ``data.tar.gz``. A compressed file stands there under its name without
    the suffix. Executable bits and symbolic links are kept; owners, times and other modes are not. As with tar, absolute names lose
    their slash, and of several entries of one name the last one counts.

    Args:
        path: an archive on this machine. It is read when it is built, by the user who asks for that. Without a
            checksum nobody notices when it changes; `source` and `refpath` do.
        refpath: an archive in another realization, ``[dref, 'file']``. Exactly one of the two is given.
        name: the name of the derivation, by default ``unpack``.
        sha256: what the archive's SHA-256 must be, in hexadecimal, Nix's base 32 or SRI.
        sha1: what its SHA-1 must be. With both, both are compared.
        aunpack_args: ignored, with a warning: no external program is called. They stay in the config.
        r: the registry, else the current one.
        limits: how large the archive may become, where the usual `UnpackLimits` refuse an honest one: ``UnpackLimits(ratio=1000)``, or a
            dict of some of its fields. They are no part of the config, for they do not change what comes out.
        kwargs: more config items, self-paths that are to be fulfilled among them.

    Raises:
        Misuse: something is not of these shapes.

    Building raises a `BuildError` that holds an `UnpackFailed` if the archive is damaged, has another checksum, is too large, or
    holds what must not be made: names with ``..``, links that lead out, devices. It names the entry.
    """
    if (path is None) == (refpath is None):
        raise Misuse(f"unpack expects one of path and refpath, found {'none' if path is None else 'both'}")
    if isinstance(aunpack_args, str) or not isinstance(aunpack_args, Sequence):
        raise Misuse(f"unpack expects for aunpack_args a list, found {aunpack_args!r:.100}; it is ignored, leave it out")
    if aunpack_args:
        import warnings

        problem = f"unpack ignores aunpack_args={list(aunpack_args)!r:.100}: it calls no external program; leave them out"
        warnings.warn(problem, UserWarning, stacklevel=2)
    items = {
        "name": checked_name("unpack", name, "unpack"),
        "path": None if path is None else _absolute(path),
        "refpath": None if refpath is None else _refpath(refpath),
        "aunpack_args": list(aunpack_args) or None,
        "sha256": None if sha256 is None else parse_checksum(sha256, "sha256").hex,
        "sha1": None if sha1 is None else parse_checksum(sha1, "sha1").hex,
    }
    config = {**{key: item for key, item in items.items() if item is not None}, **kwargs}
    return mkdrv(mkconfig(config), match_only(), UnpackRealizer(checked_limits(limits, "unpack")), r)


def _absolute(path: object) -> str:
    if not isinstance(path, (str, os.PathLike)):
        raise Misuse(f"unpack: path: expected the path of an archive, found {path!r:.100}")
    return absolute(os.fsdecode(path))


def _refpath(refpath: object) -> list[str]:
    found = list(refpath) if isinstance(refpath, (list, tuple)) else refpath
    if not isrefpath(found) or isselfpath(found) or not isinstance(found, list):
        raise Misuse(f"unpack: refpath: expected the file of another derivation, [dref, 'file'], found {refpath!r:.100}")
    return [str(part) for part in found]
