"""Names that `pylightnix` had of others: they resolve, say where they are from, and are not offered."""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import os
import subprocess
import sys
import textwrap
import typing
from typing import Any

import pytest

import pylightnix
from pylightnix._formerly import FORMERLY

MEANINGS: dict[str, Any] = {
    **{name: getattr(typing, name) for name in ("Any", "Callable", "Dict", "Iterable", "List", "Optional", "Tuple", "Union")},
    "ast_dump": ast.dump,
    "basename": os.path.basename,
    "dedent": textwrap.dedent,
    "deepcopy": copy.deepcopy,
    "getsourcelines": inspect.getsourcelines,
    "isfile": os.path.isfile,
    "islink": os.path.islink,
    "parse": ast.parse,
    "partial": functools.partial,
    "readlink": os.readlink,
}


def test_these_and_no_others() -> None:
    assert set(FORMERLY) == set(MEANINGS)
    assert not set(FORMERLY) & set(pylightnix.__all__)
    assert not set(FORMERLY) & set(vars(pylightnix)), "what is there already gives no warning"


@pytest.mark.parametrize("name", MEANINGS)
def test_the_name_means_what_it_meant_and_says_so(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"^{name} is not of pylightnix; import .* from ") as caught:
        assert getattr(pylightnix, name) is MEANINGS[name]
    assert caught[0].filename == __file__, "of the line that asked"


@pytest.mark.parametrize("name", ["nothing", "ast", "__path", "dump", "logger"])
def test_any_other_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'pylightnix' has no attribute '{name}'") as caught:
        getattr(pylightnix, name)
    assert caught.value.name == name
    assert not hasattr(pylightnix, name)


def test_d66_a_star_import_brings_ours_only() -> None:
    script = "from pylightnix import *\nprint(*(name for name in dir() if not name.startswith('__')))"
    child = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr
    assert set(child.stdout.split()) == {name for name in pylightnix.__all__ if not name.startswith("__")}
