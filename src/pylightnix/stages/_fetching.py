"""`FetchRealizer`: puts a file from elsewhere, or what is packed in it, into an output folder.

Must not know how files are fetched or unpacked.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final, Optional

from pylightnix.build import Build, build_outpath, build_outpaths, build_wrapper, stored_config
from pylightnix.errors import FetchFailed, FetchUnavailable, InvalidConfig, PromiseException, StoreReadOnly, UnpackFailed, WrongChecksum
from pylightnix.fetch.checksums import ALGORITHMS, parse_checksum
from pylightnix.fetch.files import FetchedFile
from pylightnix.fetch.spec import FetchProgress, FetchSpec, Headers
from pylightnix.fetch.urls import file_name_of, local_path_of, shown_url
from pylightnix.sanitize import escaped
from pylightnix.storage import fstmpdir, store_layout
from pylightnix.types import Context, DRef, Path, RealizeArg, StorageSettings
from pylightnix.unpack_limits import UnpackLimits

__all__ = ["FetchRealizer", "FetchedRealizer", "LendFile"]

LendFile = Callable[[Build, Mapping[str, Any]], AbstractContextManager[FetchedFile]]
"""From a build and its config to the file, whose checksums are right."""

_TELL_SECONDS: Final = 5.0
_NOT_UNPACKED: Final = "the file has the checksum that was given; mode='as-is' takes it without unpacking"


@dataclass(frozen=True, slots=True)
class FetchRealizer:
    """Fetches the file of a config into the output folder, and unpacks it there if the config says so.

    It holds how to get at the file; what file that is stands in the config.
    """

    urls: tuple[str, ...] = field(default=(), repr=False)
    """Where to fetch it from, after the config's item ``url``."""
    path: Optional[str] = None
    """The local file to take before that."""
    filename: Optional[str] = None
    """Its name; None if the URL or the path has it."""
    headers: Headers = field(default_factory=Headers)
    max_bytes: Optional[int] = None
    insecure_redirects: bool = False
    total_seconds: Optional[float] = None
    is_fresh: bool = False
    checks_promises: bool = True
    unpacks: bool = True
    """Whether the config's item ``mode`` says if the file is unpacked; else it never is."""
    limits: Optional[UnpackLimits] = None
    """What it may unpack to; None for the usual."""

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: RealizeArg) -> list[Path]:
        return self.realize(S, dref, context, rarg, self._file)

    def realize(self, S: StorageSettings, dref: DRef, context: Context, rarg: RealizeArg, lend: LendFile) -> list[Path]:
        """Do what a call does, with a file that `lend` lends."""
        builds: list[Build] = []

        def fill(b: Build) -> None:
            builds.append(b)
            config = stored_config(b).val
            with lend(b, config) as file:
                self.put(file, build_outpath(b), config)

        try:
            return build_wrapper(fill)(S, dref, context, rarg)
        except PromiseException:
            if self.checks_promises:
                raise
            return build_outpaths(builds[0])

    @property
    def is_local(self) -> bool:
        """Whether it takes a local file: only who may open that can realize it."""
        return self.path is not None or any(local_path_of(url) is not None for url in self.urls)

    def spec_for(self, config: Mapping[str, Any]) -> FetchSpec:
        """Return what to fetch for a config of this realizer's.

        Raises:
            InvalidConfig: it does not say.
        """
        checksums = tuple(parse_checksum(config[name], name) for name in ALGORITHMS if config.get(name) is not None)
        own = [config["url"]] if isinstance(config.get("url"), str) else []
        urls = tuple(dict.fromkeys([*own, *self.urls]))
        if not checksums or not (urls or self.path):
            problem = "it does not say which file to fetch, or what checksum that has"
            raise InvalidConfig("config", problem, "register the stage with fetchurl(…), fetchurl2(…) or fetchlocal(…)")
        return FetchSpec(
            urls=urls,
            checksums=checksums,
            headers=self.headers,
            max_bytes=self.max_bytes,
            insecure_redirects=self.insecure_redirects,
            total_seconds=self.total_seconds,
            is_fresh=self.is_fresh,
        )

    def put(self, file: FetchedFile, folder: str, config: Mapping[str, Any]) -> None:
        """Put a fetched file into an output folder, as the config's ``mode`` has it."""
        url = str(config.get("url") or (self.urls[0] if self.urls else ""))
        name = self.filename or file_name_of(url)
        modes = str(config.get("mode", "")) if self.unpacks else ""
        if "unpack" in modes:
            from pylightnix.archives import opened_archive, unpack_file

            where = f"{name} (from {self.path or shown_url(url)})"
            with opened_archive(file.path) as archive:
                unpack_file(archive, folder, where=where, limits=self.limits, name=name, way_out=_NOT_UNPACKED)
            if "remove" in modes:
                return
            if os.path.lexists(os.path.join(folder, name)):
                problem = f"it unpacks to {name!r}, so that the archive itself cannot have this name beside it"
                raise UnpackFailed(where, None, problem, "give filename=… for the archive, or leave it out with mode='unpack,remove'")
        file.place(os.path.join(folder, name))

    @contextmanager
    def _file(self, b: Build, config: Mapping[str, Any]) -> Iterator[FetchedFile]:
        """Lend the file, from the first place in order that has it. All servers are one place."""
        failures: list[FetchFailed] = []
        with ExitStack() as stack:
            for place in self._places(self.spec_for(config)):
                try:
                    file = stack.enter_context(_local_or_fetched(b, place))
                except FetchFailed as error:
                    failures.append(error)
                else:
                    yield file
                    return
        raise _all_in_one(failures)

    def _places(self, spec: FetchSpec) -> list[tuple[Optional[str], FetchSpec]]:
        """Return where the file may be, in order: (path of a local file, None for the servers; what to get from there)."""
        servers = tuple(url for url in spec.urls if local_path_of(url) is None)
        paths = [*([self.path] if self.path is not None else []), *(local_path_of(url) for url in spec.urls)]
        return [(path, spec if path is not None else replace(spec, urls=servers)) for path in dict.fromkeys(paths)]


@contextmanager
def _local_or_fetched(b: Build, place: tuple[Optional[str], FetchSpec]) -> Iterator[FetchedFile]:
    path, spec = place
    if path is not None:
        from pylightnix.fetch.local import local_file

        with local_file(path, fstmpdir(b.S), spec.checksums, spec.max_bytes) as file:
            yield file
        return
    from pylightnix.fetch.blocking import fetched_file
    from pylightnix.fetch.environment import read_environment

    with fetched_file(_fetch_folder(b), spec, read_environment(os.environ), progress=_Teller()) as file:
        yield file


def _all_in_one(errors: Sequence[FetchFailed]) -> FetchFailed:
    """Return one error that tells of the failures at all places: that of a wrong file, or one which says whether later may be better."""
    for error in errors:
        if len(errors) == 1 or isinstance(error, WrongChecksum):
            return error
    kind = FetchUnavailable if any(isinstance(error, FetchUnavailable) for error in errors) else FetchFailed
    return kind([url for error in errors for url in error.urls], [failure for error in errors for failure in error.failures])


@dataclass(frozen=True, slots=True)
class FetchedRealizer:
    """Does what a `FetchRealizer` does with a file that was fetched for it by somebody else."""

    realizer: FetchRealizer
    file: FetchedFile

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: RealizeArg) -> list[Path]:
        return self.realizer.realize(S, dref, context, rarg, lambda b, config: nullcontext(self.file))


def _fetch_folder(b: Build) -> str:
    """Return where files are on their way: the store's folder for that, or one of this build alone where the store is another's."""
    from pylightnix.fetch.parts import make_fetch_folder

    folder = store_layout(b.S).fetch
    try:
        make_fetch_folder(folder)
    except StoreReadOnly:
        return os.path.join(fstmpdir(b.S), "fetch")
    return folder if os.access(folder, os.W_OK) else os.path.join(fstmpdir(b.S), "fetch")


class _Teller:
    """Writes to standard error how far a long fetch is."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _TELL_SECONDS

    def __call__(self, progress: FetchProgress) -> None:
        if time.monotonic() < self._next or sys.stderr is None:
            return
        self._next = time.monotonic() + _TELL_SECONDS
        mebi = 1 / (1 << 20)
        of = "" if progress.total is None else f" of {progress.total * mebi:.1f}"
        how = f"waiting {progress.waiting}" if progress.waiting else f"{progress.bytes_per_second * mebi:.1f} MiB/s"
        sys.stderr.write(escaped(f"fetching {progress.mirror}: {progress.bytes * mebi:.1f}{of} MiB, {how}\n"))
