"""Names that `from pylightnix import *` brought along in 0.x besides ours, and the modules in which 0.x had our names.

A name is resolved when it is asked for, so that `import pylightnix` stays fast. A star import gets them silently, since the
program did not choose them. A program that names one that is not ours is told where it belongs.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any, Final

__all__ = ["FORMERLY", "MODULES", "formerly", "widen"]

_OF_MODULES: Final = {
    "ast": "parse",
    "calendar": "timegm",
    "collections": "OrderedDict defaultdict",
    "contextlib": "contextmanager",
    "copy": "deepcopy",
    "dataclasses": "dataclass",
    "datetime": "datetime",
    "errno": "EEXIST ENOTEMPTY",
    "fnmatch": "fnmatch",
    "functools": "partial",
    "hashlib": "sha1 sha256",
    "inspect": "getsourcelines signature",
    "itertools": "chain",
    "os": "chmod environ listdir lstat makedirs mkdir readlink remove rename replace rmdir scandir stat symlink walk",
    "os.path": "abspath basename dirname getsize isabs isdir isfile islink join normpath realpath relpath split splitext",
    "queue": "PriorityQueue",
    "shutil": "copyfile copytree rmtree",
    "stat": "ST_MODE S_IREAD S_IRGRP S_IROTH S_IWGRP S_IWOTH S_IWRITE S_IXGRP S_IXOTH S_IXUSR",
    "subprocess": "Popen",
    "sys": "maxsize",
    "tempfile": "mkdtemp",
    "textwrap": "dedent",
    "threading": "get_ident",
    "time": "gmtime strftime strptime",
    "traceback": "format_exc",
    "typing": "Any Callable Dict Generator Generic IO Iterable Iterator List NamedTuple NewType Optional Set"
    " SupportsAbs Tuple TypeVar Union",
    "unicodedata": "normalize",
    "urllib.parse": "urlparse",
}
_OTHERWISE_CALLED: Final = {
    "InspectParameter": "inspect.Parameter",
    "ast_dump": "ast.dump",
    "find_executable": "shutil.which",
    "json_dump": "json.dump",
    "json_dumps": "json.dumps",
    "json_load": "json.load",
    "json_loads": "json.loads",
    "re_match": "re.match",
    "re_sub": "re.sub",
    "sha1sum": "hashlib.sha1",
    "sha256sum": "hashlib.sha256",
    "shutil_copy": "shutil.copy",
    "threading_local": "threading.local",
}
_RELICS: Final = "APACK AUNPACK C CURL D DRefLike TL WGET try_executable"

FORMERLY: Final = {
    **{name: f"{module}.{name}" for module, names in _OF_MODULES.items() for name in names.split()},
    **_OTHERWISE_CALLED,
    **{name: f"pylightnix._relics.{name}" for name in _RELICS.split()},
}
"""Each name that is not ours (any more), with where it is to be had."""
_OWN_MODULES: Final = "arch bashlike build core deco either garb imports lens repl stages types tz utils"
MODULES: Final = {
    **{name: f"pylightnix.{name}" for name in _OWN_MODULES.split()},
    **{name: f"pylightnix.stages.{name}" for name in ("fetch2", "trivial")},
}
"""Modules of ours that a star import brings. `pylightnix.fetch`, which is loaded anyway, stands for ``stages.fetch``."""


def formerly(name: str) -> Any:
    """Return what `name` stands for in `pylightnix`, whose ``__getattr__`` this is.

    Raises:
        AttributeError: it stands for nothing.
    """
    return _found(name, "pylightnix", sys._getframe(1))


def widen(*names: str) -> None:
    """Let these modules have every name of `pylightnix`, for 0.x had many names in other modules than we have."""
    for name in names:
        module = sys.modules[name]
        module.__getattr__ = _getattr_of(module)  # type: ignore[method-assign]  # what a module may have (PEP 562)


def _getattr_of(module: ModuleType) -> Callable[[str], Any]:
    def getattr_of(name: str) -> Any:
        package = sys.modules["pylightnix"]
        if name in package.__all__ and name in package.__dict__:
            return package.__dict__[name]
        return _found(name, module.__name__, sys._getframe(1))

    return getattr_of


def _found(name: str, module: str, asker: FrameType) -> Any:
    if name == "PYLIGHTNIX_REPL_HELPER":  # another one after each `repl_realize`
        return getattr(importlib.import_module("pylightnix.repl"), name)
    if name in MODULES:
        return importlib.import_module(MODULES[name])
    place = FORMERLY.get(name)
    if place is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}", name=name)
    home, _, own = place.rpartition(".")
    found = getattr(importlib.import_module(home), own)
    if not _is_by_star(asker):
        advice = "nothing of it is used any more" if name in _RELICS.split() else f"import {own} from {home}"
        warnings.warn(f"{name} is not of pylightnix; {advice}", DeprecationWarning, stacklevel=3)
    return found


def _is_by_star(asker: FrameType) -> bool:
    """Tell whether a name is asked for by ``from … import *``, or by the import system, which looks ahead for what is imported."""
    import opcode

    if asker.f_code.co_filename.startswith("<frozen importlib"):
        return True
    code, at = asker.f_code.co_code, asker.f_lasti
    instruction = opcode.opname[code[at]]
    # Python 3.12 made the instruction one of its "intrinsics", of which it is number 2.
    return instruction == "IMPORT_STAR" or (instruction == "CALL_INTRINSIC_1" and code[at + 1] == 2)
