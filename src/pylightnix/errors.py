"""The one tree of errors: what was expected, what was found, where, and what to do.

Each class has a stable `code` for machines, an exit status for the command line and its facts as
attributes. Misuse derives from `AssertionError` too, because programs written for the first
Pylightnix catch that; nothing here is a bare ``assert``, so ``python -O`` changes nothing.
This module must not import any other of the package but `types`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Optional

from pylightnix.types import DRef, Output, Path, RRef, StorageSettings

__all__ = [
    "AmbiguousMatch",
    "ArchiveIOError",
    "BuildError",
    "CodeKeyError",
    "CommandFailed",
    "ConflictingArguments",
    "CycleError",
    "FetchFailed",
    "FetchSetupError",
    "FetchUnavailable",
    "ForeignDerivation",
    "InUse",
    "InvalidArchive",
    "InvalidChecksum",
    "InvalidConfig",
    "InvalidMatch",
    "InvalidName",
    "InvalidOutput",
    "InvalidReference",
    "InvalidSource",
    "InvalidStorage",
    "InvalidTree",
    "InvalidURL",
    "MatcherRefused",
    "MissingDerivation",
    "MissingRealization",
    "Misuse",
    "NoRegistry",
    "NotRealized",
    "PromiseException",
    "PylightnixException",
    "RemoteFailure",
    "SandboxUnavailable",
    "SourceChanged",
    "StoreBusy",
    "StoreCorrupt",
    "StoreError",
    "StoreExists",
    "StoreForeign",
    "StoreFull",
    "StoreIOError",
    "StoreReadOnly",
    "StoreTooNew",
    "TargetNotFound",
    "UnpackFailed",
    "WrongChecksum",
]


def _revive(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


def shown(value: object, limit: int = 80) -> str:
    """Return how an error shows a value of a caller's: its repr, cut, or its type where that raises."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001  # a method of a user's object
        return f"<a {type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= limit else text[:limit] + "…"


def kind_of(value: object) -> str:
    """Return how an error says of what type a value is: a list, an int."""
    name = type(value).__name__
    return f"{'an' if name[:1] in 'aeioAEIO' else 'a'} {name}"


class PylightnixException(Exception):
    """The base of every error that this package raises on purpose."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    exit_status: ClassVar[int] = 1

    def __reduce__(self) -> tuple[Any, ...]:
        # The constructors take facts, not messages, so the default (call the class with args) would fail.
        return (_revive, (type(self), self.args, self.__dict__))


# --- misuse: the caller gave something that can never work --------------------------------------


class Misuse(PylightnixException, AssertionError):
    """A call that cannot work as it was made. Nothing was changed."""

    code = "misuse"
    exit_status = 2


class InvalidReference(Misuse):
    """A text that was to be a reference (or part of one) is not."""

    code = "invalid-reference"

    def __init__(self, found: object, expected: str) -> None:
        self.found, self.expected = found, expected
        super().__init__(f"expected {expected}, found {shown(found, 400)}")


class InvalidName(Misuse):
    """A name has characters or a length that a store folder cannot have."""

    code = "invalid-name"

    def __init__(self, found: object, problem: str) -> None:
        self.found, self.problem = found, problem
        super().__init__(
            f"invalid name {found!r}: {problem}; a name has 1 to 211 ASCII letters, digits, dashes and underscores, such as 'train-model'"
        )


class InvalidConfig(Misuse):
    """A config holds something that canonical JSON cannot."""

    code = "invalid-config"

    def __init__(self, where: str, problem: str, advice: str) -> None:
        self.where, self.problem, self.advice = where, problem, advice
        super().__init__(f"invalid config: {where}: {problem}; {advice}")


class ConflictingArguments(PylightnixException):
    """The same argument was given twice, with no rule to say which counts."""

    code = "conflicting-arguments"
    exit_status = 2


class NoRegistry(Misuse):
    """A derivation was to be registered, but there is no registry to do so in."""

    code = "no-registry"

    def __init__(self, doing: str) -> None:
        self.doing = doing
        super().__init__(
            f"{doing} needs a registry and none is given or current; pass r=…, or call it inside a stage or under current_registry(…)"
        )


class ForeignDerivation(Misuse):
    """A needed derivation is not registered in this registry."""

    code = "foreign-derivation"

    def __init__(self, dref: DRef, needed_by: Optional[DRef]) -> None:
        self.dref, self.needed_by = dref, needed_by
        by = f" (needed by {needed_by})" if needed_by else " (a target)"
        super().__init__(
            f"{dref}{by} is not registered in this registry; call its stage with the same r=…, "
            "references of another registry cannot be mixed in"
        )


class CycleError(Misuse):
    """Derivations depend on each other in a circle. `path` names it, first and last being the same."""

    code = "cycle"

    def __init__(self, path: Sequence[str]) -> None:
        self.path = list(path)
        super().__init__(
            f"derivations depend on each other in a circle: {' -> '.join(map(str, self.path))}; remove one of these dependencies"
        )


class InvalidStorage(Misuse):
    """Storage settings that cannot be used together, or folders that are not there."""

    code = "invalid-storage"


class StoreExists(PylightnixException, FileExistsError):
    """A store was to be made where one is already."""

    code = "store-exists"
    exit_status = 73


class CodeKeyError(Misuse):
    """The source of a function cannot be found, so its code has no identity.

    `stale` tells that there was one, and that it changed after it was loaded.
    """

    code = "no-source"

    def __init__(self, what: str, problem: str, stale: bool = False) -> None:
        self.what, self.problem, self.stale = what, problem, stale
        super().__init__(
            f"cannot tell what the code of {what} is: {problem}; define it in a file or a notebook cell, or say options=Options(version=…)"
        )


class TargetNotFound(PylightnixException):
    """A build target does not name a stage or a derivation."""

    code = "target-not-found"
    exit_status = 2


# --- matching -------------------------------------------------------------------------------------


class AmbiguousMatch(Misuse):
    """More realizations match than the caller can do with."""

    code = "ambiguous-match"
    exit_status = 1

    def __init__(
        self, what: str, rrefs: Sequence[RRef], expected: str, advice: str = "choose with a matcher such as match_latest()"
    ) -> None:
        self.what, self.rrefs, self.expected = what, list(rrefs), expected
        shown = ", ".join(self.rrefs[:3]) + (", …" if len(self.rrefs) > 3 else "")
        super().__init__(f"{what}: expected {expected}, found {len(self.rrefs)} ({shown}); {advice}")


class InvalidMatch(Misuse):
    """A matcher answered with something other than realizations that it was offered, or has keys that cannot be compared."""

    code = "invalid-match"
    exit_status = 1

    def __init__(self, dref: DRef, problem: str, expected: Optional[str] = None) -> None:
        self.dref, self.problem = dref, problem
        wanted = expected or "expected a non-empty list of the realizations it was offered, or None to ask for a build"
        super().__init__(f"the matcher of {dref} {problem}; {wanted}")


class MatcherRefused(Misuse):
    """A matcher still demands a build after one was made."""

    code = "matcher-refused"
    exit_status = 1

    def __init__(self, dref: DRef, candidates: int, rrefs: Sequence[RRef] = ()) -> None:
        self.dref, self.candidates = dref, candidates
        shown = ", ".join(rrefs[:3]) + (", …" if len(rrefs) > 3 else "")
        super().__init__(
            f"the matcher of {dref} accepts none of the {candidates} realizations there are after a build{shown and f' ({shown})'}; "
            "it may want more of them than one build makes (nouts), or a property that this one lacks, or its key for them is None"
        )


class NotRealized(Misuse):
    """A derivation had to be realized already, and is not."""

    code = "not-realized"
    exit_status = 1

    def __init__(self, dref: DRef, why: str) -> None:
        self.dref, self.why = dref, why
        super().__init__(f"{dref} is not realized, and {why}")


# --- builds ---------------------------------------------------------------------------------------


class PromiseException(PylightnixException):
    """Outputs lack files that their config promises.

    `failed` lists (output folder, self-path); `left` names what the realizer left in its working folder instead.
    """

    code = "broken-promise"

    def __init__(self, dref: DRef, failed: Iterable[tuple[Path, list[Any]]], left: Iterable[str] = ()) -> None:
        self.dref, self.failed, self.left = dref, list(failed), list(left)
        missing = "; ".join(f"{'/'.join(map(str, sp[1:]))} in {o}" for o, sp in self.failed)
        if self.left:
            instead = ", ".join([*(f"`{name}`" for name in self.left[:5]), *(["…"] if len(self.left) > 5 else [])])
            instead = instead.encode("utf-8", "backslashreplace").decode()
            advice = f" (left {instead} in the working folder); write into the output folder, not to relative paths"
        else:
            advice = "; write them, or drop the self-reference from the config"
        super().__init__(f"{dref} promises files that its realizer did not leave: {missing}{advice}")


class InvalidOutput(Misuse):
    """A realizer returned or left something that cannot become a realization."""

    code = "invalid-output"
    exit_status = 1

    def __init__(self, dref: DRef, where: str, problem: str, advice: str) -> None:
        self.dref, self.where, self.problem, self.advice = dref, where, problem, advice
        super().__init__(f"output of {dref}: {where}: {problem}; {advice}")


class SandboxUnavailable(PylightnixException):
    """A realizer asks to be run in a sandbox, and whoever was to run it has none. It was not run."""

    code = "no-sandbox"

    def __init__(self, sandbox: str, dref: str) -> None:
        self.sandbox, self.dref = sandbox, dref
        super().__init__(
            f"{dref} asks for the sandbox {sandbox!r}, which this version does not have yet; nothing was run. "
            "Leave the option sandbox out to have it built without"
        )


class BuildError(PylightnixException):
    """The realizer of a derivation raised. `exception` is what it raised, `outpaths` what it left."""

    code = "build-failed"

    def __init__(
        self,
        S: Optional[StorageSettings],
        dref: DRef,
        outpaths: Optional[Output[Path]],
        exception: BaseException,
        msg: str = "",
    ) -> None:
        self.S, self.dref, self.exception, self.msg = S, dref, exception, msg
        self.outpaths: list[Path] = list(outpaths.val) if outpaths is not None else []
        super().__init__(dref, msg)

    def __str__(self) -> str:
        # Made when asked for: the driver moves the folders to where they are kept.
        kept = f"; what it left is kept in {', '.join(self.outpaths)}" if self.outpaths else ""
        before = f"{self.msg}: " if self.msg else ""
        return f"{before}building {self.dref} failed: {type(self.exception).__name__}: {self.exception}{kept}"


class RemoteFailure(PylightnixException):
    """Stands for an exception of another process that could not, or must not, be brought here as it was."""

    code = "remote-exception"

    def __init__(self, type_name: str, text: str, traceback: str = "") -> None:
        self.type_name, self.text, self.traceback = type_name, text, traceback
        super().__init__(f"{type_name}: {text}" if text else type_name)


class CommandFailed(PylightnixException):
    """A program that a `command` stage ran did not exit with status 0."""

    code = "command-failed"

    def __init__(self, argv: Sequence[str], status: str, tail: str) -> None:
        self.argv, self.status, self.tail = list(argv), status, tail
        shown = f"\n{tail}" if tail else ""
        super().__init__(f"command {self.argv!r}: expected exit status 0, found {status}{shown}")


class InvalidTree(PylightnixException):
    """A file tree holds something that has no tree hash."""

    code = "invalid-tree"

    def __init__(self, where: str, problem: str) -> None:
        self.where, self.problem = where, problem
        super().__init__(f"{where}: {problem}; a tree holds regular files, folders and symbolic links only")


class InvalidSource(Misuse):
    """A local file or folder cannot be a source: it is not there, cannot be read, or holds what no tree can. `where` says what."""

    code = "invalid-source"
    exit_status = 66

    def __init__(self, where: str, problem: str, advice: str) -> None:
        self.where, self.problem, self.advice = where, problem, advice
        super().__init__(f"{where}: {problem}; {advice}")


class SourceChanged(PylightnixException):
    """A source is not any more what it was when its stage was instantiated."""

    code = "source-changed"

    def __init__(self, where: str, expected: str, found: str) -> None:
        self.where, self.expected, self.found = where, expected, found
        super().__init__(
            f"{where}: it changed after its stage was instantiated: expected the digest {expected}, found {found}; "
            "instantiate the stage again, while nothing writes there"
        )


# --- the store ------------------------------------------------------------------------------------


class StoreError(PylightnixException):
    """The store cannot do what was asked of it. Whatever was acknowledged before is still there."""

    code = "store-error"
    exit_status = 74


class StoreBusy(StoreError):
    """Others hold the store's lock. Waiting and asking again helps."""

    code = "store-busy"
    retryable = True
    exit_status = 75

    def __init__(self, root: str, holders: Sequence[str], waited_seconds: float) -> None:
        self.root, self.holders, self.waited_seconds = root, list(holders), waited_seconds
        who = ", ".join(self.holders) or "another process"
        super().__init__(f"the store {root} is busy: held by {who}; waited {waited_seconds:g} s; try again when that is done")


class StoreReadOnly(StoreError):
    """The store's folder cannot be written."""

    code = "store-read-only"
    exit_status = 73

    def __init__(
        self, root: str, reason: str, advice: str = "choose another with --store or PYLIGHTNIX_ROOT, or mend its permissions"
    ) -> None:
        self.root, self.reason = root, reason
        super().__init__(f"cannot write the store {root}: {reason}; {advice}")


class StoreForeign(StoreError):
    """The store belongs to another user."""

    code = "store-foreign"
    exit_status = 77

    def __init__(self, root: str, owner: str, caller: str) -> None:
        self.root, self.owner, self.caller = root, owner, caller
        super().__init__(
            f"the store {root} belongs to {owner} and you are {caller}; use a store of your own (--store or PYLIGHTNIX_ROOT), "
            f"or ask {owner} to run a daemon on it"
        )


class StoreTooNew(StoreError):
    """The store was written by a newer Pylightnix."""

    code = "store-too-new"
    exit_status = 78

    def __init__(self, root: str, found: int, known: int) -> None:
        self.root, self.found, self.known = root, found, known
        super().__init__(
            f"the index of the store {root} has format {found}, this Pylightnix knows up to {known}; "
            "upgrade Pylightnix or choose another store"
        )


class StoreFull(StoreError):
    """There is no room for what was to be written."""

    code = "store-full"
    exit_status = 74

    def __init__(self, where: str, doing: str, reason: str = "no space left") -> None:
        self.where, self.doing = where, doing
        super().__init__(
            f"{reason} at {where} while {doing}; free some room there and run the same command again, what was finished is kept"
        )


class StoreCorrupt(StoreError):
    """Something in the store is not what its name says."""

    code = "store-corrupt"
    exit_status = 65

    def __init__(self, where: str, problem: str, advice: str) -> None:
        self.where, self.problem, self.advice = where, problem, advice
        super().__init__(f"{where}: {problem}; {advice}")


class StoreIOError(StoreError):
    """The operating system refused an operation on the store."""

    code = "store-io"

    def __init__(
        self, where: str, doing: str, reason: str, advice: str = "check the disk and its file system, then run the same command again"
    ) -> None:
        self.where, self.doing, self.reason = where, doing, reason
        super().__init__(f"{where}: {reason} while {doing}; {advice}")


class InvalidArchive(Misuse):
    """An archive of realizations is damaged, or is none. What stood before the damage and was sound may be in the store."""

    code = "invalid-archive"
    exit_status = 65

    def __init__(self, where: str, problem: str, advice: str = "make it again with pylightnix export, or fetch it again") -> None:
        self.where, self.problem, self.advice = where, problem, advice
        super().__init__(f"{where}: {problem}; {advice}")


class UnpackFailed(Misuse):
    """An archive is damaged, is none, or holds what must not be unpacked. `entry` names what in it, None for the whole.

    Nothing of it is left in the folder, and nothing outside of that was touched.
    """

    code = "unpack-failed"
    exit_status = 65

    def __init__(self, archive: str, entry: Optional[str], problem: str, advice: Optional[str] = None) -> None:
        self.archive, self.entry, self.problem = archive, entry, problem
        self.advice = advice or "fetch or make the archive again"
        where = f"{archive}: " if entry is None else f"{archive}: entry {shown(entry, 400)}: "
        super().__init__(f"{where}{problem}; {self.advice}")


class InvalidChecksum(Misuse):
    """A text that was to be a file's checksum is not."""

    code = "invalid-checksum"

    def __init__(self, algorithm: str, found: object, problem: str) -> None:
        self.algorithm, self.found, self.problem = algorithm, shown(found, 200), problem
        super().__init__(
            f"expected a {algorithm} in hexadecimal, Nix's base 32 or SRI, found {self.found}: {problem}; "
            "pylightnix prefetch URL prints that of a file"
        )


class InvalidURL(Misuse):
    """A text that was to be a URL to fetch from is not. `url` is what may be shown of it."""

    code = "invalid-url"

    def __init__(self, url: str, problem: str) -> None:
        self.url, self.problem = url, problem
        super().__init__(f"cannot fetch from {url!r}: {problem}")


class FetchSetupError(Misuse):
    """Something in a user's environment that a fetch needs does not do: a proxy, a netrc file, certificates."""

    code = "fetch-setup"
    exit_status = 78

    def __init__(self, where: str, problem: str) -> None:
        self.where, self.problem = where, problem
        super().__init__(f"cannot fetch with this environment: {where}: {problem}; mend it, or unset the variable")


class FetchFailed(Misuse):
    """A file cannot be had from any of its URLs, and trying again does not help. `failures` has (URL, problem) of each attempt."""

    code = "fetch-failed"
    exit_status = 1
    _advice: ClassVar[str] = "check the URL"

    def __init__(self, urls: Sequence[str], failures: Sequence[tuple[str, str]]) -> None:
        self.urls, self.failures = list(urls), [(url, problem) for url, problem in failures]
        found = list(dict.fromkeys(f"{url} {problem}" for url, problem in self.failures)) or [f"{_some(self.urls)} was not asked"]
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        super().__init__(f"cannot fetch this file: {'; '.join(found[-5:])}{more}; {self._advice}")


class FetchUnavailable(FetchFailed):
    """A file cannot be had now, and later it may be. What was received is kept, and the next attempt goes on from there."""

    code = "fetch-unavailable"
    retryable = True
    exit_status = 75
    _advice = "run the same again later, it goes on where it stopped"


class WrongChecksum(FetchFailed):
    """A file is not the one that was expected. `kept` is where it lies, for a look at it; None if it was not kept.

    `expected` and `found` have both spellings: ``{"sha256": hexadecimal, "sri": …}``.
    """

    code = "wrong-checksum"
    exit_status = 65

    def __init__(self, url: str, expected: Mapping[str, str], found: Mapping[str, str], kept: Optional[str]) -> None:
        self.url, self.expected, self.found, self.kept = url, dict(expected), dict(found), kept
        super().__init__([url], [(url, "has another checksum")])
        [algorithm] = [name for name in self.expected if name != "sri"]
        aside = f"; the file is kept as {kept}" if kept else ""
        text = (
            f"{url}: expected the {algorithm} {self.expected[algorithm]} ({self.expected['sri']}), "
            f"found {self.found[algorithm]} ({self.found['sri']}){aside}; look at what it is. If it is what you want, give its checksum to "
            f"the stage: {_prefetching(url)}. If it is not, correct {'the URL' if '://' in url else 'the path'}"
        )
        self.args = (text,)


def _prefetching(url: str) -> str:
    """Return which command prints the checksum of what has this URL, or this path."""
    if "://" not in url or url.startswith("file://"):
        return f"pylightnix prefetch {shlex.quote(url)} prints it"
    if "…" in url:  # values of its query, which are not shown
        return "pylightnix prefetch with the stage's URL, in quotes, prints it, and keeps the file for that build"
    return f"pylightnix prefetch {shlex.quote(url)} prints it, and keeps the file for that build"


class ArchiveIOError(Misuse):
    """The operating system refused to read or write an archive."""

    code = "archive-io"
    exit_status = 74

    def __init__(self, where: str, doing: str, reason: str) -> None:
        self.where, self.doing, self.reason = where, doing, reason
        super().__init__(f"{where}: {reason} while {doing}; check the path, its permissions and the room there")


class InUse(PylightnixException):
    """Something was to be removed that others need. `users` names them: {reference: what needs it}. Nothing was removed."""

    code = "in-use"

    def __init__(self, users: Mapping[str, Sequence[str]]) -> None:
        self.users = {ref: list(by) for ref, by in users.items()}
        lines = [f"{ref} is needed by {_some(by)}" for ref, by in list(self.users.items())[:3]]
        more = f"; so are {len(self.users) - 3} others" if len(self.users) > 3 else ""
        super().__init__(f"cannot remove this: {'; '.join(lines)}{more}; remove what needs it first, or wait for its end")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class MissingDerivation(PylightnixException, FileNotFoundError):
    """A derivation is not in this store."""

    code = "missing-derivation"
    exit_status = 66

    def __init__(self, dref: str, where: str) -> None:
        self.dref, self.where = dref, where
        super().__init__(
            f"no derivation {dref} in the store (looked for {where}); instantiate its stage on this store first, or check --store"
        )


class MissingRealization(PylightnixException, FileNotFoundError):
    """A realization is not in this store."""

    code = "missing-realization"
    exit_status = 66

    def __init__(self, rref: str, where: str) -> None:
        self.rref, self.where = rref, where
        super().__init__(f"no realization {rref} in the store (looked for {where}); realize its stage first, or check --store")
