"""The commands `ls` and `cat`: what files a realization (or a derivation) has, and what is in one."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from pylightnix_client.parameters import ReferenceType, json_option
from pylightnix_client.session import Session

if TYPE_CHECKING:
    from pylightnix.errors import PylightnixException
    from pylightnix.types import StorageSettings

__all__ = ["cat_command", "inner_path", "ls_command"]

_BLOCK_BYTES = 1 << 20


def _folder(text: str, path: str, S: StorageSettings) -> tuple[str, str, str]:
    """Return the reference that `text` is, its folder, and the path in that which `text` and `path` name together."""
    from pylightnix.errors import MissingDerivation
    from pylightnix.refs import isrref
    from pylightnix.storage import store_layout
    from pylightnix.types import RRef
    from pylightnix_client.references import existing_realization, locate

    ref, inner = locate(text, S, prefer_files=True)
    path = f"{inner}/{path}" if inner and path else inner or path
    if isrref(ref):
        return ref, existing_realization(RRef(ref), S), path
    folder = store_layout(S).derivation(ref)
    if not os.path.isdir(folder):
        raise MissingDerivation(ref, folder)
    return ref, folder, path


def inner_path(ref: str, folder: str, inner: str) -> str:
    """Return the real path of `inner` in the folder of `ref`.

    Links are followed as long as they stay in the store: realizations link to what they were made from.

    Raises:
        NoSuchFile: there is none, or the path or a link leads elsewhere.
    """
    from pylightnix.refs import isrref
    from pylightnix_client.errors import NoSuchFile

    if inner.startswith("/") or ".." in inner.split("/"):
        raise NoSuchFile(inner, ref, "give a path below its folder, without '..'")
    storage = os.path.realpath(os.path.join(folder, "../.." if isrref(ref) else ".."))
    real = os.path.realpath(os.path.join(folder, inner))
    if not real.startswith(storage + os.sep):
        raise NoSuchFile(inner, ref, f"it is a link that leads out of the store, to {real}")
    if not os.path.lexists(real):
        raise NoSuchFile(inner, ref, f"see what there is with: pylightnix ls {ref}")
    return real


@click.command("ls")
@click.argument("ref", type=ReferenceType("dref", "rref"))
@click.argument("path", default="")
@json_option
@click.pass_obj
def ls_command(session: Session, ref: str, path: str) -> None:
    """List the files of REF, or those in its folder PATH.

    Folders end in a slash. Of a derivation, that is its config and the hashes of its realizations. REF may be a path itself: result/sub.
    """
    found, folder, path = _folder(ref, path, session.settings())
    real = inner_path(found, folder, path)
    try:
        names = sorted(os.listdir(real)) if os.path.isdir(real) else [""]
        entries = [_entry(os.path.join(real, name) if name else real, name or path) for name in names]
    except OSError as error:
        raise _unreadable(real, error) from error
    for entry in entries:
        if session.answers.as_json:
            session.answers.object("entry", **entry)
        else:
            shown = entry["name"].replace("\n", "\\n") if session.answers.on_terminal() else entry["name"]  # a name is one line
            session.answers.text(shown + ("/" if entry["type"] == "folder" else ""))


def _entry(path: str, name: str) -> dict[str, Any]:
    info = os.lstat(path)
    if stat.S_ISDIR(info.st_mode):
        return {"name": name, "type": "folder"}
    if stat.S_ISLNK(info.st_mode):
        return {"name": name, "type": "link", "target": os.readlink(path)}
    return {"name": name, "type": "file", "bytes": info.st_size, "executable": bool(info.st_mode & stat.S_IXUSR)}


@click.command("cat")
@click.argument("ref", type=ReferenceType("dref", "rref"))
@click.argument("path", default="")
@json_option
@click.pass_obj
def cat_command(session: Session, ref: str, path: str) -> None:
    """Print the file PATH of REF, byte by byte as it is; on a terminal, with what that would act upon spelt out.

    REF may be the path of the file itself: result/report.md. With --json, as text where it is UTF-8, else in base64.
    """
    from pylightnix_client.errors import UnreadableFile
    from pylightnix_client.plain import ShownBytes

    found, folder, path = _folder(ref, path, session.settings())
    real = inner_path(found, folder, path)
    if os.path.isdir(real):
        raise UnreadableFile(
            f"{path} of {found}" if path else found, "it is a folder", f"list it with: pylightnix ls {found} {path}".rstrip()
        )
    if session.answers.as_json:
        session.answers.object("file", ref=found, path=path, **_content(b"".join(_blocks(real))))
        return
    shown = ShownBytes() if session.answers.on_terminal() else None
    for block in _blocks(real):
        session.answers.raw(block if shown is None else shown.take(block))
    if shown is not None:
        session.answers.raw(shown.take(b"", is_last=True))


def _blocks(path: str) -> Iterator[bytes]:
    """Yield what the file holds. Errors of reading are told apart here from those of whoever takes the blocks."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        while block := _block(fd, path):
            yield block
    finally:
        os.close(fd)


def _block(fd: int, path: str) -> bytes:
    try:
        return os.read(fd, _BLOCK_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> PylightnixException:
    from pylightnix_client.errors import UnreadableFile

    return UnreadableFile(str(error.filename or path), error.strerror or str(error), "check its permissions and the disk")


def _content(content: bytes) -> dict[str, str]:
    try:
        return {"encoding": "utf-8", "content": content.decode("utf-8")}
    except UnicodeDecodeError:
        return {"encoding": "base64", "content": base64.b64encode(content).decode("ascii")}
