"""Either: failed builds stored as realizations (LEFT) next to those that succeeded (RIGHT), in place of exceptions.

A LEFT realization has the file `either_status.txt` at its top, with the reason. What depends on a LEFT
one is not built: it becomes LEFT with the same reason. LEFT realizations count only while there is no
RIGHT one, so a failure is remembered and not tried again by itself, and a forced rebuild that succeeds
takes its place. Must not know how builds are driven: it only wraps realizers and matchers.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Optional, TypeVar, Union, cast

from pylightnix.config import Config
from pylightnix.context import context_deref
from pylightnix.errors import AmbiguousMatch, BuildError, InvalidOutput, Misuse, NotRealized, StoreError
from pylightnix.matchers import BuiltinMatcher, check_matcher
from pylightnix.outputs import output_validate
from pylightnix.query import drefdeps1, rref2path
from pylightnix.realize import ClosureArg, realizeMany, unpack_closure_arg_
from pylightnix.registry import Registry, mkdrv
from pylightnix.storage import fstmpdir
from pylightnix.store.kept import left_by
from pylightnix.store.layout import METADATA_NAMES
from pylightnix.store.takeover import take_over
from pylightnix.types import Context, DRef, Matcher, MatcherO, Output, Path, RealizeArg, Realizer, RealizerO, RRef, StorageSettings

__all__ = [
    "Either",
    "either_isLeft",
    "either_isRight",
    "either_loadR",
    "either_matcher",
    "either_paths",
    "either_realizer",
    "either_status",
    "either_validate",
    "mkdrvE",
    "mkleft",
    "mkright",
    "realizeE",
    "realizeManyE",
]

STATUS_FILE: Final = "either_status.txt"
"""Marks a LEFT realization; holds the reason."""

T = TypeVar("T", bound=str)


class Either(Generic[T]):
    """What came of a build: outputs or realizations on the RIGHT, or on the LEFT with the reason of the failure.

    Attributes:
        right: the outputs, or None.
        left: (the list of items, the reason), or None.
    """

    def __init__(self, right: Optional[Output[T]] = None, left: Optional[tuple[list[T], str]] = None) -> None:
        if right is None and left is None:
            raise Misuse("an Either expects what succeeded (right=…) or what failed (left=…), found neither")
        self.right, self.left = right, left

    def __repr__(self) -> str:
        return f"Either(right={self.right!r})" if self.left is None else f"Either(left={self.left!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Either) and (self.right, self.left) == (other.right, other.left)

    __hash__ = None  # type: ignore[assignment]  # it holds lists


def mkright(o: Output[T]) -> Either[T]:
    """Return the RIGHT either of `o`."""
    return Either(right=o)


def mkleft(paths: list[Path], exc: str) -> Either[Path]:
    """Return the LEFT either of output folders, and write the reason `exc` into each of them.

    Raises:
        Misuse: a folder has a file `either_status.txt` already.
    """
    for path in paths:
        try:
            with open(os.path.join(path, STATUS_FILE), "x", encoding="utf-8", errors="backslashreplace") as file:
                file.write(exc)
        except FileExistsError as error:
            raise Misuse(f"{path} has a file {STATUS_FILE} already; that name marks outputs that failed, choose another") from error
    return Either(left=(list(paths), exc))


def either_isRight(e: Either[T]) -> bool:
    """Tell whether `e` succeeded."""
    return e.left is None


def either_isLeft(e: Either[T]) -> bool:
    """Tell whether `e` failed."""
    return e.left is not None


def either_status(e: Either[T]) -> Optional[str]:
    """Return the reason of the failure, None if there was none."""
    return None if e.left is None else e.left[1]


def either_paths(e: Either[T]) -> list[T]:
    """Return the items of whichever side there is."""
    if e.left is not None:
        return list(e.left[0])
    return list(e.right.val) if e.right is not None else []


def _reason(rref: RRef, S: Optional[StorageSettings]) -> Optional[str]:
    """Return why a realization is LEFT, None if it is RIGHT."""
    try:
        with open(os.path.join(rref2path(rref, S), STATUS_FILE), encoding="utf-8", errors="backslashreplace") as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError):
        return None


def either_loadR(rrefs: Sequence[RRef], S: Optional[StorageSettings] = None) -> Either[RRef]:
    """Return the either of realizations: LEFT with all of them, and all reasons joined by newlines, if any is LEFT."""
    reasons = [reason for rref in rrefs if (reason := _reason(rref, S)) is not None]
    return Either(left=(list(rrefs), "\n".join(reasons))) if reasons else mkright(Output(rrefs))


def either_validate(dref: DRef, e: Either[Path], S: Optional[StorageSettings] = None) -> list[Path]:
    """Return the output folders of `e`; those of a RIGHT one must hold what the config of `dref` promises.

    Raises:
        PromiseException: something promised is missing.
    """
    return either_paths(e) if e.right is None else output_validate(dref, e.right, S)


# --- realizers ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EitherRealizer:
    """The realizer of a function whose failures are outputs. An instance, so that it can be pickled by name."""

    f: Union[RealizerO, Realizer]

    @property
    def __wrapped__(self) -> Union[RealizerO, Realizer]:
        return self.f

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: RealizeArg) -> list[Path]:
        inherited = _inherited(S, dref, context)
        if inherited is not None:
            return either_paths(mkleft([_fresh_output(S)], inherited))
        left: list[Path] = []
        try:
            outputs = self._outputs(S, dref, context, rarg)
            left = outputs.val
            return either_validate(dref, mkright(outputs), S)
        except StoreError:
            raise  # a full disk says nothing about the stage
        except Exception as error:  # noqa: BLE001  # a user's code: its failure is an output
            return either_paths(mkleft(_partial(dref, left or left_by(error)) or [_fresh_output(S)], _told(error)))

    def _outputs(self, S: StorageSettings, dref: DRef, context: Context, rarg: RealizeArg) -> Output[Path]:
        answer: object = self.f(S, dref, context, rarg)
        if isinstance(answer, Output):
            return answer
        if isinstance(answer, list):  # a realizer of `build_wrapper`, or a raw one
            return Output(answer)
        problem = f"returned {answer!r:.200}"
        raise InvalidOutput(dref, "its realizer", problem, "expected an Output, or a list of output folders")


def either_realizer(f: Union[RealizerO, Realizer]) -> Realizer:
    """Return a realizer that never fails for a reason of the stage's: it leaves LEFT outputs instead.

    If a direct dependency is LEFT, there is one LEFT output with the same reason, and `f` is not called. If
    `f` raises, or breaks a promise, what it left is kept in LEFT outputs with the traceback as the reason.

    Args:
        f: returns an `Output`, or a list of folders, as the realizers of `build_wrapper` do.

    The realizer raises:
        StoreError: the store failed, not the stage.
        KeyboardInterrupt, SystemExit: as `f` raised them.
    """
    return EitherRealizer(f)


def _inherited(S: StorageSettings, dref: DRef, context: Context) -> Optional[str]:
    """Return why `dref` cannot be built: the reasons of its direct dependencies that are LEFT, None if none is."""
    reasons = (either_status(either_loadR(context_deref(context, dep), S)) for dep in sorted(drefdeps1([dref], S)))
    found = dict.fromkeys(reason for reason in reasons if reason is not None)
    return "\n".join(found) if found else None


def _fresh_output(S: StorageSettings) -> Path:
    return Path(tempfile.mkdtemp(prefix="left-", dir=fstmpdir(S)))


def _told(error: Exception) -> str:
    original = error.exception if isinstance(error, BuildError) else error
    return "".join(traceback.format_exception(original))


def _partial(dref: DRef, folders: Sequence[object]) -> list[Path]:
    """Return which of these output folders are worth keeping: those with artifacts, else the first, as far as a store takes them."""
    paths = [Path(os.path.abspath(folder)) for folder in folders if isinstance(folder, str)]
    storable = [path for path in paths if _is_storable(dref, path)]
    return [folder for folder in storable if set(os.listdir(folder)) - METADATA_NAMES] or storable[:1]


def _is_storable(dref: DRef, folder: str) -> bool:
    try:
        parent_fd = os.open(os.path.dirname(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # It refuses special files, which a crashed program may leave, and lets the owner in where the program shut him out.
            take_over(parent_fd, os.path.basename(folder), dref=dref, shown=folder)
        finally:
            os.close(parent_fd)
    except (InvalidOutput, StoreError, OSError):
        return False
    return not os.path.lexists(os.path.join(folder, STATUS_FILE))


# --- matchers -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EitherMatcher:
    """The matcher that prefers RIGHT realizations. An instance, so that it can be pickled by name."""

    m: Union[MatcherO, Matcher]

    def __call__(self, S: StorageSettings, rrefs: list[RRef]) -> Optional[list[RRef]]:
        rights = [rref for rref in rrefs if _reason(rref, S) is None]
        if rrefs and not rights:
            return list(rrefs)
        if isinstance(self.m, BuiltinMatcher):
            return self.m(S, rights)
        answer = cast(MatcherO, self.m)(S, Output(rights))
        return answer.val if isinstance(answer, Output) else answer


def either_matcher(m: Union[MatcherO, Matcher]) -> Matcher:
    """Return a matcher that asks `m` about RIGHT realizations only, and takes all LEFT ones when there is no RIGHT one.

    Args:
        m: ``(S, Output[RRef]) -> Output[RRef] or None``, or one of the matchers of this package.
    """
    check_matcher(m, "either_matcher")
    return EitherMatcher(m)


# --- derivations and realization ------------------------------------------------------------------------


def mkdrvE(config: Config, matcher: Union[MatcherO, Matcher], realizer: Union[RealizerO, Realizer], m: Optional[Registry] = None) -> DRef:
    """Register a derivation whose failures are LEFT realizations. Otherwise as `mkdrv`; `m` is the registry."""
    return mkdrv(config, either_matcher(matcher), either_realizer(realizer), m)


def realizeManyE(
    arg: ClosureArg,
    force_rebuild: Union[Sequence[DRef], bool] = (),
    assert_realized: Sequence[DRef] = (),
    realize_args: Optional[Mapping[DRef, RealizeArg]] = {},
    dry_run: bool = False,
) -> Either[RRef]:
    """Realize a closure whose result is one DRef, and return its realizations as an either.

    In a dry run, of what would be built it is RIGHT and empty. Arguments and errors as of `realize`.
    """
    rrefs = realizeMany(arg, force_rebuild, assert_realized, realize_args, dry_run)
    return either_loadR(rrefs, unpack_closure_arg_(arg)[1].S)


def realizeE(
    closure: ClosureArg,
    force_rebuild: Union[Sequence[DRef], bool] = (),
    assert_realized: Sequence[DRef] = (),
    realize_args: Optional[Mapping[DRef, RealizeArg]] = {},
    dry_run: bool = False,
) -> Either[RRef]:
    """Realize a closure whose result is one DRef with one RIGHT realization, and return that, or all that is LEFT.

    Arguments and errors as of `realize`.

    Raises:
        AmbiguousMatch: several RIGHT ones match.
        NotRealized: a dry run found that it would be built.
    """
    found = realizeManyE(closure, force_rebuild, assert_realized, realize_args, dry_run)
    rrefs = either_paths(found)
    target: Any = unpack_closure_arg_(closure)[0]
    if not rrefs:
        raise NotRealized(DRef(target), "a dry run builds nothing")
    if either_isRight(found) and len(rrefs) > 1:
        raise AmbiguousMatch(f"realizeE of {target}", rrefs, "exactly one matched realization")
    return found
