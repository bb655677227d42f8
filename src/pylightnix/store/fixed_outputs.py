"""What a config fixes about the bytes of its outputs: the checksums of `mknode`, `source` and fetched files.

Every way into the store asks here: builds, imports, insertions, deliveries. So does whoever checks what is there. The
config alone says what is fixed; which realizer made the output does not count, for anybody may say that about himself.

What is *unpacked* from a fetched archive cannot be checked without the archive, so nothing is fixed about it.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Optional, Protocol, TypeAlias

from pylightnix.errors import InvalidOutput, InvalidSource, MissingDerivation
from pylightnix.store.derivations import read_config
from pylightnix.store.layout import METADATA_NAMES, StoreLayout
from pylightnix.system_errors import refusal
from pylightnix.types import DRef

__all__ = ["FolderReader", "TreeReader", "broken_promise", "check_output", "fixes_output"]

_MARKS: Final = re.compile(rb'"(?:__artifacts__|__tree__|sha1|sha256|sha512)"')
"""No config without one of these fixes anything: most builds are spared the parsing."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_ADVICE: Final = "bring the bytes that belong to this config; if its checksum is of something else, call that item another name"


class TreeReader(Protocol):
    """How an output is looked at. Names are those at its top, without metadata."""

    def names(self) -> list[str]:
        """Return the names, sorted."""

    def checksum(self, name: str, algorithm: str) -> Optional[str]:
        """Return the checksum of a plain file, in hexadecimal; None if that is no regular file, or an executable one."""

    def source_digest(self, name: str) -> str:
        """Return the source digest (see `pylightnix.sources`) of a file or folder."""


_Check: TypeAlias = Callable[[TreeReader], Optional[str]]


def broken_promise(config: Any, tree: TreeReader) -> Optional[str]:
    """Return in what an output is not what its config fixes; None if it is, or if nothing is fixed."""
    check = _check_of(config)
    return None if check is None else check(tree)


def fixes_output(config: Any) -> bool:
    """Tell whether every byte of an output follows from its config, so that anybody's output is as good as one's own."""
    check = _check_of(config)
    return check is not None and not isinstance(check, _Archive)


# --- what is fixed --------------------------------------------------------------------------------------


def _check_of(config: Any) -> Optional[_Check]:
    if not isinstance(config, Mapping):
        return None
    artifacts, digest, out = config.get("__artifacts__"), config.get("__tree__"), config.get("out")
    if isinstance(artifacts, Mapping) and all(_is_sha256(each) for each in artifacts.values()):
        return _Files({name: {"sha256": each} for name, each in artifacts.items()})
    if isinstance(digest, str) and _is_sha256(digest) and (name := _own_name(out)) is not None:
        return _Source(name, digest)
    return _fetched(config)


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _own_name(selfpath: object) -> Optional[str]:
    """Return the name at the top of an output that a self-path leads to."""
    from pylightnix.refs import isselfpath

    if isinstance(selfpath, list) and len(selfpath) == 2 and isselfpath(selfpath):
        return str(selfpath[1])
    return None


def _fetched(config: Mapping[str, Any]) -> Optional[_Check]:
    """Return what `fetchurl`, `fetchlocal` or `fetchurl2` fix, told apart by the items that only they have."""
    from pylightnix.errors import InvalidChecksum
    from pylightnix.fetch.checksums import ALGORITHMS, parse_checksum

    try:
        checksums = {name: parse_checksum(config[name], name).hex for name in ALGORITHMS if config.get(name) is not None}
    except InvalidChecksum:
        return None  # an item of that name, of somebody's own stage
    places = config.keys() & {"url", "path", "envname", "refpath"}
    if not checksums or any(str(name).startswith("__") for name in config):
        return None  # `__source__` is of an autostage, `__command__` of a command: their checksums are of what they please
    if not places and (name := _own_name(config.get("out"))) is not None:
        return _Files({name: checksums})
    if not isinstance(config.get("mode"), str) or not places or "refpath" in places:
        return None
    modes = {word.strip() for word in config["mode"].split(",")} - {""}
    if modes == {"unpack"}:
        return _Archive(checksums)
    name = _own_name(config.get("out_path"))
    return _Files({name: checksums}) if name is not None and modes <= {"as-is"} else None


@dataclass(frozen=True, slots=True)
class _Files:
    """The output is these files and nothing else."""

    checksums: Mapping[str, Mapping[str, str]]
    """File -> algorithm -> digest."""

    def __call__(self, tree: TreeReader) -> Optional[str]:
        if problem := _other_names(tree, set(self.checksums)):
            return problem
        for name, expected in sorted(self.checksums.items()):
            for algorithm, digest in expected.items():
                found = tree.checksum(name, algorithm)
                if found is None:
                    return f"{name!r} is not a plain file, and its config has the {algorithm} of one"
                if found != digest:
                    return f"{name!r} has the {algorithm} {found}, its config has {digest}"
        return None


@dataclass(frozen=True, slots=True)
class _Source:
    """The output is one file or folder with this source digest."""

    name: str
    digest: str

    def __call__(self, tree: TreeReader) -> Optional[str]:
        if problem := _other_names(tree, {self.name}):
            return problem
        found = tree.source_digest(self.name)
        return None if found == self.digest else f"{self.name!r} has the source digest {found}, its config has {self.digest}"


@dataclass(frozen=True, slots=True)
class _Archive:
    """One file at the top is the archive that the rest was unpacked from; its name is in no config."""

    checksums: Mapping[str, str]

    def __call__(self, tree: TreeReader) -> Optional[str]:
        for name in tree.names():
            if all(tree.checksum(name, algorithm) == digest for algorithm, digest in self.checksums.items()):
                return None
        algorithm, digest = next(iter(self.checksums.items()))
        return f"no file in it has the {algorithm} {digest}, which its config has of the archive"


def _other_names(tree: TreeReader, expected: set[str]) -> Optional[str]:
    found = set(tree.names())
    if missing := expected - found:
        return f"{min(missing)!r} is missing, and its config has the checksum of that"
    if more := found - expected:
        return f"{min(more)!r} is in it, and its config has the checksums of {len(expected)} other name{'s' * (len(expected) != 1)} only"
    return None


# --- trees on a disk --------------------------------------------------------------------------------------


class FolderReader:
    """Reads an output where it lies. It must not change meanwhile; no link is followed.

    Raises:
        OSError, InvalidSource: something cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def names(self) -> list[str]:
        return sorted(set(os.listdir(self._path)) - METADATA_NAMES)

    def checksum(self, name: str, algorithm: str) -> Optional[str]:
        path = os.path.join(self._path, name)
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            mode = os.fstat(fd).st_mode
            plain = stat.S_ISREG(mode) and not mode & stat.S_IXUSR
            return hashlib.file_digest(file, algorithm).hexdigest() if plain else None

    def source_digest(self, name: str) -> str:
        from pylightnix.sources.reading import stored_digest

        path = os.path.join(self._path, name)
        if os.path.islink(path):
            raise InvalidSource(path, "it is a link, and sources are files and folders", "bring the bytes that belong to this config")
        return stored_digest(path)


def _may_fix(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return _MARKS.search(file.read()) is not None
    except OSError:
        return True  # whoever parses it says what is wrong, in our words


def check_output(layout: StoreLayout, dref: DRef, path: str, config: Any = None) -> None:
    """Refuse a sealed output in the folder `path` that is not what the config of `dref` fixes; None for the config in the store.

    Raises:
        InvalidOutput: it is not. The error says which bytes were expected, and which are there.
        StoreCorrupt, MissingDerivation: the config cannot be had.
        StoreIOError: the output cannot be read.
    """
    try:
        if config is None:
            if not _may_fix(layout.config(dref)):
                return
            config = read_config(layout, dref).val
        problem = broken_promise(config, FolderReader(path))
    except MissingDerivation:
        raise
    except InvalidSource as error:
        problem = str(error)
    except OSError as error:
        raise refusal(error, f"checking an output of {dref}", path) from error
    if problem is not None:
        raise InvalidOutput(dref, path, problem, _ADVICE)
