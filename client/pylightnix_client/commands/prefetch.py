"""The command `prefetch`: fetches a file, prints its checksum, and keeps it for the build that names that."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Optional

import click

from pylightnix_client.output import note, on_terminal
from pylightnix_client.parameters import json_option
from pylightnix_client.session import Session

if TYPE_CHECKING:
    from pylightnix.fetch import Checksum, FetchProgress
    from pylightnix.fetch.spec import Headers
    from pylightnix.types import StorageSettings

__all__ = ["prefetch_command"]

_TELL_SECONDS = 1.0


@click.command("prefetch")
@click.argument("url")
@click.option(
    "--algo", type=click.Choice(["sha256", "sha512", "sha1"]), default="sha256", show_default=True, help="Which checksum to print."
)
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="NAME=@VARIABLE",
    help="A header to send to the server of URL, and to no other. Its value is that of an environment variable, and is shown nowhere.",
)
@json_option
@click.pass_obj
def prefetch_command(session: Session, url: str, algo: str, headers: Sequence[str]) -> None:
    """Fetch URL, print its checksum in hexadecimal, and keep the file.

    A stage like `fetchurl` that is given this checksum needs no network then. Proxies, .netrc and certificates are those of the
    environment. Kept files go after two weeks, or when they take more than 32 GiB. Where the store cannot be written, the file is
    not kept. Nor is a local file.
    """
    from pylightnix.fetch.urls import check_url, local_path_of, shown_url
    from pylightnix.workfolder import absolute

    local = absolute(url) if "://" not in url else local_path_of(check_url(url))
    if local is not None:
        from pylightnix.fetch.local import local_checksum

        _show(session, local, local_checksum(local, algo), os.path.getsize(local), None)
        return
    from pylightnix.fetch import FetchSpec, read_environment
    from pylightnix.fetch.blocking import fetched_file
    from pylightnix.fetch.files import kept_path

    spec = FetchSpec((url,), algorithms=(algo,), headers=_headers(headers))
    environment = read_environment(os.environ)
    with (
        _fetch_folder(session.settings()) as (folder, is_kept),
        fetched_file(folder, spec, environment, progress=_Teller(), keep=is_kept) as file,
    ):
        [checksum] = file.checksums
        _show(session, shown_url(url), checksum, file.size, kept_path(folder, checksum) if is_kept else None)


def _headers(given: Sequence[str]) -> Headers:
    """Return headers whose values are in environment variables: those of a command line are for all of the machine to see."""
    from pylightnix.errors import Misuse
    from pylightnix.fetch.spec import checked_headers

    found: dict[str, str] = {}
    for each in given:
        name, _, source = each.partition("=")
        variable = source.removeprefix("@")
        if not name or not variable or variable == source:
            # Not what it is: somebody may have given a value.
            raise Misuse(
                f"--header expects NAME=@VARIABLE, found something else for {name[:40]!r}; put the value into an environment variable"
            )
        if variable not in os.environ:
            raise Misuse(f"--header {name[:40]} expects its value in the environment variable {variable[:40]}, which is not set")
        found[name] = os.environ[variable]
    return checked_headers(found, "--header")


@contextmanager
def _fetch_folder(S: StorageSettings) -> Iterator[tuple[str, bool]]:
    """Yield a folder for fetched files, and whether these are kept there: the store's, which is made if there is none, if it can be."""
    from pylightnix.errors import StoreError
    from pylightnix.fetch.parts import make_fetch_folder
    from pylightnix.storage import fsinit, fsstorage, store_layout

    folder = store_layout(S).fetch
    problem = ""
    try:
        if not os.path.isdir(fsstorage(S)):
            fsinit(S, use_as_default=False)
        make_fetch_folder(folder)
    except (StoreError, OSError) as error:
        problem = str(error)
    if not problem and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        problem = f"{folder} belongs to another user"
    if not problem:
        yield folder, True
        return
    with tempfile.TemporaryDirectory(prefix="pylightnix-prefetch-") as own:
        yield own, False
    note(f"the file was not kept: {problem}")


def _show(session: Session, url: str, checksum: Checksum, size: int, kept: Optional[str]) -> None:
    if session.answers.as_json:
        fields = {checksum.algorithm: checksum.hex, "sri": checksum.sri, "nix32": checksum.nix32}
        session.answers.object("prefetched", url=url, algorithm=checksum.algorithm, **fields, bytes=size, kept=kept)
    else:
        session.answers.text(checksum.hex)


class _Teller:
    """Tells people how far it is, where there is something to tell."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _TELL_SECONDS

    def __call__(self, progress: FetchProgress) -> None:
        if not on_terminal() or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _TELL_SECONDS
        mebi = 1 / (1 << 20)
        of = "" if progress.total is None else f" of {progress.total * mebi:.1f}"
        how = f"waiting {progress.waiting}" if progress.waiting else f"{progress.bytes_per_second * mebi:.1f} MiB/s"
        note(f"{progress.mirror}: {progress.bytes * mebi:.1f}{of} MiB, {how}")
