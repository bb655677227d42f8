"""What differs between a derivation or realization and an older one: the first thing that a person wants to be told.

Pure: compares values that others have read. Must not know stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Optional

from pylightnix.codekey import CodeManifest
from pylightnix.errors import shown
from pylightnix.refs import isdref
from pylightnix.types import DRef

__all__ = ["ConfigChange", "code_change", "config_changes"]

_SOURCE: Final = "__source__"
_SHOWN_CHARACTERS: Final = 60
_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One place in which two configs differ."""

    path: str
    """Such as ``a.b[0]``."""
    text: str
    """What differs there, in words; nothing for a dependency."""
    deps: Optional[tuple[DRef, DRef]] = None
    """The new and the old derivation, where the place names one in both."""


def config_changes(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[ConfigChange]:
    """Return in what two configs differ but for the code: plain values first, then dependencies, each by their place."""
    found = [change for key in sorted(new.keys() | old.keys()) if key != _SOURCE for change in _changes(key, *_both(new, old, key))]
    return sorted(found, key=lambda change: change.deps is not None)


def _both(new: Mapping[str, Any], old: Mapping[str, Any], key: str) -> tuple[Any, Any]:
    return new.get(key, _MISSING), old.get(key, _MISSING)


def _changes(path: str, new: Any, old: Any) -> Iterator[ConfigChange]:
    if isinstance(new, dict) and isinstance(old, dict):
        for key in sorted(new.keys() | old.keys()):
            yield from _changes(f"{path}.{key}", *_both(new, old, key))
    elif isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        for i, (item, before) in enumerate(zip(new, old, strict=True)):
            yield from _changes(f"{path}[{i}]", item, before)
    elif isdref(new) and isdref(old):
        if new != old:
            yield ConfigChange(path, "", (DRef(new), DRef(old)))
    elif old is _MISSING:
        yield ConfigChange(path, f"the config value {path} is new: {_shown(new)}")
    elif new is _MISSING:
        yield ConfigChange(path, f"the config value {path} is gone; it was {_shown(old)}")
    elif type(new) is not type(old) or repr(new) != repr(old):  # a NaN is like another; 1 is not like 1.0, nor like true
        yield ConfigChange(path, f"the config value {path} is {_shown(new)}, and was {_shown(old)}")


def _shown(value: Any) -> str:
    return shown(value, _SHOWN_CHARACTERS)


def code_change(new: CodeManifest, old: CodeManifest) -> Optional[str]:
    """Return the first thing in which the code of two realizers differs; None if there is nothing.

    What both reach is looked at first: what is reached anew is so because something else was changed.
    """
    if new.key != old.key:
        return f"the key's version changed: code counts by version {new.key}, and did by version {old.key}"
    for kind, name, before, now in code_changes(old, new):
        return f"the {kind} {name}" + (f" is {now}, and was {before}" if now != before else " changed")
    pairs = _pairs(old, new)
    for name in sorted(new.entries.keys() - {name for _, name in pairs}):
        return f"the {new.entries[name].kind} {name} is reached, and was not"
    for name in sorted(old.entries.keys() - {name for name, _ in pairs}):
        return f"the {old.entries[name].kind} {name} was reached, and is not any more"
    return None


def code_changes(old: CodeManifest, new: CodeManifest) -> Iterator[tuple[str, str, str, str]]:
    """Yield kind, name, and how old and new value are shown, of what two digests both cover and that differs."""
    for before, now in _pairs(old, new):
        entry, former = new.entries[now], old.entries[before]
        if entry.digest != former.digest:
            yield entry.kind, now, former.shown, entry.shown


def _pairs(old: CodeManifest, new: CodeManifest) -> list[tuple[str, str]]:
    """Return the old and the new name of what two digests both cover, by the new name.

    A name is the same in another module, too: a script is `__main__` when it runs, and code moves.
    """
    pairs = [(name, name) for name in new.entries.keys() & old.entries.keys()]
    gone, come = (_by_own_name(one, one.entries.keys() - other.entries.keys()) for one, other in ((old, new), (new, old)))
    pairs += [(gone[key][0], come[key][0]) for key in gone.keys() & come.keys() if len(gone[key]) == len(come[key]) == 1]
    return sorted(pairs, key=lambda pair: pair[1])


def _by_own_name(manifest: CodeManifest, names: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for name in sorted(name for name in names if manifest.entries[name].kind != "external"):
        found.setdefault((manifest.entries[name].kind, name.rpartition(".")[2]), []).append(name)
    return found
