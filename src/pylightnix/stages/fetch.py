"""`fetchurl`, `fetchurl2` and `fetchlocal`: stages whose realization is a file from elsewhere, or what is packed in it.

What identifies the file stands in the config; how to get at it, and what may be secret in that, in the realizer. Must not know
how files are fetched or unpacked.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, Optional

from pylightnix.build import Build, build_outpath, build_outpaths, build_wrapper, stored_config
from pylightnix.config import mkconfig
from pylightnix.errors import InvalidConfig, InvalidURL, Misuse, PromiseException, StoreReadOnly
from pylightnix.fetch.checksums import ALGORITHMS, parse_checksum
from pylightnix.fetch.files import FetchedFile
from pylightnix.fetch.spec import FetchProgress, FetchSpec, Headers, checked_headers
from pylightnix.fetch.urls import check_url, file_name_of, local_path_of, shown_text
from pylightnix.matchers import match_only
from pylightnix.refs import selfref
from pylightnix.registry import Registry, mkdrv
from pylightnix.stages.node import problem_with_entry
from pylightnix.storage import fstmpdir, store_layout
from pylightnix.types import Context, DRef, Path, RealizeArg, StorageSettings

__all__ = ["FetchRealizer", "FetchedRealizer", "LendFile", "fetchlocal", "fetchurl", "fetchurl2"]

LendFile = Callable[[Build, Mapping[str, Any]], AbstractContextManager[FetchedFile]]
"""From a build and its config to the file, whose checksums are right."""

_TELL_SECONDS: Final = 5.0


# --- building -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FetchRealizer:
    """Fetches the file of a config into the output folder, and unpacks it there if the config says so.

    It holds how to get at the file; what file that is stands in the config.
    """

    urls: tuple[str, ...] = field(default=(), repr=False)
    """Where to fetch it from, after the config's item ``url``."""
    path: Optional[str] = None
    """The local file to take in place of that."""
    filename: Optional[str] = None
    """Its name; None if the URL or the path has it."""
    headers: Headers = field(default_factory=Headers)
    max_bytes: Optional[int] = None
    insecure_redirects: bool = False
    total_seconds: Optional[float] = None
    is_fresh: bool = False
    checks_promises: bool = True

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
        name = self.filename or file_name_of(self.urls[0] if self.urls else config.get("url", ""))
        modes = str(config.get("mode", ""))
        unpacked = "unpack" in modes
        if not (unpacked and "remove" in modes):
            file.place(os.path.join(folder, name))
        if unpacked:
            from pylightnix.archives import unpack_archive

            unpack_archive(file.path, folder, name=name)

    @contextmanager
    def _file(self, b: Build, config: Mapping[str, Any]) -> Iterator[FetchedFile]:
        from pylightnix.fetch.local import local_file

        spec = self.spec_for(config)
        local = self.path or next((found for url in spec.urls if (found := local_path_of(url)) is not None), None)
        if local is not None:
            with local_file(local, fstmpdir(b.S), spec.checksums, spec.max_bytes) as file:
                yield file
            return
        from pylightnix.fetch.blocking import fetched_file
        from pylightnix.fetch.environment import read_environment

        environment = read_environment(os.environ)
        with fetched_file(_fetch_folder(b), spec, environment, progress=_Teller()) as file:
            yield file


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
        sys.stderr.write(f"fetching {progress.mirror}: {progress.bytes * mebi:.1f}{of} MiB, {how}\n")


# --- declaring ----------------------------------------------------------------------------------------


def fetchurl(
    url: str,
    sha256: Optional[str] = None,
    sha1: Optional[str] = None,
    mode: str = "unpack,remove",
    name: Optional[str] = None,
    filename: Optional[str] = None,
    force_download: bool = False,
    check_promises: bool = True,
    r: Optional[Registry] = None,
    *,
    sha512: Optional[str] = None,
    mirrors: Sequence[str] = (),
    headers: Mapping[str, str] = {},  # never changed
    max_bytes: Optional[int] = None,
    insecure_redirects: bool = False,
    total_seconds: Optional[float] = None,
    **kwargs: Any,
) -> DRef:
    """Register a derivation that is realized by fetching a file and, unless `mode` says otherwise, unpacking it.

    Its config has the URL, the checksum and `mode`, and ``out_path``, the file, where it is not unpacked. A transfer that
    breaks off goes on where it stopped; what may help later is tried again. Proxies, ``.netrc`` and certificates are those
    of the environment at the time of the build. What unpacking takes, and what it makes, is as of `unpack`.

    Args:
        url: where it is: ``https://``, ``http://`` or ``file://``.
        sha256: its SHA-256, in hexadecimal, Nix's base 32 or SRI. Exactly one checksum is given.
        sha1: its SHA-1.
        mode: ``unpack,remove`` unpacks it and leaves the archive out, ``unpack`` leaves both, anything else the file alone.
        name: the name of the derivation, by default ``fetchurl``.
        filename: the file's name, by default the last part of the URL's path.
        force_download: use nothing that was fetched before.
        check_promises: whether the self-paths in `kwargs` must be fulfilled.
        r: the registry, else the current one.
        sha512: its SHA-512.
        mirrors: more URLs of the file, asked in order where `url` does not have it. No part of the config; nor is what follows.
        headers: sent to the servers of `url` and `mirrors`, and to no other. Their values are shown nowhere.
        max_bytes: refuse a larger file.
        insecure_redirects: follow redirects from https to http.
        total_seconds: give up after this time.
        kwargs: more config items.

    Raises:
        Misuse: something is not of these shapes; `InvalidURL` and `InvalidChecksum` among them.

    Building raises a `BuildError` that holds a `WrongChecksum`, a `FetchUnavailable`, another `FetchFailed`, or an `UnpackFailed`.
    """
    checksums = _checksums("fetchurl", sha256=sha256, sha1=sha1, sha512=sha512)
    if len(checksums) != 1:
        raise Misuse(f"fetchurl expects exactly one of sha256, sha512 and sha1, found {_named(checksums)}")
    for each in (url, *_list("fetchurl", mirrors)):
        check_url(each)
    file = _file_name("fetchurl", filename, file_name_of(url))
    config = {**kwargs, "name": "fetchurl" if name is None else name, "url": url, **checksums, "mode": mode}
    realizer = FetchRealizer(
        urls=tuple(mirrors),
        path=local_path_of(check_url(url)),
        filename=file,
        headers=checked_headers(headers, "fetchurl"),
        max_bytes=_limit("fetchurl", max_bytes),
        insecure_redirects=insecure_redirects,
        total_seconds=total_seconds,
        is_fresh=force_download,
        checks_promises=check_promises,
    )
    return mkdrv(mkconfig(_with_out_path(config, mode, file)), match_only(), realizer, r)


def fetchurl2(
    url: str,
    sha256: Optional[str] = None,
    sha1: Optional[str] = None,
    name: Optional[str] = None,
    filename: Optional[str] = None,
    force_download: bool = False,
    r: Optional[Registry] = None,
    *,
    sha512: Optional[str] = None,
    mirrors: Sequence[str] = (),
    headers: Mapping[str, str] = {},  # never changed
    max_bytes: Optional[int] = None,
    insecure_redirects: bool = False,
    total_seconds: Optional[float] = None,
    **kwargs: Any,
) -> DRef:
    """Register a derivation that is realized by fetching a file, whatever its URL is.

    The URL is no part of the config: where a file comes from does not change what it is. The config has the checksums
    and ``out``, the file.

    Args:
        url: where it is: ``https://``, ``http://``, ``file://``, or the path of a local file.
        sha256: its SHA-256. All checksums that are given are compared. Without any, a local file is hashed now.
        sha1: its SHA-1.
        name: the name of the derivation, by default ``fetchurl2``.
        filename: the file's name, by default the last part of the URL's path.
        force_download: as of `fetchurl`; so all others.
        r: the registry, else the current one.
        sha512: its SHA-512.
        mirrors: see there.
        headers: see there.
        max_bytes: see there.
        insecure_redirects: see there.
        total_seconds: see there.
        kwargs: more config items, which may replace those above.

    Raises:
        Misuse: as of `fetchurl`.
    """
    checksums = _checksums("fetchurl2", sha256=sha256, sha1=sha1, sha512=sha512)
    local = _local_path("fetchurl2", url)
    if not checksums:
        if local is None or not os.path.isfile(local):
            raise Misuse("fetchurl2 expects a checksum, sha256 for example; only what is a local file can do without. Found none")
        from pylightnix.fetch.local import local_checksum

        checksums = {"sha256": local_checksum(local).hex}
    for each in (*(() if local is not None else (url,)), *_list("fetchurl2", mirrors)):
        check_url(each)
    file = _file_name("fetchurl2", filename, os.path.basename(local) if local is not None else file_name_of(url))
    config = {"name": "fetchurl2" if name is None else name, **checksums, "out": [selfref, file], **kwargs}
    realizer = FetchRealizer(
        urls=tuple(mirrors) if local is not None else (url, *mirrors),
        path=local,
        filename=file,
        headers=checked_headers(headers, "fetchurl2"),
        max_bytes=_limit("fetchurl2", max_bytes),
        insecure_redirects=insecure_redirects,
        total_seconds=total_seconds,
        is_fresh=force_download,
    )
    return mkdrv(mkconfig(config), match_only(), realizer, r)


def fetchlocal(
    sha256: str,
    path: Optional[str] = None,
    envname: Optional[str] = None,
    mode: str = "unpack,remove",
    name: Optional[str] = None,
    filename: Optional[str] = None,
    check_promises: bool = True,
    r: Optional[Registry] = None,
    **kwargs: Any,
) -> DRef:
    """Register a derivation that is realized by copying a local file and, unless `mode` says otherwise, unpacking it.

    Args:
        sha256: its SHA-256, in hexadecimal, Nix's base 32 or SRI.
        path: where it is. Exactly one of `path` and `envname` is given.
        envname: the environment variable that says where it is. It is read now; the config has its name only.
        mode: as of `fetchurl`.
        name: the name of the derivation, by default ``fetchlocal``.
        filename: the file's name, by default that which it has.
        check_promises: whether the self-paths in `kwargs` must be fulfilled.
        r: the registry, else the current one.
        kwargs: more config items.

    Raises:
        Misuse: something is not of these shapes, or the variable is not set.
    """
    if (path is None) == (envname is None):
        raise Misuse(f"fetchlocal expects exactly one of path and envname, found {'none' if path is None else 'both'}")
    if path is not None:
        where = os.fspath(path)
        source = {"path": where}
    else:
        where = os.environ.get(str(envname), "")
        source = {"envname": str(envname)}
    if not isinstance(where, str) or not where:
        raise Misuse(f"fetchlocal expects the path of a file{'' if path is not None else f' in the variable {envname}'}, found {where!r}")
    checksums = _checksums("fetchlocal", sha256=sha256)
    if not checksums:
        raise Misuse("fetchlocal expects the sha256 of the file, found None")
    file = _file_name("fetchlocal", filename, os.path.basename(where))
    config = {**kwargs, "name": "fetchlocal" if name is None else name, **source, **checksums, "mode": mode}
    # The working folder of the build may be another one.
    realizer = FetchRealizer(path=os.path.abspath(where), filename=file, checks_promises=check_promises)
    return mkdrv(mkconfig(_with_out_path(config, mode, file)), match_only(), realizer, r)


def _checksums(what: str, **given: object) -> dict[str, str]:
    """Return the checksums that are given, in the one spelling that stands in configs."""
    return {name: parse_checksum(text, name).hex for name, text in given.items() if text is not None}


def _named(checksums: Mapping[str, str]) -> str:
    return " and ".join(checksums) if checksums else "none"


def _list(what: str, mirrors: Sequence[str]) -> Sequence[str]:
    if isinstance(mirrors, str):
        raise Misuse(f"{what} expects a list of mirrors, found the text {shown_text(mirrors)!r}; write [{shown_text(mirrors)!r}]")
    return mirrors


def _limit(what: str, max_bytes: object) -> Optional[int]:
    if max_bytes is None or (isinstance(max_bytes, int) and not isinstance(max_bytes, bool) and max_bytes >= 0):
        return max_bytes
    raise Misuse(f"{what} expects for max_bytes a number of bytes, found {max_bytes!r:.100}")


def _local_path(what: str, url: str) -> Optional[str]:
    """Return the local file that is meant, None for one elsewhere."""
    if not isinstance(url, (str, os.PathLike)):
        raise InvalidURL(repr(url)[:100], f"{what} expects a URL, or the path of a local file")
    text = os.fspath(url)
    if "://" not in text:
        # The working folder of the build may be another one.
        return os.path.abspath(text)
    return local_path_of(check_url(text))


def _file_name(what: str, given: Optional[str], default: str) -> str:
    name = default if given is None else given
    problem = problem_with_entry(name)
    if problem:
        raise Misuse(f"{what} expects the name of a plain file, found {name!r:.100}: {problem}; say it with filename=…")
    return name


def _with_out_path(config: dict[str, Any], mode: str, file: str) -> dict[str, Any]:
    if not isinstance(mode, str):
        raise Misuse(f"expected a text like 'unpack,remove' for mode, found {mode!r:.100}")
    return config if "unpack" in mode else {**config, "out_path": [selfref, file]}
