"""How the function of a stage is called when its derivation is built: parameters from config, once per output.

Must not know how stages are declared or registered.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

from pylightnix.attrs import Unroller
from pylightnix.build import Build, build_outpaths, stored_config
from pylightnix.errors import Misuse, shown
from pylightnix.workfolder import sample_folder

if TYPE_CHECKING:
    import inspect

__all__ = ["RunSamples", "SOURCE_KEY", "SUPPLIED", "StageBody", "check_runs_when_called", "named", "parameters_of", "tell_returned"]

SOURCE_KEY: Final = "__source__"
"""The config item that holds the digest of the code."""
SUPPLIED: Final = frozenset({"build", "rindex"})
"""Parameters that the build supplies, so that their defaults are no config."""
RunSamples: TypeAlias = Callable[[int, Callable[[int], None]], None]
"""Calls a function, which makes one sample, once with each number below a count."""


def parameters_of(f: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a stage's function, by name."""
    import inspect

    try:
        return dict(inspect.signature(f).parameters)
    except (TypeError, ValueError) as error:
        raise Misuse(f"autostage expects a Python function, found {f!r:.200}") from error


@dataclass(frozen=True, slots=True)
class StageBody:
    """The function of a stage, called as the config says. An instance, so that it can be pickled by name."""

    f: Callable[..., Any]
    nouts: int
    always_multiref: bool

    gives_build_to_rest: ClassVar[bool] = False
    """Whether ``**`` parameters get the build, too."""

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.f

    @property
    def takes_build(self) -> bool:
        """Whether the function gets the `Build`, and so may see and touch every output."""
        parameters = parameters_of(self.f)
        return "build" in parameters or (_takes_rest(parameters) and self.gives_build_to_rest)

    def __call__(self, b: Build) -> None:
        self.make(b, _in_order)

    def make(self, b: Build, run: RunSamples) -> None:
        """Make all outputs, by `run`."""
        unroller = Unroller(b.S, b.context, always_multiref=self.always_multiref)
        run(self.nouts, lambda rindex: self.sample(b, unroller, rindex))

    def sample(self, b: Build, unroller: Unroller, rindex: int) -> None:
        """Make output number `rindex`, in a working folder of its own if it is one of several."""
        with sample_folder(rindex) if self.nouts > 1 else nullcontext():
            self._sample(b, unroller, rindex)

    def _sample(self, b: Build, unroller: Unroller, rindex: int) -> None:
        parameters = parameters_of(self.f)
        takes_rest = _takes_rest(parameters)
        folder = build_outpaths(b)[rindex]
        values = {
            key: unroller.value(item, folder)
            for key, item in stored_config(b).val.items()
            if key in parameters or (takes_rest and key != SOURCE_KEY)
        }
        if self.takes_build:
            values["build"] = b
        # A default of `rindex` says what it is when there is but one output.
        if "rindex" in parameters and (
            self.nouts > 1 or self.always_multiref or parameters["rindex"].default is parameters["rindex"].empty
        ):
            values["rindex"] = rindex
        positional = [values.pop(p.name) for p in parameters.values() if p.kind is p.POSITIONAL_ONLY and p.name in values]
        tell_returned(self.f, self.f(*positional, **values))

    def __reduce__(self) -> tuple[Any, ...]:
        # The function's own name in its module leads to the stage, so pickle could not find the function there.
        stage = named(self.f)
        if stage is not self.f and getattr(stage, "__wrapped__", None) is self.f:
            return (_body_of, (stage, self.nouts, self.always_multiref))
        return (type(self), (self.f, self.nouts, self.always_multiref))


_told: Final[set[tuple[str, str]]] = set()
"""Functions of which a warning told already that what they return is lost."""


def tell_returned(f: Callable[..., Any], value: Any) -> None:
    """Warn, once for each function, that a stage returned something, for that is stored nowhere. Lambdas cannot help it."""
    named_as = (getattr(f, "__module__", None) or "", getattr(f, "__qualname__", repr(f)))
    if value is None or named_as in _told or getattr(f, "__name__", "") == "<lambda>":
        return
    _told.add(named_as)
    import warnings

    message = (
        f"the stage {named_as[1]} returned {shown(value)}, which is stored nowhere; "
        "let it write what is to be kept to a file that its config promises, out=[selfref, 'file']"
    )
    code = getattr(f, "__code__", None)
    if code is None:
        warnings.warn(message, UserWarning, stacklevel=2)
    else:  # the line to look at is that of the function
        warnings.warn_explicit(message, UserWarning, code.co_filename, code.co_firstlineno)


def check_runs_when_called(f: Callable[..., Any]) -> None:
    """Raise `Misuse` for a function whose call only makes an object, so that its body would never run."""
    import inspect

    name = getattr(f, "__qualname__", shown(f))
    if inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f):
        raise Misuse(f"a stage runs when it is called, and {name} is a generator (it has yield); loop in a plain function")
    if inspect.iscoroutinefunction(f):
        raise Misuse(f"a stage runs when it is called, and {name} is an async function; call asyncio.run(…) in a plain one")


def _in_order(count: int, make: Callable[[int], None]) -> None:
    for rindex in range(count):
        make(rindex)


def _takes_rest(parameters: dict[str, inspect.Parameter]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _body_of(stage: Any, nouts: int, always_multiref: bool) -> StageBody:
    return StageBody(stage.__wrapped__, nouts, always_multiref)


def named(pyobj: Any) -> Any:
    """Return what lies at the module and qualified name that an object gives as its own."""
    import sys

    found: Any = sys.modules.get(getattr(pyobj, "__module__", None) or "")
    for part in getattr(pyobj, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return found
