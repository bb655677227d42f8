"""`fetchurl`, `fetchurl2` and `fetchlocal`: stages whose realization is a file from elsewhere, or what is packed in it.

What identifies the file stands in the config; how to get at it, and what may be secret in that, in the realizer. Must not know
how files are fetched or unpacked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Optional

from pylightnix.config import mkconfig
from pylightnix.errors import InvalidURL, Misuse
from pylightnix.fetch.checksums import parse_checksum
from pylightnix.fetch.spec import Headers, checked_headers
from pylightnix.fetch.urls import check_url, file_name_of, local_path_of, shown_text
from pylightnix.matchers import match_only
from pylightnix.refs import selfref
from pylightnix.registry import Registry, mkdrv
from pylightnix.stages._fetching import FetchedRealizer, FetchRealizer, LendFile
from pylightnix.stages.node import checked_name, problem_with_entry
from pylightnix.types import DRef
from pylightnix.unpack_limits import UnpackLimits, checked_limits
from pylightnix.workfolder import absolute

__all__ = ["FetchRealizer", "FetchedRealizer", "LendFile", "fetchlocal", "fetchurl", "fetchurl2"]

_MAX_BYTES: Final = 1 << 53
"""What fits into a message to a daemon; so the next."""
_MAX_SECONDS: Final = 1e12
_MODES: Final = ({"unpack", "remove"}, {"unpack"}, {"as-is"}, set[str]())


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
    limits: UnpackLimits | Mapping[str, int] | None = None,
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
        mode: ``unpack,remove`` unpacks it and leaves the archive out, ``unpack`` leaves both, ``as-is`` or ``""`` the file alone.
            If what it unpacks to has the name of the file, ``unpack`` needs a `filename`.
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
        total_seconds: give up after this time, which is above 0; by default after 24 hours.
        limits: how large it may become when it is unpacked, as of `unpack`.
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
    config = {**kwargs, "name": checked_name("fetchurl", name, "fetchurl"), "url": url, **checksums, "mode": mode}
    realizer = FetchRealizer(
        urls=tuple(mirrors),
        path=local_path_of(check_url(url)),
        filename=file,
        headers=_headers("fetchurl", headers),
        max_bytes=_limit("fetchurl", max_bytes),
        insecure_redirects=_flag("fetchurl", "insecure_redirects", insecure_redirects),
        total_seconds=_seconds("fetchurl", total_seconds),
        is_fresh=_flag("fetchurl", "force_download", force_download),
        checks_promises=_flag("fetchurl", "check_promises", check_promises),
        limits=checked_limits(limits, "fetchurl"),
    )
    return mkdrv(mkconfig(_with_out_path("fetchurl", config, mode, file)), match_only(), realizer, r)


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
        kwargs: more config items, which may replace those above. Whatever they are, the file is not unpacked.

    Raises:
        Misuse: as of `fetchurl`.
    """
    if isinstance(kwargs.get("limits"), UnpackLimits):
        raise Misuse("fetchurl2 unpacks nothing, so it has no limits; use fetchurl(…, limits=…), or unpack(refpath=…, limits=…) behind it")
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
    config = {"name": checked_name("fetchurl2", name, "fetchurl2"), **checksums, "out": [selfref, file], **kwargs}
    realizer = FetchRealizer(
        urls=tuple(mirrors) if local is not None else (url, *mirrors),
        path=local,
        filename=file,
        headers=_headers("fetchurl2", headers),
        max_bytes=_limit("fetchurl2", max_bytes),
        insecure_redirects=_flag("fetchurl2", "insecure_redirects", insecure_redirects),
        total_seconds=_seconds("fetchurl2", total_seconds),
        is_fresh=_flag("fetchurl2", "force_download", force_download),
        unpacks=False,
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
    *,
    limits: UnpackLimits | Mapping[str, int] | None = None,
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
        limits: as of `fetchurl`.
        kwargs: more config items.

    Raises:
        Misuse: something is not of these shapes, or the variable is not set.
    """
    if (path is None) == (envname is None):
        raise Misuse(f"fetchlocal expects exactly one of path and envname, found {'none' if path is None else 'both'}")
    if path is not None:
        given: object = path  # whatever the annotation says
        if not isinstance(given, (str, os.PathLike)):
            raise Misuse(f"fetchlocal expects for path the path of a file, found {given!r:.100}")
        where = os.fspath(path)
        source = {"path": where}
    else:
        where = _from_environment(str(envname))
        source = {"envname": str(envname)}
    if not isinstance(where, str) or not where:
        raise Misuse(f"fetchlocal expects the path of a file{'' if path is not None else f' in the variable {envname}'}, found {where!r}")
    checksums = _checksums("fetchlocal", sha256=sha256)
    if not checksums:
        raise Misuse("fetchlocal expects the sha256 of the file, found None")
    file = _file_name("fetchlocal", filename, os.path.basename(where))
    config = {**kwargs, "name": checked_name("fetchlocal", name, "fetchlocal"), **source, **checksums, "mode": mode}
    # The working folder of the build may be another one.
    realizer = FetchRealizer(
        path=absolute(where),
        filename=file,
        checks_promises=_flag("fetchlocal", "check_promises", check_promises),
        limits=checked_limits(limits, "fetchlocal"),
    )
    return mkdrv(mkconfig(_with_out_path("fetchlocal", config, mode, file)), match_only(), realizer, r)


def _from_environment(envname: str) -> str:
    if envname not in os.environ:
        raise Misuse(f"fetchlocal expects the path of a file in the variable {envname}, which is not set; set it, or say path=…")
    return os.environ[envname]


def _checksums(what: str, **given: object) -> dict[str, str]:
    """Return the checksums that are given, in the one spelling that stands in configs."""
    return {name: parse_checksum(text, name).hex for name, text in given.items() if text is not None}


def _named(checksums: Mapping[str, str]) -> str:
    return " and ".join(checksums) if checksums else "none"


def _list(what: str, mirrors: object) -> Sequence[str]:
    if isinstance(mirrors, str):
        raise Misuse(f"{what} expects a list of mirrors, found the text {shown_text(mirrors)!r}; write [{shown_text(mirrors)!r}]")
    if not isinstance(mirrors, Sequence):
        raise Misuse(f"{what} expects for mirrors a list of URLs, found a {type(mirrors).__name__}; write mirrors=['https://…']")
    return mirrors


def _headers(what: str, headers: object) -> Headers:
    if not isinstance(headers, Mapping):
        # Not what it is: values of headers are shown nowhere.
        raise Misuse(f"{what} expects for headers a dict, found a {type(headers).__name__}; write headers={{'Name': 'value'}}")
    return checked_headers(headers, what)


def _limit(what: str, max_bytes: object) -> Optional[int]:
    if max_bytes is None or (isinstance(max_bytes, int) and not isinstance(max_bytes, bool) and 0 <= max_bytes <= _MAX_BYTES):
        return max_bytes
    raise Misuse(f"{what} expects for max_bytes a number of bytes up to {_MAX_BYTES}, found {max_bytes!r:.100}; None is for no limit")


def _seconds(what: str, total_seconds: object) -> Optional[float]:
    if total_seconds is None:
        return None
    if isinstance(total_seconds, (int, float)) and not isinstance(total_seconds, bool) and 0 < total_seconds <= _MAX_SECONDS:
        return float(total_seconds)
    expected = f"a number of seconds above 0 and up to {_MAX_SECONDS:g}"
    raise Misuse(f"{what} expects for total_seconds {expected}, found {total_seconds!r:.100}; None is for the usual limit, a day")


def _flag(what: str, name: str, value: object) -> bool:
    if value is True or value is False or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise Misuse(f"{what} expects for {name} True or False, found {value!r:.100}")


def _local_path(what: str, url: str) -> Optional[str]:
    """Return the local file that is meant, None for one elsewhere."""
    if not isinstance(url, (str, os.PathLike)):
        raise InvalidURL(repr(url)[:100], f"{what} expects a URL, or the path of a local file")
    text = os.fspath(url)
    if "://" not in text:
        # The working folder of the build may be another one.
        return absolute(text)
    return local_path_of(check_url(text))


def _file_name(what: str, given: Optional[str], default: str) -> str:
    name = default if given is None else given
    problem = problem_with_entry(name)
    if problem:
        raise Misuse(f"{what} expects the name of a plain file, found {name!r:.100}: {problem}; say it with filename=…")
    return name


def _with_out_path(what: str, config: dict[str, Any], mode: object, file: str) -> dict[str, Any]:
    words = {word.strip() for word in mode.split(",")} - {""} if isinstance(mode, str) else None
    if words not in _MODES:
        expected = "'unpack,remove', 'unpack' or 'as-is'"
        raise Misuse(f"{what} expects for mode {expected}, found {mode!r:.100}; 'as-is' takes the file without unpacking")
    return config if "unpack" in words else {**config, "out_path": [selfref, file]}
