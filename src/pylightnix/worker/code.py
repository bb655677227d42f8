"""Whether the code that a worker has is the code that a build was asked for with.

Code of another digest is refused, with one exception: where no file changed and only values of modules differ, each
process makes them anew, and the program's values are taken. Must not know how a build runs.
"""

from __future__ import annotations

import functools
import sys
import types
from typing import Any, Optional

from pylightnix.codekey import CodeManifest, code_manifest
from pylightnix.comparison import code_change
from pylightnix.errors import CodeKeyError, Misuse
from pylightnix.stagebody import named
from pylightnix.travel.claims import CodeClaim, changed_file, differences, take_values
from pylightnix.travel.failures import CodeChanged
from pylightnix.travel.script import Script
from pylightnix.types import DRef

__all__ = ["checked_code"]

_ADVICE = "each process makes it anew, so pass it to the stage as a parameter"


def checked_code(
    realizer: Any, dref: DRef, digest: Optional[str], claim: Optional[CodeClaim], told: Optional[list[str]] = None
) -> Optional[str]:
    """Return what the digest covers, as JSON, if that can be told.

    Args:
        realizer: what is about to run.
        dref: what is built.
        digest: the code that was asked for; None to take what comes.
        claim: what the program says of that code, if it says anything. Values of modules may be bound to those that it has.
        told: gets a sentence for each value that differs.

    Raises:
        CodeChanged: the code is another one.
    """
    if digest is None:
        return None
    found = _manifest(realizer)
    if found is not None and found.digest == digest:
        return found.to_json()
    if _came_by_value(realizer):
        return None if claim is None else claim.manifest
    claimed = _claimed(claim)
    if claim is not None and claim.stale:
        raise CodeChanged(dref, digest, "", claim.stale)
    if claim is None or claimed is None or found is None or claimed.digest != digest:
        raise CodeChanged(dref, digest, "no source" if found is None else found.digest)
    _settle(dref, claim, claimed, found, [] if told is None else told)
    return claim.manifest


def _settle(dref: DRef, claim: CodeClaim, claimed: CodeManifest, found: CodeManifest, told: list[str]) -> None:
    """Take over the values that differ, and warn of them; refuse if anything else does."""
    which = list(differences(claim, claimed, found))
    code = [difference for difference in which if not difference.is_value]
    what = (code or which)[0].text if which else str(code_change(found, claimed))
    changed = changed_file(claim)
    if changed is not None:
        what = f"{changed}: {what}"
    elif code or not which:
        what = f"{what}; no file changed, so the process decides which one is taken"
    else:
        taken = take_values(claim, [difference.name for difference in which])
        for difference in which:
            whose = "program" if difference.name in taken else "worker"
            told.append(f"{difference.text}; that of the {whose} is used; {_ADVICE}")
            sys.stderr.write(f"warning: {told[-1]}\n")
        return
    raise CodeChanged(dref, claimed.digest, found.digest, what)


def _manifest(realizer: Any) -> Optional[CodeManifest]:
    try:
        return code_manifest([realizer])
    except CodeKeyError:
        return None


def _claimed(claim: Optional[CodeClaim]) -> Optional[CodeManifest]:
    try:
        return CodeManifest.from_json(claim.manifest) if claim is not None else None
    except Misuse:
        return None


def _came_by_value(pyobj: Any) -> bool:
    """Tell whether the code itself has travelled. It is what it was then, and its file, if there is one, does not count."""
    while True:
        if isinstance(pyobj, types.MethodType):
            pyobj = pyobj.__func__
        elif isinstance(pyobj, functools.partial):
            pyobj = pyobj.func
        elif not isinstance(pyobj, type) and getattr(pyobj, "__wrapped__", None) is not None:
            pyobj = pyobj.__wrapped__
        elif isinstance(pyobj, (types.FunctionType, type)) and isinstance(sys.modules.get(pyobj.__module__), Script):
            return True
        elif isinstance(pyobj, types.FunctionType):
            module = sys.modules.get(pyobj.__module__)
            return module is None or vars(module) is not pyobj.__globals__
        elif isinstance(pyobj, type):
            return named(pyobj) is not pyobj
        else:
            pyobj = type(pyobj)
