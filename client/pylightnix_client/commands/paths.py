"""The commands that answer one line about a path: `path`, `path2rref` and `hash`."""

from __future__ import annotations

import os

import click

from pylightnix_client.parameters import ReferenceType, json_option
from pylightnix_client.session import Session

__all__ = ["hash_command", "path2rref_command", "path_command"]


@click.command("path")
@click.argument("rref", type=ReferenceType("rref"))
@json_option
@click.pass_obj
def path_command(session: Session, rref: str) -> None:
    """Print the folder of the realization RREF.

    RREF may be given in full, by the first digits of its hash, as a path in the store, or as a target or the name of a stage, if that has
    one realization.
    """
    from pylightnix.types import RRef
    from pylightnix_client.references import existing_realization, resolve_reference

    S = session.settings()
    found = RRef(resolve_reference(rref, S, kinds=("rref",)))
    folder = existing_realization(found, S)
    if session.answers.as_json:
        session.answers.object("path", rref=found, path=folder)
    else:
        session.answers.text(folder)


@click.command("path2rref")
@click.argument("path", type=click.Path())
@json_option
@click.pass_obj
def path2rref_command(session: Session, path: str) -> None:
    """Print which realization PATH lies in.

    PATH is a realization's folder, anything in it, or a link to one of these.
    """
    from pylightnix.errors import InvalidReference
    from pylightnix.refs import isrref
    from pylightnix.types import RRef
    from pylightnix_client.references import existing_realization, reference_of_path

    S = session.settings()
    found, inner = reference_of_path(path, S)
    if not isrref(found):
        raise InvalidReference(path, f"a path in a realization; this is in the derivation {found}")
    existing_realization(RRef(found), S)
    if session.answers.as_json:
        session.answers.object("reference", rref=found, inner=inner)
    else:
        session.answers.text(found)


@click.command("hash")
@click.argument("path", type=click.Path())
@json_option
@click.pass_obj
def hash_command(session: Session, path: str) -> None:
    """Print the tree hash of PATH, in hexadecimal.

    It is the SHA-256 of the tree's NAR serialization, what `nix-hash --type sha256` prints: names, contents, the executable bit and
    symbolic links count; times, owners and other modes do not. A link is hashed as a link. The folder of a realization is hashed
    without the files that Pylightnix puts there, as `show` has it.
    """
    from pylightnix.nar import tree_hash
    from pylightnix.store.layout import METADATA_NAMES
    from pylightnix_client.errors import NoSuchFile, UnreadableFile

    excluded = METADATA_NAMES if _is_realization(path, session) else frozenset[str]()
    try:
        digest = tree_hash(path, exclude_top=excluded)
    except FileNotFoundError as error:
        raise NoSuchFile(path, _here(), "give a file, a folder or a link") from error
    except OSError as error:
        raise UnreadableFile(str(error.filename or path), error.strerror or str(error), "check its permissions") from error
    if session.answers.as_json:
        session.answers.object("hash", path=path, sha256=digest.sha256, nar_bytes=digest.nar_bytes)
    else:
        session.answers.text(digest.sha256)


def _is_realization(path: str, session: Session) -> bool:
    from pylightnix.errors import InvalidReference
    from pylightnix.refs import isrref
    from pylightnix_client.references import reference_of_path

    if os.path.islink(path):
        return False
    try:
        found, inner = reference_of_path(path, session.settings())
    except InvalidReference:
        return False
    return isrref(found) and not inner


def _here() -> str:
    from pylightnix.workfolder import program_folder

    return program_folder() or "a folder that was removed"
