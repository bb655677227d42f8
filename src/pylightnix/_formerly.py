"""Names of other packages that `pylightnix` once had by accident and that programs came to import from it."""

from __future__ import annotations

import importlib
import warnings
from typing import Any, Final

__all__ = ["FORMERLY", "formerly"]

FORMERLY: Final = {
    **dict.fromkeys(("Any", "Callable", "Dict", "Iterable", "List", "Optional", "Tuple", "Union"), "typing"),
    **dict.fromkeys(("basename", "isfile", "islink"), "os.path"),
    "ast_dump": "ast",
    "dedent": "textwrap",
    "deepcopy": "copy",
    "getsourcelines": "inspect",
    "parse": "ast",
    "partial": "functools",
    "readlink": "os",
}
"""Each name with the module that has it."""
_OTHERWISE_CALLED: Final = {"ast_dump": "dump"}


def formerly(name: str) -> Any:
    """Return what `name` stood for, with a warning that says where it is to be had. It is the ``__getattr__`` of `pylightnix`.

    Raises:
        AttributeError: it stood for nothing.
    """
    module = FORMERLY.get(name)
    if module is None:
        raise AttributeError(f"module 'pylightnix' has no attribute {name!r}", name=name)
    own = _OTHERWISE_CALLED.get(name, name)
    warnings.warn(f"{name} is not of pylightnix; import {own} from {module}", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(module), own)
