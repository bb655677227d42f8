"""The command `prefetch`: fetches a file, prints its checksum, and keeps it for the build that names that."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Optional

import click

from pylightnix_client.output import note, on_terminal
from pylightnix_client.parameters import json_option
from pylightnix_client.session import Session

if TYPE_CHECKING:
    from pylightnix.fetch import Checksum, FetchProgress
    from pylightnix.types import StorageSettings

__all__ = ["prefetch_command"]

_TELL_SECONDS = 1.0


@click.command("prefetch")
@click.argument("url")
@click.option(
    "--algo", type=click.Choice(["sha256", "sha512", "sha1"]), default="sha256", show_default=True, help="Which checksum to print."
)
@json_option
@click.pass_obj
def prefetch_command(session: Session, url: str, algo: str) -> None:
    """Fetch URL, print its checksum in hexadecimal, and keep the file.

    A stage like `fetchurl` that is given this checksum needs no network then. Proxies, .netrc and certificates are those of the
    environment. Kept files go after two weeks, or when they take more than 32 GiB.
    """
    from pylightnix.fetch.urls import check_url, local_path_of, shown_url

    local = os.path.abspath(url) if "://" not in url else local_path_of(check_url(url))
    if local is not None:
        from pylightnix.fetch.local import local_checksum

        _show(session, local, local_checksum(local, algo), os.path.getsize(local), None)
        return
    from pylightnix.fetch import FetchSpec, read_environment
    from pylightnix.fetch.blocking import fetched_file
    from pylightnix.fetch.files import kept_path

    folder = _made(session.settings())
    spec = FetchSpec((url,), algorithms=(algo,))
    with fetched_file(folder, spec, read_environment(os.environ), progress=_Teller(), keep=True) as file:
        [checksum] = file.checksums
        _show(session, shown_url(url), checksum, file.size, kept_path(folder, checksum))


def _made(S: StorageSettings) -> str:
    """Make the store if there is none, and return its folder for fetched files."""
    from pylightnix.fetch.parts import make_fetch_folder
    from pylightnix.storage import fsinit, fsstorage, store_layout

    if not os.path.isdir(fsstorage(S)):
        fsinit(S, use_as_default=False)
    folder = store_layout(S).fetch
    make_fetch_folder(folder)
    return folder


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
