"""Decorators that register at once, and the raw forms of both, which get all outputs of a build in one call.

Must not know how closures are realized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Optional, Union, overload

from pylightnix.attrs import Attrs, Unroller
from pylightnix.autostage import AutoStage, InvalidStageCall, Steering, sorted_keywords
from pylightnix.build import Build, build_outpaths
from pylightnix.errors import ConflictingArguments, Misuse, shown
from pylightnix.registry import Registry
from pylightnix.stagebody import SUPPLIED, StageBody, named, parameters_of, tell_returned
from pylightnix.types import DRef, Matcher

if TYPE_CHECKING:
    import inspect

__all__ = ["RawBody", "autodrv", "autodrv_", "autostage_", "wrapsig"]


class _DrvBody(StageBody):
    """The function of `autodrv`: what it takes with ``**`` has the build in it."""

    __slots__ = ()

    gives_build_to_rest: ClassVar[bool] = True


class _DrvStage(AutoStage):
    """A stage that is registered once, where it is written."""

    def _check_keywords(self) -> None:
        pass  # ``**locals()`` may well have what the function has a default for, and wins

    def _check_items(self, config: dict[str, Any], overrides: dict[str, Any]) -> None:
        super()._check_items(config, {})

    def _body(self, steering: Steering) -> Callable[[Build], None]:
        return _DrvBody(self.__wrapped__, steering.nouts, steering.always_multiref)


@dataclass(frozen=True, slots=True)
class RawBody:
    """A function that is called once per run, with all outputs."""

    f: Callable[[Build, list[Attrs]], Any]
    always_multiref: bool

    @property
    def __wrapped__(self) -> Callable[[Build, list[Attrs]], Any]:
        return self.f

    def __call__(self, b: Build) -> None:
        unroller = Unroller(b.S, b.context, always_multiref=self.always_multiref)
        tell_returned(self.f, self.f(b, [Attrs(unroller.items(b.dref, folder)) for folder in build_outpaths(b)]))

    def __reduce__(self) -> tuple[Any, ...]:
        # As with `StageBody`: the function's own name in its module leads to the stage.
        stage = named(self.f)
        if stage is not self.f and getattr(stage, "__wrapped__", None) is self.f:
            return (_raw_body_of, (stage, self.always_multiref))
        return (RawBody, (self.f, self.always_multiref))


def _raw_body_of(stage: Any, always_multiref: bool) -> RawBody:
    return RawBody(stage.__wrapped__, always_multiref)


class _RawStage(AutoStage):
    """A stage of a function ``f(build, arglist)``, whose config is what its keywords say."""

    def _parameters_of(self, f: Callable[..., Any]) -> dict[str, inspect.Parameter]:
        import inspect

        try:
            inspect.signature(f, follow_wrapped=False).bind(None, [])
        except (TypeError, ValueError) as error:
            raise Misuse(f"a raw stage is made of a function f(build, arglist), found {shown(f)} ({error})") from error
        return {"items": inspect.Parameter("items", inspect.Parameter.VAR_KEYWORD)}

    def _body(self, steering: Steering) -> Callable[[Build], None]:
        return RawBody(self.__wrapped__, steering.always_multiref)


# --- decorators -----------------------------------------------------------------------------------------


@overload
def autodrv(fn: Callable[..., Any], /) -> DRef: ...


@overload
def autodrv(*args: Optional[Registry], sourcedeps: Sequence[Any] = (), **kwargs: Any) -> Callable[[Callable[..., Any]], DRef]: ...


def autodrv(*args: Any, sourcedeps: Sequence[Any] = (), **kwargs: Any) -> Union[DRef, Callable[[Callable[..., Any]], DRef]]:
    """Register a derivation made of a function at once; the name of the function then stands for its DRef.

    Used inside a stage, mostly as ``@autodrv(**locals())``. The config holds the defaults of the function's
    parameters, the keywords, which win, and under ``__source__`` the digest of the code. When it is built the
    function gets config items as those of `autostage` do; with ``**`` all of them, and the build.

    Args:
        args: at most the registry.
        sourcedeps: as of `autostage`.
        kwargs: ``r``, the registry; steering keywords, and config items, as of `autostage`.

    Returns:
        A decorator, which returns the DRef.

    Raises:
        InvalidStageCall: a parameter has no value.
        NoRegistry: there is no registry, here or current.
        What calling a stage raises.
    """
    if len(args) == 1 and callable(args[0]) and not isinstance(args[0], Registry):
        return autodrv(sourcedeps=sourcedeps, **kwargs)(args[0])
    registry = _registry(args, kwargs)
    keywords = {key: value for key, value in kwargs.items() if key != "r"}

    def decorate(f: Callable[..., Any]) -> DRef:
        steering, items = sorted_keywords(f, {**keywords, "sourcedeps": sourcedeps})
        return _DrvStage(f, steering, registry, items)()

    return decorate


def _registry(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Optional[Registry]:
    given = [*args, *([kwargs["r"]] if kwargs.get("r") is not None else [])]
    if len(given) > 1 or not all(isinstance(item, Registry) or item is None for item in given):
        raise InvalidStageCall(f"autodrv takes a registry, and config items by keyword; found the registry {', '.join(map(shown, given))}")
    return next(iter(given), None)


@overload
def autostage_(f: Callable[..., Any]) -> AutoStage: ...


@overload
def autostage_(
    f: None = None,
    *,
    nouts: int = 1,
    matcher: Optional[Matcher] = None,
    always_multiref: bool = False,
    sourcedeps: Sequence[Any] = (),
    r: Optional[Registry] = None,
    **decokw: Any,
) -> Callable[[Callable[..., Any]], AutoStage]: ...


def autostage_(
    f: Optional[Callable[..., Any]] = None,
    *,
    nouts: int = 1,
    matcher: Optional[Matcher] = None,
    always_multiref: bool = False,
    sourcedeps: Sequence[Any] = (),
    r: Optional[Registry] = None,
    **decokw: Any,
) -> Union[AutoStage, Callable[[Callable[..., Any]], AutoStage]]:
    """Make a stage of a function ``f(build, arglist)``, which is called once and fills all outputs.

    Args:
        f: the function. `arglist` has one `Attrs` per output, with every config item.
        nouts: how many outputs one run makes.
        matcher: by default `match_latest(nouts)`.
        always_multiref: make lists of dependencies of which one realization was matched, too.
        sourcedeps: functions and classes whose code counts as this function's.
        r: the registry to use when a call names none.
        decokw: ``options``, and config items. A call may give any of them anew, and others.

    Raises:
        Misuse: the function does not take two arguments.
    """

    def decorate(function: Callable[..., Any]) -> AutoStage:
        return _raw_stage(function, {**decokw, **_steering(nouts, matcher, always_multiref, sourcedeps)}, r)

    return decorate if f is None else decorate(f)


def autodrv_(
    *,
    nouts: int = 1,
    matcher: Optional[Matcher] = None,
    always_multiref: bool = False,
    sourcedeps: Sequence[Any] = (),
    r: Optional[Registry] = None,
    **kwargs: Any,
) -> Callable[[Callable[..., Any]], DRef]:
    """Register a derivation made of a function ``f(build, arglist)`` at once. Arguments as of `autostage_`.

    Returns:
        A decorator, which returns the DRef.
    """

    def decorate(function: Callable[..., Any]) -> DRef:
        return _raw_stage(function, {**kwargs, **_steering(nouts, matcher, always_multiref, sourcedeps)}, r)()

    return decorate


def _steering(nouts: int, matcher: Optional[Matcher], always_multiref: bool, sourcedeps: Sequence[Any]) -> dict[str, Any]:
    return {"nouts": nouts, "matcher": matcher, "always_multiref": always_multiref, "sourcedeps": sourcedeps}


def _raw_stage(function: Callable[..., Any], keywords: Mapping[str, Any], r: Optional[Registry]) -> _RawStage:
    steering, items = sorted_keywords(function, keywords)
    return _RawStage(function, steering, r, items)


def wrapsig(f: Callable[..., Any], extargs: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[Build, Sequence[Attrs]], None]]:
    """Turn a function of config items into one of ``(build, arglist)``, as the raw forms take it.

    Args:
        f: the function.
        extargs: config items besides the defaults of its parameters.

    Returns:
        The config items, defaults first; and a function that calls `f` once for each of `arglist`, with the
        items that are parameters of `f` (all of them if it has ``**``), `build` and `rindex` if it has those.

    Raises:
        ConflictingArguments: an item is also the default of a parameter.
    """
    parameters = parameters_of(f)
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty and name not in SUPPLIED and name != "r"}
    for key in extargs:
        if key in defaults:
            raise ConflictingArguments(f"wrapsig found {key!r} twice: as the default of a parameter and among the items; keep one of them")
    takes_rest = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def call(build: Build, arglist: Sequence[Attrs]) -> None:
        for rindex, attrs in enumerate(arglist):
            items = {key: value for key, value in vars(attrs).items() if key in parameters or (takes_rest and not key.startswith("_"))}
            supplied = {"build": build, "rindex": rindex}
            f(**items, **{key: value for key, value in supplied.items() if key in parameters})

    call.__wrapped__ = f  # type: ignore[attr-defined]  # so that its code is that of `f`
    return {**defaults, **extargs}, call
