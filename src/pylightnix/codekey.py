"""What code a function is: a digest that is blind to formatting, comments and docstrings, and what went into it.

This is key 2: the normalised syntax trees of the functions and classes named and of all that they reach by name
in the project's own files, the values of the data that they reach, and how these refer to each other.
Installed packages and the standard library count by name. The digest is the same in every process, on
every machine and from Python 3.11 to 3.13, where source text, `ast.dump`, bytecode and pickles are not.
Names of modules and paths of files do not count. The version stands in the hashed bytes, so that digests
of another key never equal these. Must not know stages, configs' meaning or stores.

Wrappers are looked through: ``__wrapped__``, bound methods (their object counts), partial calls (their
arguments count), instances with ``__call__`` (their class and attributes count).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Optional

import pylightnix._started  # noqa: F401  # now, for it must not be younger than the modules of a program that forks
from pylightnix._codegraph import Node, View, entry_digest, hashes, own_hash
from pylightnix._codewalk import CodeWalk
from pylightnix._definitions import name_of
from pylightnix._origins import package_of, package_versions
from pylightnix._unseen import Line
from pylightnix.errors import CodeKeyError, Misuse
from pylightnix.types import Hash

__all__ = ["CodeEntry", "CodeManifest", "CodeTerms", "Track", "UnseenCode", "code_manifest", "pyobjhash", "source_digest"]

Track = Literal["closure", "strict", "packages", "function"]
"""What counts as the code of a function: all that it reaches; the same, and what cannot be seen is an error;
all and the versions of the packages it reaches; or the function alone."""

_KEY: Final = 2
"""Version of the rules by which code counts."""
_DOMAIN: Final = b"pylightnix-code-%d\0" % _KEY
_KEPT: Final = 4096
_NODES_KEPT: Final = 50_000
"""A graph that has grown larger is begun anew, which lets go of the values that it holds."""


class UnseenCode(UserWarning):
    """A function reaches something that its digest cannot cover: if that changes, nothing is built anew."""


@dataclass(frozen=True, slots=True)
class CodeTerms:
    """How the code of something is to be identified. Wrappers of this package have it as `code_terms`."""

    version: Optional[str] = None
    """Stands in place of the code."""
    track: Track = "closure"
    sourcedeps: tuple[Any, ...] = ()
    """What counts as this code, too."""


@dataclass(frozen=True, slots=True)
class CodeEntry:
    """One thing that a digest covers."""

    kind: str
    """``function``, ``class``, ``data``, ``state`` (data that the code itself changes: what binds it counts),
    ``wrapper`` (a decorated function), ``external`` (of an installed package), ``version``."""
    digest: str
    """Of this definition or value alone, 64 hex digits."""
    shown: str = ""
    """A short rendering of data."""


@dataclass(frozen=True)  # without slots, to remember its text
class CodeManifest:
    """What a digest of code covers, so that two of them can be compared name by name."""

    digest: Hash
    """What `pyobjhash` returns."""
    entries: Mapping[str, CodeEntry]
    """By name: module and qualified name."""
    unresolved: tuple[str, ...]
    """What was reached and could not be seen, a sentence each."""
    packages: Mapping[str, str]
    """Versions of the distributions that were reached, by name."""
    key: int = _KEY
    """Version of the rules by which code counts; digests of two versions are never equal."""

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        return self._json

    @functools.cached_property
    def _json(self) -> str:
        entries = {name: [entry.kind, entry.digest, entry.shown] for name, entry in self.entries.items()}
        found = {
            "digest": self.digest,
            "entries": entries,
            "unresolved": list(self.unresolved),
            "packages": dict(self.packages),
            "key": self.key,
        }
        return json.dumps(found, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> CodeManifest:
        """Return the manifest of a JSON text that `to_json` made.

        Raises:
            Misuse: it is no such text.
        """
        try:
            found = json.loads(text)
            entries = {str(name): CodeEntry(*map(str, entry)) for name, entry in found["entries"].items()}
            packages = {str(name): str(version) for name, version in found["packages"].items()}
            # Manifests of the first version do not have it.
            return cls(Hash(found["digest"]), entries, tuple(map(str, found["unresolved"])), packages, int(found.get("key", 1)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Misuse(f"expected the manifest of a digest of code as JSON, found {text[:80]!r}") from error


def pyobjhash(pyobjs: Iterable[Any]) -> Hash:
    """Return the digest of the code of functions and classes, in the order given, and of all that they reach.

    What they reach and cannot be seen, by a name made at run time for example, does not count;
    `code_manifest` tells what is known of it.

    Raises:
        CodeKeyError: the source of one cannot be found, or it has none.
    """
    return _found(_listed(pyobjs)).digest


def code_manifest(pyobjs: Iterable[Any]) -> CodeManifest:
    """Return the digest of the code of functions and classes with what it covers.

    Raises:
        CodeKeyError: the source of one cannot be found, or it has none.
    """
    return _found(_listed(pyobjs)).manifest()


def source_digest(pyobj: Any) -> Hash:
    """Return the digest of the code of one function, as a config holds it, and warn once of what it cannot cover.

    Raises:
        CodeKeyError: its source cannot be found, or it has none.
    """
    found = _found([pyobj])
    _warn(_innermost(pyobj), found)
    return found.digest


_told: Final[set[tuple[Optional[Line], str]]] = set()


def _warn(function: Any, found: _Found) -> None:
    """Warn once of each thing that a digest cannot cover, at the line that leads there."""
    for sentence in found.unseen():
        contents = (content for _, view in found.views for content in view.values())
        line = next((line for content in contents if (line := content.problems.get(sentence))), None)
        code = getattr(function, "__code__", None)
        if line is None and code is not None:
            line = Line(code.co_filename, code.co_firstlineno)
        if (line, sentence) in _told:
            continue
        _told.add((line, sentence))
        import warnings

        what = f"{name_of(function)} reaches what its digest does not cover: {sentence}"
        advice = "name it directly, pass sourcedeps=[…], or say options=Options(version=…)"
        if line is None:
            warnings.warn(f"{what}; {advice}", UnseenCode, stacklevel=4)
        else:
            warnings.warn_explicit(f"{what}; {advice}", UnseenCode, line.filename, line.number)


def _listed(pyobjs: Iterable[Any]) -> list[Any]:
    if callable(pyobjs) or isinstance(pyobjs, str):
        raise Misuse(f"pyobjhash expects a list of functions and classes, found {name_of(pyobjs)}; write pyobjhash([…])")
    return list(pyobjs)


# --- one digest -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Found:
    """A digest, and what it rests on."""

    asked: tuple[Any, ...]
    digest: Hash
    views: tuple[tuple[CodeWalk, View], ...]
    versions: tuple[str, ...]
    known: Optional[CodeManifest] = None

    def manifest(self) -> CodeManifest:
        if self.known is None:
            entries = {f"version {text!r}": CodeEntry("version", own_hash(b"version", text.encode()).hex(), text) for text in self.versions}
            for _, view in self.views:
                entries |= _entries(view)
            packages = package_versions(_packages(view for _, view in self.views))
            self.known = CodeManifest(self.digest, entries, self.unseen(), packages)
        return self.known

    def unseen(self) -> tuple[str, ...]:
        return _unseen(view for _, view in self.views)

    def holds(self) -> bool:
        return all(walk.holds(view) for walk, view in self.views)

    def still_holds(self) -> bool:
        """Tell the same of a digest that was found just now: what had been found before it may hold no more."""
        return all(walk.holds(view, walk.fresh) for walk, view in self.views)


_known: dict[tuple[int, ...], _Found] = {}
_knowing: Final = threading.Lock()
_walks: dict[bool, CodeWalk] = {}
_walking: Final = threading.Lock()


def _found(pyobjs: Sequence[Any]) -> _Found:
    """Return the digest, which is found once as long as nothing that it rests on changes."""
    key = tuple(map(id, pyobjs))
    found = _known.get(key)
    # With the objects themselves in hand no other can have got an id of theirs.
    if found is not None and found.holds():
        return found
    found = _made_in_shared(pyobjs)
    with _knowing:
        _known.pop(key, None)
        _known[key] = found
        while len(_known) > _KEPT:
            _known.pop(next(iter(_known)))
    return found


def _made_in_shared(pyobjs: Sequence[Any]) -> _Found:
    """Walk on from what other digests found, if that still holds."""
    # Not by waiting: a walk may import modules, and these may ask for digests themselves.
    if not _walking.acquire(blocking=False):
        return _made(pyobjs, {})
    try:
        if any(walk.size > _NODES_KEPT for walk in _walks.values()):
            _walks.clear()
        is_new = not _walks
        for walk in _walks.values():
            walk.fresh.clear()
        try:
            found = _made(pyobjs, _walks)
            if is_new or found.still_holds():
                return found
        except BaseException:
            _walks.clear()
            if is_new:
                raise
        _walks.clear()
        return _made(pyobjs, _walks)
    finally:
        _walking.release()


def _made(pyobjs: Sequence[Any], walks: dict[bool, CodeWalk]) -> _Found:
    parts: list[tuple[bool, Node] | bytes] = []
    roots: dict[bool, list[Node]] = {True: [], False: []}
    versions: list[str] = []
    is_packaged = False
    for pyobj in pyobjs:
        terms = _terms_of(pyobj)
        follow = terms.track != "function"
        walk = walks.setdefault(follow, CodeWalk(follow))
        if terms.version is not None:
            versions.append(terms.version)
            parts.append(own_hash(b"version", terms.version.encode("utf-8", "surrogatepass")))
        nodes = [walk.root(item) for item in [*([pyobj] if terms.version is None else []), *terms.sourcedeps]]
        parts += [(follow, node) for node in nodes]
        roots[follow] += nodes
        if terms.track == "strict" and (unseen := _unseen([walk.view(nodes)])):
            raise CodeKeyError(name_of(pyobj), f"it reaches what cannot be seen: {'; '.join(unseen)}")
        is_packaged = is_packaged or terms.track == "packages"
    views = {follow: walks[follow].view(nodes) for follow, nodes in roots.items() if nodes}
    hashed = {follow: hashes(view) for follow, view in views.items()}
    digest = hashlib.sha256(_DOMAIN)
    for part in parts:
        digest.update((part if isinstance(part, bytes) else hashed[part[0]][part[1]]) + b"\0")
    if is_packaged:
        digest.update(json.dumps(package_versions(_packages(views.values())), sort_keys=True).encode())
    seen = tuple((walks[follow], view) for follow, view in views.items())
    return _Found(tuple(pyobjs), Hash(digest.hexdigest()), seen, tuple(versions))


def _innermost(pyobj: Any) -> Any:
    """Return what the wrappers of this package wrap."""
    while package_of(type(pyobj).__module__) == "pylightnix" and getattr(pyobj, "__wrapped__", None) is not None:
        pyobj = pyobj.__wrapped__
    return pyobj


def _terms_of(pyobj: Any) -> CodeTerms:
    """Return the terms of a wrapper of this package and of what it wraps; those outside come first."""
    found: list[CodeTerms] = []
    while package_of(type(pyobj).__module__) == "pylightnix":
        terms = getattr(pyobj, "code_terms", None)
        found += [terms] if isinstance(terms, CodeTerms) else []
        pyobj = getattr(pyobj, "__wrapped__", None)
    version = next((terms.version for terms in found if terms.version is not None), None)
    track: Track = next((terms.track for terms in found if terms.track != "closure"), "closure")
    return CodeTerms(version, track, tuple(item for terms in found for item in terms.sourcedeps))


def _unseen(views: Iterable[View]) -> tuple[str, ...]:
    return tuple(sorted({problem for view in views for content in view.values() for problem in content.problems}))


def _entries(view: View) -> dict[str, CodeEntry]:
    found: dict[str, CodeEntry] = {}
    named = [
        (_name_in_file(node.name), content, entry_digest(node, view))
        for node, content in view.items()
        if node.name and not content.is_absent
    ]
    for name, content, own in sorted(named, key=lambda item: (item[0], item[2])):
        free, number = name, 2
        while free in found and found[free].digest != own:
            free, number = f"{name} #{number}", number + 1
        found[free] = CodeEntry(content.kind, own, content.shown)
    return found


def _name_in_file(name: str) -> str:
    """Return a name of the program that runs as it is where others import it: `q.scale` for `__main__.scale` of q.py."""
    if not name.startswith("__main__."):
        return name
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    module = spec.name.removesuffix(".__main__") if spec is not None else os.path.basename(getattr(main, "__file__", None) or "")
    return f"{module.removesuffix('.py') or '__main__'}.{name.partition('.')[2]}"


def _packages(views: Iterable[View]) -> set[str]:
    externals = (content.text for view in views for content in view.values() if content.kind == "external")
    return {package_of(text.decode("ascii", "replace").partition(":")[0]) for text in externals}
