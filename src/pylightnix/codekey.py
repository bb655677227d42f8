"""What code a function is: a digest that is blind to formatting, comments and docstrings.

This is key 0: the normalised syntax tree of the functions and classes named, and nothing that they call
or refer to. The digest is the same in every process, on every machine and from Python 3.10 to 3.13,
where source text, `ast.dump`, bytecode and pickles are not. The version stands in the hashed bytes, so
that digests of another key never equal these. Must not know stages, configs' meaning or stores.

Wrappers are looked through: ``__wrapped__``, bound methods, partial calls (their arguments count),
instances with ``__call__`` (their class counts, their state does not).
"""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from pylightnix._definitions import class_definitions, function_definitions, name_of
from pylightnix._syntax import canonical_text
from pylightnix.config import canonical_bytes, mkconfig
from pylightnix.errors import CodeKeyError, Misuse, PylightnixException
from pylightnix.types import Hash

if TYPE_CHECKING:
    from pylightnix._syntax import Definition

__all__ = ["pyobjhash"]

_DOMAIN: Final = b"pylightnix-code-0\0"


def pyobjhash(pyobjs: Iterable[Any]) -> Hash:
    """Return the digest of the code of functions and classes, in the order given.

    Raises:
        CodeKeyError: the source of one cannot be found, or it has none.
    """
    if callable(pyobjs) or isinstance(pyobjs, str):
        raise Misuse(f"pyobjhash expects a list of functions and classes, found {name_of(pyobjs)}; write pyobjhash([…])")
    digest = hashlib.sha256(_DOMAIN)
    for pyobj in pyobjs:
        digest.update(_code_text(pyobj))
        digest.update(b"\0")  # which stands in no text, so that neighbours cannot run into each other
    return Hash(digest.hexdigest())


def _code_text(pyobj: Any) -> bytes:
    whole = pyobj
    seen: set[int] = set()
    while id(pyobj) not in seen:
        seen.add(id(pyobj))
        if isinstance(pyobj, type):
            return _the_text(pyobj, class_definitions(pyobj))
        if isinstance(pyobj, functools.partial):
            return _partial_text(pyobj)
        if isinstance(pyobj, types.MethodType):
            pyobj = pyobj.__func__
        elif getattr(pyobj, "__wrapped__", None) is not None:
            pyobj = pyobj.__wrapped__
        elif isinstance(pyobj, types.FunctionType):
            return _the_text(pyobj, function_definitions(pyobj))
        elif isinstance(pyobj, (types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType)):
            raise CodeKeyError(name_of(pyobj), "it is not written in Python; call it from a function of your own")
        elif callable(pyobj):
            pyobj = type(pyobj)
        else:
            raise CodeKeyError(name_of(pyobj), f"expected a function or a class, found a {type(pyobj).__name__}")
    raise CodeKeyError(name_of(whole), "its __wrapped__ leads back to itself")


def _the_text(pyobj: Any, definitions: Sequence[Definition]) -> bytes:
    texts = {canonical_text(node) for node in definitions}
    if len(texts) > 1:
        lines = ", ".join(sorted({str(node.lineno) for node in definitions}))
        raise CodeKeyError(name_of(pyobj), f"it may be any of {len(definitions)} on line {lines}; give each a line and a name of its own")
    return texts.pop()


def _partial_text(call: functools.partial[Any]) -> bytes:
    parts = [_code_text(call.func), *map(_argument_text, call.args)]
    parts += [ascii(name).encode("ascii") + b"=" + _argument_text(call.keywords[name]) for name in sorted(call.keywords)]
    return b"partial(" + b",".join(parts) + b")"


def _argument_text(value: Any) -> bytes:
    """Return what an argument of a partial call counts as: itself if it is JSON or code, else its type only."""
    try:
        return ascii(canonical_bytes(mkconfig({"value": value}).val)).encode("ascii")
    except PylightnixException:
        return (
            _code_text(value)
            if callable(value)
            else f"<{type(value).__module__}.{type(value).__qualname__}>".encode("ascii", "backslashreplace")
        )
