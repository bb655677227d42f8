"""`autostage`: stages made of plain functions, whose parameters are the config.

A stage's config is the defaults of the function's parameters, then the decorator's keywords, then the
call's, then the digest of the code. When it is built the function is called once per output with those
values, references replaced by what they stand for. Must not know how closures are realized.
"""

from __future__ import annotations

import functools
import keyword
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Optional, Union, overload

from pylightnix._definitions import name_of
from pylightnix.build import Build, build_wrapper
from pylightnix.codekey import CodeTerms, source_digest
from pylightnix.config import mkconfig
from pylightnix.display import remember_function
from pylightnix.errors import ConflictingArguments, Misuse, NoRegistry, shown
from pylightnix.matchers import check_matcher, match_latest
from pylightnix.options import Options, steered
from pylightnix.registry import Registry, mkdrv, tlregistry
from pylightnix.stagebody import SOURCE_KEY, SUPPLIED, StageBody, check_runs_when_called, named, parameters_of
from pylightnix.types import DRef, Matcher, Realizer

if TYPE_CHECKING:
    import inspect

__all__ = ["AutoStage", "InvalidStageCall", "Steering", "autostage", "sorted_keywords"]


class InvalidStageCall(Misuse, TypeError):
    """A stage was called with a keyword that it does not have, or without one that it needs."""

    code = "invalid-stage-call"


@dataclass(frozen=True, slots=True)
class Steering:
    """What says how a stage is registered and built, and is not stored in its config."""

    nouts: int = 1
    matcher: Optional[Matcher] = None
    always_multiref: bool = False
    sourcedeps: tuple[Any, ...] = ()
    options: Options = Options()  # noqa: RUF009  # it is frozen

    def __post_init__(self) -> None:
        if isinstance(self.nouts, bool) or not isinstance(self.nouts, int) or self.nouts < 1:
            raise Misuse(f"nouts is how many realizations one run makes, a number from 1; found {shown(self.nouts)}")
        if self.matcher is not None:
            check_matcher(self.matcher, "matcher=")
        if not isinstance(self.options, Options):
            raise Misuse(f"options is Options(…), with what they are as keywords; found {self.options!r:.200}")


_STEERING: Final = frozenset(Steering.__dataclass_fields__)


def _steered(steering: Steering, keywords: Mapping[str, Any]) -> Steering:
    changes: dict[str, Any] = {key: _source_deps(value) if key == "sourcedeps" else value for key, value in keywords.items()}
    return replace(steering, **changes) if changes else steering


def _source_deps(value: Any) -> tuple[Any, ...]:
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(value)
    advice = f"; write sourcedeps=[{name_of(value)}]" if callable(value) else ""
    raise Misuse(f"sourcedeps is a list of functions and classes; found {shown(value)}{advice}")


class AutoStage:
    """A stage made of a function: call it with config items as keywords to register a derivation.

    Attributes:
        __wrapped__: the function.
    """

    __wrapped__: Callable[..., Any]
    __name__: str
    __qualname__: str

    def __init__(self, f: Callable[..., Any], steering: Steering, r: Optional[Registry], items: dict[str, Any]) -> None:
        self._parameters = self._parameters_of(f)
        check_runs_when_called(f)
        functools.update_wrapper(self, f)
        self._steering, self._registry, self._items = steering, r, items
        self._check_names()
        self._check_keywords()
        self.__signature__ = self._signature()
        # One object each, so that registering the same derivation again is seen to be the same.
        self._realizers: dict[tuple[Any, ...], Realizer] = {}
        self._matchers: dict[int, Matcher] = {}

    def __repr__(self) -> str:
        return f"<stage {getattr(self, '__module__', '?')}.{getattr(self, '__qualname__', repr(self.__wrapped__))}>"

    @property
    def code_terms(self) -> CodeTerms:
        """How the code of the stage is to be identified."""
        return CodeTerms(self._steering.options.version, self._steering.options.track, self._steering.sourcedeps)

    def __call__(self, /, *args: Any, **overrides: Any) -> DRef:
        """Register the stage and return its derivation.

        Args:
            args: at most the registry.
            overrides: ``r``, the registry; steering keywords; and config items.

        Raises:
            InvalidStageCall: a keyword is unknown, or a parameter has no value.
            NoRegistry: there is no registry, here, at the decorator or current.
            CodeKeyError: the function's source cannot be found.
            InvalidConfig: a value is not JSON.
        """
        registry = self._pick_registry(args, overrides)
        steering = _steered(self._steering, {key: overrides.pop(key) for key in _STEERING - set(self._parameters) if key in overrides})
        config = {**self._defaults(), **self._items, **overrides}
        self._check_items(config, overrides)
        for key in SUPPLIED & overrides.keys() & self._parameters.keys() - self._items.keys():
            del config[key]  # the build supplies it
        for key, value in config.items():
            if _is_stage(value):
                config[key] = value(r=registry)
        realizer = self._realizer(steering)
        config[SOURCE_KEY] = str(source_digest(realizer))
        dref = mkdrv(mkconfig(config), self._matcher(steering), realizer, registry)
        if "name" not in config:
            remember_function(dref, self.__wrapped__)
        return dref

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__qualname__ if named(self) is self else super().__reduce_ex__(protocol)

    def _pick_registry(self, args: tuple[Any, ...], overrides: dict[str, Any]) -> Registry:
        given = [*args, *([overrides.pop("r")] if "r" in overrides else [])]
        if len(given) > 1 or not all(isinstance(item, Registry) or item is None for item in given):
            shown = ", ".join(f"{item!r:.80}" for item in given)
            raise InvalidStageCall(f"{self!r} takes a registry, and config items by keyword; found the registry {shown}")
        registry = tlregistry(given[0] if given and given[0] is not None else self._registry)
        if registry is None:
            raise NoRegistry(repr(self))
        return registry

    def _defaults(self) -> dict[str, Any]:
        return {
            name: p.default for name, p in self._parameters.items() if p.default is not p.empty and name not in SUPPLIED and name != "r"
        }

    def _check_items(self, config: dict[str, Any], overrides: dict[str, Any]) -> None:
        plain = {name for name, p in self._parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        takes_rest = any(p.kind is p.VAR_KEYWORD for p in self._parameters.values())
        known = {*plain, *self._items, "name"}
        unknown = [] if takes_rest else [key for key in overrides if key not in known]
        if unknown:
            raise InvalidStageCall(f"{self!r} has no parameter {_listed(unknown)}{_did_you_mean(unknown[0], known - SUPPLIED)}")
        missing = [
            name
            for name in self._parameters
            if name in plain
            and name not in config
            and name not in SUPPLIED
            and self._parameters[name].default is self._parameters[name].empty
        ]
        if missing:
            example = f"{missing[0]}=…"
            raise InvalidStageCall(f"{self!r} has no value for {_listed(missing)}; pass {example} in the call, or in @autostage({example})")

    def _matcher(self, steering: Steering) -> Matcher:
        if steering.matcher is not None:
            return steering.matcher
        return self._matchers.setdefault(steering.nouts, match_latest(steering.nouts))

    def _realizer(self, steering: Steering) -> Realizer:
        # Most calls leave the options as they are, which take longer to hash than all the rest.
        options = None if steering.options is self._steering.options else steering.options
        key = (steering.nouts, steering.always_multiref, options, *map(id, steering.sourcedeps))
        if key not in self._realizers:
            made = build_wrapper(self._body(steering), nouts=steering.nouts)
            self._realizers[key] = steered(made, steering.options, steering.sourcedeps)
        return self._realizers[key]

    def _check_names(self) -> None:
        p = self._parameters.get("r")
        if p is not None and p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            raise ConflictingArguments(
                f"{self!r} has a parameter 'r', and 'r' is the registry in every call of a stage; rename the parameter"
            )

    # --- what other kinds of stages do otherwise ------------------------------------------------------

    def _parameters_of(self, f: Callable[..., Any]) -> dict[str, inspect.Parameter]:
        return parameters_of(f)

    def _check_keywords(self) -> None:
        for key in self._items:
            if key in self._defaults():
                raise ConflictingArguments(
                    f"{self!r} has {key!r} twice: as the default of a parameter and as a keyword of its decorator; keep one of them"
                )

    def _body(self, steering: Steering) -> Callable[[Build], None]:
        return StageBody(self.__wrapped__, steering.nouts, steering.always_multiref)

    # --- for people -------------------------------------------------------------------------------------

    def _signature(self) -> inspect.Signature:
        import inspect

        kinds = inspect.Parameter
        items: dict[str, inspect.Parameter] = {}
        rest = [p for p in self._parameters.values() if p.kind is kinds.VAR_KEYWORD]
        for name, p in self._parameters.items():
            if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD) and name not in SUPPLIED and name != "r":
                items[name] = p.replace(kind=kinds.KEYWORD_ONLY, default=self._items.get(name, p.default))
        for name, value in self._items.items():
            if name.isidentifier() and not keyword.iskeyword(name):
                items.setdefault(name, kinds(name, kinds.KEYWORD_ONLY, default=value))
        registry = kinds("r", kinds.POSITIONAL_OR_KEYWORD, default=None, annotation=Optional[Registry])
        return inspect.Signature([registry, *items.values(), *rest], return_annotation=DRef)


def _is_stage(value: Any) -> bool:
    """Tell whether a config value is to be called for a value: stages and lambdas are, classes and builtins are not."""
    return callable(value) and not isinstance(value, (type, types.BuiltinFunctionType))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _did_you_mean(name: str, known: set[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; it has {_listed(sorted(known - {'name'})) or 'none'}"


@overload
def autostage(fn: Callable[..., Any]) -> AutoStage: ...


@overload
def autostage(
    fn: None = None, *, sourcedeps: Sequence[Any] = (), r: Optional[Registry] = None, **kwargs: Any
) -> Callable[[Callable[..., Any]], AutoStage]: ...


def autostage(
    fn: Optional[Callable[..., Any]] = None, *, sourcedeps: Sequence[Any] = (), r: Optional[Registry] = None, **kwargs: Any
) -> Union[AutoStage, Callable[[Callable[..., Any]], AutoStage]]:
    """Make a stage of a function. Used bare, ``@autostage``, or with arguments, ``@autostage(name='train')``.

    The stage is called with config items as keywords, registers one derivation per call and returns its
    DRef. The config holds the defaults of the function's parameters, the keywords given here, those of
    the call (later ones win), and under ``__source__`` the digest of the code. Items that are stages or
    other functions are called with the registry (``r=…``) first, and what they return is stored.

    When the derivation is built the function gets, for each of its parameters, the config item of that
    name: a DRef as an `Attrs` object, or a list of them if several realizations were matched;
    ``[selfref, 'file']`` as a path in the output folder; ``[dref, 'file']`` as a list of paths, one for
    each realization; all else as it is. ``build`` is the `Build` and ``rindex`` the number of the output.

    Of several outputs each is made by a call of its own: in order in this process; in a daemon, unless the
    function takes ``build``, in a process for each call, as many at a time as there are CPU slots. They count as
    one: if a call fails, there are none.

    Args:
        fn: the function.
        sourcedeps: functions and classes whose code counts as this function's, besides what it names itself.
        r: the registry to use when a call names none.
        kwargs: steering keywords, which are not stored (``nouts``, how many outputs one run makes;
            ``matcher``, by default `match_latest(nouts)`; ``always_multiref``, make lists of single
            dependencies, too; ``options``, an `Options`), and config items. A call may give any of them anew.

    What the function names in the project's own files counts as its code, and what is named and cannot be seen
    is told once in a warning, `UnseenCode`; see `Options` for other ways.

    For a type checker, give dependencies as keywords here and annotate their parameters with what arrives:
    ``@autostage(data=split)`` above ``def model(data: Attrs, rate: float = 0.1) -> None``.

    Raises:
        ConflictingArguments: a keyword is also the default of a parameter.
    """
    if r is not None and not isinstance(r, Registry):
        raise InvalidStageCall(f"autostage takes for r a registry, found {shown(r)}; give a config item another name")

    def decorate(f: Callable[..., Any]) -> AutoStage:
        steering, items = sorted_keywords(f, {**kwargs, "sourcedeps": sourcedeps})
        return AutoStage(f, steering, r, items)

    return decorate if fn is None else decorate(fn)


def sorted_keywords(f: Callable[..., Any], keywords: Mapping[str, Any]) -> tuple[Steering, dict[str, Any]]:
    """Return the keywords of a decorator as what steers and what is config.

    Raises:
        ConflictingArguments: a parameter of the function has the name of what steers.
    """
    given = {key: keywords[key] for key in _STEERING if key in keywords}
    for key in set(parameters_of(f)) & set(given) - {"sourcedeps"}:
        raise ConflictingArguments(
            f"{name_of(f)} has a parameter {key!r}, and its decorator the steering keyword {key!r}; rename the parameter"
        )
    return _steered(Steering(), given), {key: value for key, value in keywords.items() if key not in _STEERING}
