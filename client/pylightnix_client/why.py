"""Why something is not what was realized before: it, or what it depends on, compared with the nearest older realization.

Reads the store. What differs is found by `pylightnix.comparison`. Must not build anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Optional

from pylightnix.codekey import CodeManifest
from pylightnix.comparison import code_change, config_changes
from pylightnix.errors import Misuse
from pylightnix.query import alldrefs, direct_context, drefcfg_, drefrrefs, realization_info
from pylightnix.refs import rref2dref, undref
from pylightnix.remote import ask_store
from pylightnix.storage import store_layout
from pylightnix.store.index import RealizationInfo
from pylightnix.types import DRef, RRef, StorageSettings

__all__ = ["Answer", "Comparing"]

_CANDIDATES: Final = 1000
"""Among how many of the latest realizations of a name the nearest is looked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Why something is not an older realization."""

    ref: str
    older: Optional[RRef]
    """The nearest; None if there is none."""
    reason: str


class Comparing:
    """Compares in one store.

    Args:
        S: the store.
        manifest_of: what code a derivation's realizer is now; None of one that is not at hand.
    """

    def __init__(self, S: StorageSettings, manifest_of: Callable[[DRef], Optional[CodeManifest]] = lambda dref: None) -> None:
        self._S, self._manifest_of = S, manifest_of
        self._named: Optional[dict[str, list[DRef]]] = None
        # A plan asks about many derivations of one name, which all have the same candidates.
        self._infos = cache(self._read_infos)
        self._config = cache(lambda dref: drefcfg_(dref, S).val)

    def realization(self, rref: RRef) -> Answer:
        """Tell why a realization is not an older one."""
        info = realization_info(rref, self._S)
        if info is None:
            return Answer(rref, None, "it does not count as realized: the store's index does not know it")
        dref = rref2dref(rref)
        older = self._nearest(dref, lambda found: found.rref != rref and found.started <= info.started)
        if older is None:
            return Answer(rref, None, "nothing of this name was realized before")
        deps, before = self._deps(rref), self._deps(older.rref)
        return Answer(rref, older.rref, self._reason(dref, self._recorded(info), deps, older, before))

    def derivation(self, dref: DRef, context: Optional[Mapping[DRef, Any]] = None) -> Answer:
        """Tell why the realizations that there are do not do for a derivation, with these realizations of its dependencies if known."""
        older = self._nearest(dref, lambda found: True)
        if older is None:
            return Answer(dref, None, "nothing of this name was realized before")
        before = self._deps(older.rref)
        deps = {dep: sorted(context[dep] or []) if context and context.get(dep) else before.get(dep) for dep in before}
        return Answer(dref, older.rref, self._reason(dref, self._code(dref), deps, older, before))

    # --- what differs -------------------------------------------------------------------------------

    def _reason(
        self,
        dref: DRef,
        code: Optional[CodeManifest],
        deps: Mapping[DRef, Any],
        older: RealizationInfo,
        before: Mapping[DRef, Any],
    ) -> str:
        if dref != older.dref:
            return self._between(dref, code, older.dref, self._recorded(older))
        for dep in sorted(before):
            if deps.get(dep) != before[dep]:
                new, old = (", ".join(rrefs or []) or "none" for rrefs in (deps.get(dep), before[dep]))
                return f"its dependency {dep} is realized as {new}, and was as {old}"
        said = self._code_reason(code, self._recorded(older))
        wanted = "its matcher wants another realization, or it was forced"
        return wanted if said is None else f"{wanted}; {said}"

    def _between(self, new: DRef, code: Optional[CodeManifest], old: DRef, before: Optional[CodeManifest]) -> str:
        """Return the first difference of two derivations, in what they depend on if it is there."""
        way = ""
        while True:
            configs = self._config(new), self._config(old)
            changes = config_changes(*configs)
            if not changes:
                which = "was" if before is None else "is"
                unknown = f"its code changed; what its code {which} is not recorded, so nothing more can be told"
                return way + (self._code_reason(code, before) or unknown)
            change = changes[0]
            if change.deps is None:
                return way + change.text
            # Before the code, which may reach the function of that very dependency.
            new, old = change.deps
            way += f"its dependency {change.path} is another derivation, {new}, of which "
            code, before = self._code(new), self._built_code(old)

    @staticmethod
    def _code_reason(code: Optional[CodeManifest], before: Optional[CodeManifest]) -> Optional[str]:
        return None if code is None or before is None else code_change(code, before)

    # --- what is known --------------------------------------------------------------------------------

    def _nearest(self, dref: DRef, counts: Callable[[RealizationInfo], bool]) -> Optional[RealizationInfo]:
        """Return the realization of this name in whose config the least differs; of several, the latest."""
        found = [info for same in self._of_name(dref) for info in self._infos(same) if counts(info)]
        latest = sorted(found, key=lambda info: (-info.started, info.rref))[:_CANDIDATES]
        config = self._config(dref)

        def distance(info: RealizationInfo) -> tuple[bool, int]:
            # The same derivation is nearest, of course.
            return info.dref != dref, len(config_changes(config, self._config(info.dref)))

        return min(latest, key=distance, default=None)

    def _of_name(self, dref: DRef) -> list[DRef]:
        if self._named is None:
            self._named = {}
            for known in alldrefs(self._S):
                self._named.setdefault(undref(known)[1], []).append(known)
        return self._named.get(undref(dref)[1], [])

    def _read_infos(self, dref: DRef) -> list[RealizationInfo]:
        return [info for rref in drefrrefs(dref, self._S) if (info := realization_info(rref, self._S)) is not None]

    def _deps(self, rref: RRef) -> dict[DRef, list[RRef]]:
        deps, _ = direct_context(store_layout(self._S), rref)
        return {dep: sorted(rrefs) for dep, rrefs in deps.items()}

    def _code(self, dref: DRef) -> Optional[CodeManifest]:
        return self._manifest_of(dref) or self._built_code(dref)

    def _built_code(self, dref: DRef) -> Optional[CodeManifest]:
        latest = max(self._infos(dref), key=lambda info: info.started, default=None)
        return None if latest is None else self._recorded(latest)

    def _recorded(self, info: RealizationInfo) -> Optional[CodeManifest]:
        digest = info.realizer_digest
        if digest is None:
            return None
        text = ask_store(self._S, lambda store: store.index.code(digest), lambda client: client.code(digest))
        try:
            return None if text is None else CodeManifest.from_json(text)
        except Misuse:
            return None  # of another version
