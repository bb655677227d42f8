"""The Build API: the object that simplified realizers get, and the realizers made of such functions.

A function ``f(build)`` fills the output folders of its `Build`; `build_wrapper` makes it a realizer that
opens those folders, stamps start and stop, and checks promises. Must not know how outputs are taken over.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Optional, TypeVar

from pylightnix.config import Config, ConfigAttrs, RConfig, cfgcattrs, cfgname, resolve
from pylightnix.context import context_deref
from pylightnix.errors import AmbiguousMatch, BuildError, Misuse, StoreError, shown
from pylightnix.outputs import output_validate
from pylightnix.refs import assert_valid_refpath, isrefpath, isselfpath
from pylightnix.registry import written_config
from pylightnix.storage import fstmpdir, store_layout
from pylightnix.store.layout import START_FILE, STOP_FILE
from pylightnix.store.removal import make_movable
from pylightnix.timestamps import timestring
from pylightnix.types import (
    BuildArgs,
    Context,
    DRef,
    InstantiateArg,
    Name,
    Output,
    Path,
    RealizeArg,
    Realizer,
    RefPath,
    RRef,
    StorageSettings,
)

__all__ = [
    "Build",
    "BuildRealizer",
    "build_cattrs",
    "build_config",
    "build_context",
    "build_deref",
    "build_deref_",
    "build_environ",
    "build_markstart",
    "build_markstop",
    "build_markstop_noexcept",
    "build_name",
    "build_outpath",
    "build_outpaths",
    "build_path",
    "build_paths",
    "build_wrapper",
    "build_wrapper_",
    "mkbuildargs",
    "repl_build",
    "repl_buildargs",
    "repl_cancelBuild",
    "repl_continueBuild",
]


class Build:
    """One run of a realizer, as the function inside sees it.

    Subclass it to carry values of your own (see `build_wrapper_`); the constructor must go on taking
    the one argument.

    Attributes:
        S: the store, with its `tmpdir` set to this build's own folder.
        dref: what is being built.
        context: which realizations stand for its dependencies.
        starttime: what to write into the start file: ``'AUTO'`` for the time, other text as it is, None for no file.
        stoptime: the same for the stop file.
        iarg: unused, always empty.
        rarg: what `realize` was given for this derivation in `realize_args`.
        outpaths: the output folders, once they are declared.
        cattrs_cache: what `build_cattrs` returned.
    """

    def __init__(self, ba: BuildArgs) -> None:
        self.S, self.dref, self.context = ba.S, ba.dref, ba.context
        self.starttime, self.stoptime = ba.starttime, ba.stoptime
        self.iarg, self.rarg = ba.iarg, ba.rarg
        self.outpaths: Optional[Output[Path]] = None
        self.cattrs_cache: Optional[ConfigAttrs] = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dref})"


B = TypeVar("B", bound=Build)

if TYPE_CHECKING:
    from pylightnix.repl import repl_build, repl_buildargs, repl_cancelBuild, repl_continueBuild
else:

    def __getattr__(name: str) -> Any:
        # They build on this module and stand in `repl`, and programs look for them in both places.
        if name in {"repl_build", "repl_buildargs", "repl_cancelBuild", "repl_continueBuild"}:
            from pylightnix import repl

            return getattr(repl, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def mkbuildargs(
    S: Optional[StorageSettings],
    dref: DRef,
    context: Context,
    starttime: Optional[str],
    stoptime: Optional[str],
    iarg: InstantiateArg,
    rarg: RealizeArg,
) -> BuildArgs:
    """Return the arguments of a `Build`.

    Raises:
        MissingDerivation, StoreCorrupt: the store does not have the derivation, or not whole.
    """
    written_config(dref, S)
    return BuildArgs(S, dref, context, starttime, stoptime, iarg, rarg)


# --- realizers ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BuildRealizer(Generic[B]):
    """The realizer of a function of a `Build`.

    An instance of an importable class without any config in it, so that equal code is equal when pickled.
    """

    f: Callable[[B], Any]
    nouts: Optional[int]
    starttime: Optional[str]
    stoptime: Optional[str]
    ctr: Callable[[BuildArgs], B]

    @property
    def __wrapped__(self) -> Callable[[B], Any]:
        return self.f

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: RealizeArg) -> list[Path]:
        b = self.ctr(mkbuildargs(S, dref, context, self.starttime, self.stoptime, {}, rarg))
        try:
            if self.nouts is not None:
                build_markstart(b, self.nouts)
            self.f(b)
            build_markstop(b)
        except Exception as error:
            build_markstop_noexcept(b)
            raise BuildError(S, dref, b.outpaths, error) from error
        return output_validate(dref, Output(build_outpaths(b)), S)


def build_wrapper_(
    f: Callable[[B], Any],
    ctr: Callable[[BuildArgs], B],
    nouts: Optional[int] = 1,
    starttime: Optional[str] = "AUTO",
    stoptime: Optional[str] = "AUTO",
) -> Realizer:
    """Return a realizer that calls `f` with a build that `ctr` makes, a subclass of `Build` for example.

    Other arguments and errors as of `build_wrapper`.
    """
    return BuildRealizer(f, nouts, starttime, stoptime, ctr)


def build_wrapper(
    f: Callable[[Build], Any],
    nouts: Optional[int] = 1,
    starttime: Optional[str] = "AUTO",
    stoptime: Optional[str] = "AUTO",
) -> Realizer:
    """Return a realizer that opens output folders, calls ``f(build)`` and checks promises.

    Args:
        f: fills the folders; what it returns does not matter.
        nouts: how many folders to open; None if `f` says so itself with `build_markstart`.
        starttime: the content of the start file: ``'AUTO'`` is the time, other text is taken as it is,
            None leaves the file out.
        stoptime: the same for the stop file, which is written after `f`, and after its failure too.

    The realizer raises:
        BuildError: `f` raised an `Exception`. The folders are kept.
        PromiseException: an output lacks what the config promises.
        Misuse: no output was declared.
    """
    return build_wrapper_(f, Build, nouts, starttime, stoptime)


# --- output folders -----------------------------------------------------------------------------------


def _text(time: Optional[str]) -> Optional[str]:
    return timestring() if time == "AUTO" else time


def _stamp(folder: str, name: str, text: Optional[str]) -> None:
    if text is None:
        return
    path = os.path.join(folder, name)
    try:
        _write(path, text)
    except PermissionError:
        # Whoever copies a folder of the store into an output copies its modes, too, and perhaps its stamps.
        make_movable(folder)
        if os.path.lexists(path):
            os.unlink(path)
        _write(path, text)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def build_markstart(b: Build, nouts: int) -> list[Path]:
    """Make `nouts` output folders with their start files, and return them.

    Raises:
        Misuse: fewer than one is asked for, or they were made before.
    """
    if isinstance(nouts, bool) or not isinstance(nouts, int) or nouts < 1:
        raise Misuse(f"build_markstart expects how many outputs {b.dref} makes, a number from 1, found {shown(nouts)}")
    if b.outpaths is not None:
        raise Misuse(
            f"the outputs of {b.dref} were opened before; use build_outpaths(b), or pass nouts=None to build_wrapper to open them yourself"
        )
    import tempfile

    where = fstmpdir(b.S)
    folders = [Path(tempfile.mkdtemp(prefix="out-", dir=where)) for _ in range(nouts)]
    b.outpaths = Output(folders)
    start = b._start_text = _text(b.starttime)  # type: ignore[attr-defined]  # not from `__init__`, which subclasses may replace
    for folder in folders:
        _stamp(folder, START_FILE, start)
    return folders


def build_markstop(b: Build) -> None:
    """Write the stop file into every output. Does nothing as long as there are none."""
    for folder in b.outpaths.val if b.outpaths is not None else []:
        _stamp(folder, STOP_FILE, _text(b.stoptime))
        start: Optional[str] = getattr(b, "_start_text", None)
        if start is not None and not _says(os.path.join(folder, START_FILE), start):
            _stamp(folder, START_FILE, start)  # it came with a copy of another realization


def _says(path: str, text: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read() == text
    except (OSError, UnicodeDecodeError):
        return False


def build_markstop_noexcept(b: Build) -> None:
    """Do as `build_markstop`, and let it pass if an output cannot be written."""
    try:
        build_markstop(b)
    except (OSError, StoreError):
        pass  # something worse is on its way to the caller, whom this would hide it from


def build_outpaths(b: Build) -> list[Path]:
    """Return the output folders.

    Raises:
        Misuse: they are not declared yet.
    """
    if b.outpaths is None:
        raise Misuse(f"{b.dref} has no outputs yet; call build_markstart(b, nouts) first, or pass nouts to build_wrapper")
    return list(b.outpaths.val)


def build_outpath(b: Build) -> Path:
    """Return the output folder.

    Raises:
        Misuse: there is not exactly one.
    """
    folders = build_outpaths(b)
    if len(folders) != 1:
        raise Misuse(f"{b.dref} has {len(folders)} outputs, not one; use build_outpaths(b)")
    return folders[0]


# --- the config ---------------------------------------------------------------------------------------


def stored_config(b: Build) -> Config:
    """Return the config of what is being built as the store has it, self-paths included. Not to be changed."""
    # Kept on the object, but not from `Build.__init__` on, which subclasses may replace.
    config: Optional[Config] = getattr(b, "_config", None)
    if config is None:
        config = written_config(b.dref, b.S)
        b._config = config  # type: ignore[attr-defined]  # see above
    return config


def build_config(b: Build) -> RConfig:
    """Return the config of what is being built, its self-paths as refpaths. A copy; change it at will."""
    return resolve(stored_config(b), b.dref)


def build_cattrs(b: Build) -> Any:
    """Return the items of `build_config` as attributes of an object, the same one on every call."""
    if b.cattrs_cache is None:
        b.cattrs_cache = cfgcattrs(build_config(b))
    return b.cattrs_cache


def build_name(b: Build) -> Name:
    """Return the name of what is being built."""
    return cfgname(stored_config(b))


# --- dependencies -------------------------------------------------------------------------------------


def build_context(b: Build) -> Context:
    """Return which realizations stand for each dependency, at any distance."""
    return b.context


def build_deref_(b: Build, dref: DRef) -> list[RRef]:
    """Return the realizations that stand for the dependency `dref`, sorted.

    Raises:
        Misuse: it is none of the dependencies.
    """
    return context_deref(b.context, dref)


def build_deref(b: Build, dref: DRef) -> RRef:
    """Return the realization that stands for the dependency `dref`.

    Raises:
        Misuse: it is none of the dependencies.
        AmbiguousMatch: several realizations stand for it.
    """
    return _only(build_deref_(b, dref), b, f"the dependency {dref} of {b.dref}")


def _only(found: list[RRef], b: Build, what: str) -> RRef:
    if len(found) != 1:
        raise AmbiguousMatch(what, found, "one realization (build_deref_ and build_paths return several)")
    return found[0]


def build_paths(b: Build, refpath: RefPath) -> list[Path]:
    """Return where an artifact is: in each output folder if it is of this build, else in each realization that stands for it.

    Args:
        b: the build.
        refpath: ``[dref, 'folder', 'file']``, or ``[selfref, 'file']``.

    Raises:
        InvalidReference: it is no refpath.
        Misuse: it is of something that is none of the dependencies.
    """
    if isselfpath(refpath) or (isrefpath(refpath) and refpath[0] == b.dref):
        folders: list[str] = list(build_outpaths(b))
    else:
        assert_valid_refpath(refpath)
        layout = store_layout(b.S)
        folders = [layout.realization(rref) for rref in build_deref_(b, DRef(refpath[0]))]
    return [Path(os.path.join(folder, *refpath[1:])) for folder in folders]


def build_path(b: Build, refpath: RefPath) -> Path:
    """Return where an artifact is, as `build_paths`, if that is one place only.

    Raises:
        Misuse: this build has several outputs.
        AmbiguousMatch: several realizations stand for the dependency.
    """
    paths = build_paths(b, refpath)
    if len(paths) != 1:
        if isselfpath(refpath) or refpath[0] == b.dref:
            build_outpath(b)
        build_deref(b, DRef(refpath[0]))
    return paths[0]


def build_environ(b: Build, env: Optional[dict[str, str]] = None) -> dict[str, str]:
    """Return a copy of `env` (this process's environment by default) with every top-level config item as text.

    A refpath that is in one place becomes that path.

    Raises:
        Misuse: an item cannot be an environment variable.
    """
    environ = dict(os.environ if env is None else env)
    for key, value in build_config(b).val.items():
        paths = build_paths(b, value) if isrefpath(value) else []
        environ[key] = paths[0] if len(paths) == 1 else str(value)
        if not key or "=" in key or "\0" in key or "\0" in environ[key]:
            raise Misuse(
                f"the config item {key!r} of {b.dref} cannot be an environment variable, whose name has no '=' and which holds no NUL; "
                "rename the item, or make the environment of build_config(b).val"
            )
    return environ
