"""References as users give them, and what they mean: the one place that decides it, for every command.

A reference is a DRef or RRef, in full or as its hash begins; a path in the store, such as that of a `result` link; a build
target; or the name of a stage. Each may be followed by a slash and a path inside. Looks into the store only for what is not a
reference in full, and runs users' code only for a target.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Optional, Union

from pylightnix.errors import InvalidReference
from pylightnix.refs import isdref, isrref, rref2dref, undref
from pylightnix.storage import store_layout
from pylightnix.types import DRef, RRef, StorageSettings
from pylightnix.workfolder import program_folder

if TYPE_CHECKING:
    from pylightnix.embedded import Outcome

__all__ = ["Reference", "existing_realization", "locate", "reference_of_path", "resolve_reference", "stored_references"]

Reference = Union[DRef, RRef]

_KINDS: Final = {"dref": "a derivation (dref:…)", "rref": "a realization (rref:…)"}
_BOTH: Final = ("dref", "rref")
_HEX_MIN: Final = 4
_BEGINNING: Final = re.compile(rf"((?P<kind>dref|rref):)?(?P<rest>[0-9a-f]{{{_HEX_MIN},32}}(-[a-zA-Z0-9_-]*)?)")


def resolve_reference(
    text: str, S: StorageSettings, kinds: Sequence[str] = _BOTH, *, unbuilt: bool = False, whole: bool = False
) -> Reference:
    """Return what `text` refers to.

    A reference in full need not exist. A stage or a target stands for its derivation, if `kinds` allow that; where a realization
    is wanted, a derivation stands for the only one it has, a target for the one that `build` would give.

    Args:
        text: what the user gave.
        S: the store.
        kinds: what is wanted: ``dref``, ``rref`` or both.
        unbuilt: whether a target will do that has no realization yet.
        whole: whether a path must be the folder itself, and nothing inside it.

    Raises:
        InvalidReference: it is of another kind, means several things, or nothing.
        NotBuilt: it has no realization yet.
        TargetNotFound, TargetFailed, InvalidArgument: it is a target that is wrong.
    """
    found, inner = locate(text, S, kinds, unbuilt=unbuilt)
    if whole and inner:
        raise InvalidReference(text, f"something whole; this path is inside {found}")
    return found


def locate(
    text: str, S: StorageSettings, kinds: Sequence[str] = _BOTH, *, unbuilt: bool = False, prefer_files: bool = False
) -> tuple[Reference, str]:
    """Return what `text` refers to, as `resolve_reference` does, and the path inside it.

    With `prefer_files`, a stage or a target stands for a realization even if a derivation would do.
    """
    found = _found(text, S)
    if found is None:
        from pylightnix_client.errors import NoSuchReference

        raise NoSuchReference(text, _suggestion(text, S))
    by_name = "rref" not in kinds or ("dref" in kinds and not (prefer_files and found.is_symbolic))
    if found.target is not None and not (by_name and unbuilt):
        refs = _built(found, S, by_name)
    else:
        refs = found.refs if by_name else _realizations(found, S)
    return _only(found.named, refs, S, kinds), found.inner


@dataclass(frozen=True, slots=True)
class _Found:
    """What a text may mean."""

    named: str
    """The text, without a path inside."""
    refs: Sequence[Reference]
    inner: str = ""
    target: Optional[Outcome] = None
    """What a dry run says, if it is a target."""
    is_symbolic: bool = False
    """Whether a target or the name of a stage led here, so that derivation and realization are both meant."""


def _found(text: str, S: StorageSettings) -> Optional[_Found]:
    if not text:
        return None
    if isdref(text):
        return _Found(text, [DRef(text)])
    if isrref(text):
        return _Found(text, [RRef(text)])
    path = _path_of(text, S)
    if path is not None:
        return _Found(text, [path[0]], path[1])
    head, inner = _split(text)
    if inner:
        outer = _found(head, S)
        return None if outer is None else replace(outer, inner=inner)
    if text.startswith(("dref:", "rref:")):
        found = _of_hash(text, S)
        return _Found(text, found) if found else None
    if _is_target(text):
        return _found_target(text, S)
    hashes, names = _of_hash(text, S), _of_name(text, S)
    if hashes or names:
        return _Found(text, [*hashes, *names], is_symbolic=not hashes)
    return _found_target(text, S)


# --- paths ------------------------------------------------------------------------------------------------


def _path_of(text: str, S: StorageSettings) -> Optional[tuple[Reference, str]]:
    from pylightnix.query import located

    return located(text, S) if "/" in text or os.path.lexists(text) else None


def _split(text: str) -> tuple[str, str]:
    """Return a reference and the path that follows it. A file of stages lies in folders, too, so what has a colon is split after it."""
    start = text.rfind(":") + 1 if ".py:" in text else 0
    slash = text.find("/", start)
    if text[:slash] in ("", ".", "..") or slash < 0 or text.endswith(".py"):
        return text, ""
    return text[:slash], text[slash + 1 :]


def reference_of_path(path: str, S: StorageSettings) -> tuple[Reference, str]:
    """Return which realization (or derivation) of the store a path lies in, and the path inside it; links are followed.

    Raises:
        InvalidReference: it lies elsewhere.
    """
    from pylightnix.query import located

    found = located(path, S)
    if found is None:
        raise InvalidReference(path, f"a path in the store {os.path.realpath(store_layout(S).storage)}")
    return found


def existing_realization(rref: RRef, S: StorageSettings) -> str:
    """Return the folder of a realization.

    Raises:
        MissingRealization: it is not there.
    """
    from pylightnix.errors import MissingRealization

    layout = store_layout(S)
    folder = layout.realization(rref)
    if not os.path.isdir(folder):
        raise MissingRealization(rref, folder)
    return folder


# --- targets ----------------------------------------------------------------------------------------------


def _is_target(text: str) -> bool:
    return text.endswith(".py") or ":" in text


def _found_target(text: str, S: StorageSettings) -> Optional[_Found]:
    from pylightnix.remote import realize_closure
    from pylightnix_client.errors import NotBuilt
    from pylightnix_client.planned import dry_run
    from pylightnix_client.resolve import instantiate_targets
    from pylightnix_client.session import hide_output_of_users
    from pylightnix_client.target import ModuleTarget, StoredTarget, parse_target

    target = parse_target(text)
    if isinstance(target, StoredTarget) or (isinstance(target, ModuleTarget) and target.stage is None and not _is_there(target.module)):
        return None
    if not os.path.isdir(store_layout(S).storage):
        raise NotBuilt(text, f"there is no store {store_layout(S).state}", text)
    hide_output_of_users()
    _, closure = instantiate_targets([target], {}, S, force=False)
    return _Found(text, closure.targets, target=dry_run(realize_closure, closure), is_symbolic=True)


def _is_there(module: str) -> bool:
    """Tell whether there is a module or a package of which `module` may be one. Imports nothing."""
    from importlib.machinery import PathFinder

    return PathFinder.find_spec(module.partition(".")[0], [*filter(None, [program_folder()]), *sys.path]) is not None


def _built(found: _Found, S: StorageSettings, by_name: bool) -> Sequence[Reference]:
    """Return the derivations of a target, or the realizations that `build` would give."""
    from pylightnix.query import drefrrefs
    from pylightnix_client.errors import NotBuilt

    if found.target is None:
        raise AssertionError("BUG: nobody looked whether it is a target")
    realized: list[Reference] = []
    for dref in map(DRef, found.refs):
        rrefs = found.target.context.get(dref)
        if not rrefs and not (by_name and drefrrefs(dref, S)):
            reason = next((step.reason for step in found.target.steps if step.dref == dref), "no realization")
            raise NotBuilt(found.named, f"{dref}: {reason}", found.named)
        realized += rrefs or ()
    return found.refs if by_name else realized


# --- what is in the store -------------------------------------------------------------------------------------


def stored_references(beginning: str, S: StorageSettings, kinds: Sequence[str]) -> Iterator[Reference]:
    """Yield the references in the store that begin with `beginning`, spelt with or without their kind."""
    from pylightnix.query import alldrefs, allrrefs

    sources: dict[str, Iterable[Reference]] = {"dref": alldrefs(S), "rref": allrrefs(S)}
    for kind in kinds:
        start = beginning if beginning.startswith(f"{kind}:") else f"{kind}:{beginning}"
        yield from (ref for ref in sources[kind] if ref.startswith(start))


def _of_hash(text: str, S: StorageSettings) -> list[Reference]:
    beginning = _BEGINNING.fullmatch(text)
    if beginning is None:
        return []
    return list(stored_references(text, S, [beginning["kind"]] if beginning["kind"] else _BOTH))


def _of_name(text: str, S: StorageSettings) -> list[DRef]:
    from pylightnix.query import alldrefs

    return [dref for dref in alldrefs(S) if undref(dref)[1] == text]


def _realizations(meant: _Found, S: StorageSettings) -> list[Reference]:
    """Return the realizations among the references that were meant, and those of the derivations among them."""
    from pylightnix.query import drefrrefs
    from pylightnix_client.errors import NotBuilt

    found: list[Reference] = []
    for ref in meant.refs:
        found += [ref] if isrref(ref) else sorted(drefrrefs(DRef(ref), S))
    if not found:
        raise NotBuilt(meant.named, f"{', '.join(meant.refs[:3])}: no realization", "FILE.py:STAGE")
    return found


def _only(text: str, refs: Sequence[Reference], S: StorageSettings, kinds: Sequence[str]) -> Reference:
    wanted = [ref for ref in dict.fromkeys(refs) if ref[:4] in kinds]
    if not wanted:
        what = f"{refs[0]}, a realization of {rref2dref(refs[0])}" if isrref(refs[0]) else refs[0]
        raise InvalidReference(text, f"{' or '.join(_KINDS[kind] for kind in kinds)}; this is {what}")
    if len(wanted) > 1:
        from pylightnix_client.candidates import candidate_lines
        from pylightnix_client.errors import AmbiguousReference

        raise AmbiguousReference(text, candidate_lines(wanted, S))
    return wanted[0]


def _suggestion(text: str, S: StorageSettings) -> str:
    """Return what the user may have meant, as part of a message."""
    import difflib

    from pylightnix.query import alldrefs

    if os.path.isfile(f"{text}.py"):
        return f"; did you mean {text}.py?"
    if not os.path.isdir(store_layout(S).storage):
        return f"; there is no store {store_layout(S).state}"
    if os.path.lexists(text):
        return f"; there is such a path, but it is not in the store {os.path.realpath(store_layout(S).storage)}"
    close = difflib.get_close_matches(text, {undref(dref)[1] for dref in alldrefs(S)}, n=1)
    return f"; did you mean {close[0]}?" if close else ""
