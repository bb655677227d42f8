"""What one does to a store in a shell: list, read, remove, look around, make links.

Reading goes to the tree. Only `rmref` changes the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Optional, Union

from pylightnix.build import Build, build_outpaths
from pylightnix.errors import AmbiguousMatch, InvalidReference, MissingDerivation, MissingRealization, Misuse, NotRealized, StoreFull, shown
from pylightnix.links import forcelink
from pylightnix.query import dref2path, drefrrefs, rref2path, rrefbstart
from pylightnix.refs import isdref, isrefpath, isrref, undref, unrref
from pylightnix.registry import write_waiting
from pylightnix.storage import fsstorage
from pylightnix.types import DRef, Path, RefPath, RRef, StorageSettings
from pylightnix.workfolder import absolute

__all__ = [
    "catref",
    "catrref_",
    "linkdref",
    "linkrref",
    "linkrrefs",
    "lsdref_",
    "lsref",
    "lsrref",
    "lsrref_",
    "rmref",
    "shell",
    "shellref",
]

# --- listing and reading ------------------------------------------------------------------------------


def lsref(r: Union[RRef, DRef], S: Optional[StorageSettings] = None) -> list[str]:
    """Return the names in the folder of a realization or a derivation, sorted.

    Among them are `context.json` and the time stamps of a realization, and the `config.json` of a derivation.

    Raises:
        InvalidReference: `r` is no reference.
        MissingDerivation, MissingRealization: it is not in the store.
    """
    if isrref(r):
        return lsrref(RRef(r), S=S)
    if isdref(r):
        return list(lsdref_(DRef(r), S))
    raise InvalidReference(r, "a derivation or realization reference")


def lsrref(r: RRef, fn: Sequence[str] = (), S: Optional[StorageSettings] = None) -> list[str]:
    """Return the names in the folder `fn` (path components) of a realization, sorted."""
    return list(lsrref_(r, fn, S))


def lsrref_(r: RRef, fn: Sequence[str] = (), S: Optional[StorageSettings] = None) -> Iterator[str]:
    """Iterate over what `lsrref` returns."""
    folder = _realization_folder(r, S)
    path = os.path.join(folder, *fn)
    try:
        names = sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Misuse(f"expected the folder {'/'.join(fn)!r} in {r}, found none at {path}") from error
    yield from names


def lsdref_(r: DRef, S: Optional[StorageSettings] = None) -> Iterator[str]:
    """Iterate over the names in the folder of a derivation, sorted."""
    folder = _derivation_folder(r, S)
    yield from sorted(os.listdir(folder))


def _derivation_folder(r: DRef, S: Optional[StorageSettings]) -> Path:
    write_waiting(S)
    folder = dref2path(r, S)
    if not os.path.isdir(folder):
        raise MissingDerivation(r, folder)
    return folder


def _realization_folder(r: RRef, S: Optional[StorageSettings]) -> Path:
    folder = rref2path(r, S)
    if not os.path.isdir(folder):
        raise MissingRealization(r, folder)
    return folder


def catref(r: Union[RRef, Path, RefPath, os.PathLike[str]], fn: Sequence[str] = (), S: Optional[StorageSettings] = None) -> list[str]:
    """Return the lines of a file, each with its newline.

    Args:
        r: a realization; or a refpath of a derivation that has just one; or the path of a file.
        fn: path components below that.
        S: the store.

    Raises:
        Misuse: there is no such file.
        AmbiguousMatch, NotRealized: the derivation of the refpath has several realizations, or none.
    """
    if isinstance(r, os.PathLike):
        return list(_lines(os.path.join(r, *fn)))
    if isrref(r):
        return list(catrref_(RRef(str(r)), fn, S))
    if isrefpath(r):
        return list(catrref_(_only_realization(DRef(r[0]), S), [*r[1:], *fn], S))
    if not isinstance(r, str):
        raise InvalidReference(r, "a realization reference, a refpath or the path of a file")
    return list(_lines(os.path.join(r, *fn)))


def catrref_(r: RRef, fn: Sequence[str], S: Optional[StorageSettings] = None) -> Iterator[str]:
    """Iterate over the lines of the file `fn` (path components) of a realization."""
    yield from _lines(os.path.join(_realization_folder(r, S), *fn))


def _only_realization(dref: DRef, S: Optional[StorageSettings]) -> RRef:
    rrefs = sorted(drefrrefs(dref, S))
    if not rrefs:
        raise NotRealized(dref, "so it has no files; realize it first")
    if len(rrefs) > 1:
        raise AmbiguousMatch(f"a refpath of {dref}", rrefs, "one realization")
    return rrefs[0]


def _lines(path: str) -> Iterator[str]:
    if not os.path.isfile(path):
        raise Misuse(f"expected a file, found none at {path}")
    # Bytes that are not UTF-8 come through, as file names do.
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        yield from file


# --- removing -----------------------------------------------------------------------------------------


def rmref(r: Union[RRef, DRef], S: Optional[StorageSettings] = None) -> None:
    """Remove a realization, or a derivation with all its realizations.

    Raises:
        InUse: something in the store was made from it or depends on it, or an operation works with it.
        MissingDerivation, MissingRealization: it is not in the store.
        StoreBusy: another process works in the store, perhaps with this.
        InvalidReference: `r` is no reference.
    """
    from pylightnix.remote import remove

    with suppress(StoreFull):  # what is not in the store yet needs nothing there, and this may be what makes room for it
        write_waiting(S)
    if isrref(r):
        remove([], [RRef(r)], S)
    elif isdref(r):
        remove([DRef(r)], [], S)
    else:
        raise InvalidReference(r, "a derivation or realization reference")


# --- looking around -----------------------------------------------------------------------------------


def shell(r: Union[RRef, DRef, Build, str, os.PathLike[str], None] = None, S: Optional[StorageSettings] = None) -> None:
    """Run `SHELL` (else ``/bin/sh``) in a folder, and wait for its end.

    Args:
        r: where: a realization, a derivation, the first output of a build, a folder, or the folder that a file
            is in; None for the folder of derivations.
        S: the store.

    Raises:
        Misuse: there is no such folder.
    """
    import subprocess

    subprocess.run([os.environ.get("SHELL") or "/bin/sh"], cwd=_shell_folder(r, S), check=False)


def shellref(r: Union[RRef, DRef, Build, str, os.PathLike[str], None] = None, S: Optional[StorageSettings] = None) -> None:
    """Do as `shell`, which is its newer name."""
    shell(r, S)


def _shell_folder(r: Union[Build, str, os.PathLike[str], None], S: Optional[StorageSettings]) -> str:
    if r is None:
        return fsstorage(S)
    if isinstance(r, Build):
        return build_outpaths(r)[0]
    if isrref(r):
        return _realization_folder(RRef(r), S)
    if isdref(r):
        return _derivation_folder(DRef(r), S)
    if isinstance(r, (str, os.PathLike)) and os.path.isdir(r):
        return os.fspath(r)
    if isinstance(r, (str, os.PathLike)) and os.path.isfile(r):
        return os.path.dirname(os.path.abspath(r))
    raise Misuse(f"shell expects a reference, a build, a folder or a file, found {shown(r)}")


# --- links --------------------------------------------------------------------------------------------


def linkrref(rref: RRef, destdir: Optional[str] = None, format: str = "_rref_%(T)s_%(N)s", S: Optional[StorageSettings] = None) -> Path:  # noqa: A002  # the keyword that programs pass
    """Make a relative symbolic link to a realization, in place of an old one; return its path.

    Args:
        rref: the realization.
        destdir: the folder of the link; the working folder, if None.
        format: its name, where ``%(T)s`` is the time when the build began (or nothing) and ``%(N)s`` the name.
        S: the store.

    Raises:
        MissingRealization: it is not in the store.
        FileExistsError: there is something else than a link at that place.
    """
    folder = _realization_folder(rref, S)
    return _link(folder, destdir, format % {"T": rrefbstart(rref, S) or "", "N": unrref(rref)[2]})


def linkrrefs(
    rrefs: Iterable[RRef],
    destdir: Optional[str] = None,
    format: str = "_rref_%(T)s_%(N)s",  # noqa: A002  # the same
    S: Optional[StorageSettings] = None,
) -> list[Path]:
    """Make a link to each of these realizations, see `linkrref`; return the paths of the links."""
    return [linkrref(rref, destdir, format, S) for rref in rrefs]


def linkdref(dref: DRef, destdir: Optional[str] = None, format: str = "_rref_%(N)s", S: Optional[StorageSettings] = None) -> Path:  # noqa: A002  # the same
    """Make a relative symbolic link to a derivation, see `linkrref`; there is no ``%(T)s``."""
    folder = _derivation_folder(dref, S)
    return _link(folder, destdir, format % {"T": "", "N": undref(dref)[1]})


def _link(folder: str, destdir: Optional[str], name: str) -> Path:
    path = os.path.join(destdir or ".", name)
    absolute(path)  # a link in a folder that was removed leads nowhere
    # A relative link counts from where its folder really is.
    forcelink(os.path.relpath(os.path.realpath(folder), os.path.realpath(os.path.dirname(path))), path)
    return Path(path)
