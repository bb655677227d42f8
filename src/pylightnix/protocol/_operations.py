"""Messages of operations: submitting a closure, waiting for it, and what came of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Optional, TypeAlias, Union

import msgspec
from msgspec import UNSET, Meta, UnsetType, field

from pylightnix.protocol import _values as v
from pylightnix.protocol.limits import DERIVATIONS_PER_MESSAGE_MAX
from pylightnix.protocol.vocabulary import Message

__all__ = [
    "Candidate",
    "DerivationSpec",
    "Done",
    "Environment",
    "FailedRow",
    "MatchedRow",
    "MatcherKind",
    "MatcherSpec",
    "Outcome",
    "OutcomePart",
    "RealizerKind",
    "RealizerSpec",
    "Rows",
    "SkippedRow",
    "Steering",
    "StepRow",
    "SubmitAdd",
    "SubmitBlob",
    "SubmitCommit",
    "SubmitOpen",
    "Submitted",
    "ToldRow",
    "Wait",
    "WaitResult",
    "WorkerKind",
]

MatcherKind: TypeAlias = Literal["latest", "only", "all", "some", "exact", "python", "caller"]
WorkerKind: TypeAlias = Literal["warm", "fresh"]
RealizerKind: TypeAlias = Literal["python", "command", "mknode", "fetch", "caller"]
OutcomePart: TypeAlias = Literal["matched", "built", "joined", "reused", "failed", "skipped", "steps", "told"]


class Done(Message, frozen=True, kw_only=True):
    """The result of what has nothing to tell but that it was done."""


# --- submitting -----------------------------------------------------------------------------------------


class Environment(Message, frozen=True, kw_only=True):
    """Where the caller's realizers are to run."""

    interpreter: v.PathText
    import_path: Annotated[list[v.ImportPath], Meta(max_length=1000)]
    umask: v.Umask
    variables: dict[v.VariableName, v.VariableValue]


class SubmitOpen(Message, frozen=True, kw_only=True):
    """Begin an operation. Nothing runs before `submit.commit`."""

    targets: v.DRefs
    forced: v.DRefs = field(default_factory=list)
    assert_realized: v.DRefs = field(default_factory=list)
    dry_run: bool = False
    keep_going: bool = False
    jobs: Optional[v.Positive] = None
    parent: Optional[v.Label] = None
    ask: v.DRefs = field(default_factory=list)
    ask_on_failure: bool = False
    environment: Environment


class Submitted(Message, frozen=True, kw_only=True):
    """The name of the operation that was begun."""

    operation: v.Id


class SubmitBlob(Message, frozen=True, kw_only=True):
    """One piece of a blob that derivations refer to. Pieces come in order; the last one completes `size`."""

    operation: v.Id
    sha256: v.Sha256
    size: v.BlobSize
    offset: v.BlobSize = 0
    data: v.Piece


class MatcherSpec(Message, frozen=True, kw_only=True):
    """Which realizations count."""

    kind: MatcherKind
    n: v.Count = 0
    rrefs: v.RRefs = field(default_factory=list)
    blob: v.BlobKey = ""


class RealizerSpec(Message, frozen=True, kw_only=True):
    """How a derivation is realized."""

    kind: RealizerKind
    blob: v.BlobKey = ""
    reason: v.Text = ""


class Steering(Message, frozen=True, kw_only=True, omit_defaults=True):
    """How a derivation is to be run. What is usual is left out."""

    cpus: v.Positive = 1
    memory: v.Count = 0
    tags: v.Tags = field(default_factory=dict)
    timeout_seconds: Optional[v.Seconds] = None
    silent_timeout_seconds: Optional[v.Seconds] = None
    sandbox: Optional[v.Word] = None
    worker: WorkerKind = "warm"
    priority: v.Priority = 0


class DerivationSpec(Message, frozen=True, kw_only=True):
    """One derivation of a closure."""

    config: v.Canonical
    matcher: MatcherSpec
    realizer: RealizerSpec
    digest: Optional[v.Label] = None
    declared: list[v.VariableName] = field(default_factory=list)
    args: Optional[v.Piece] = None
    samples: v.Positive = 1
    steering: Optional[Steering] = None


class SubmitAdd(Message, frozen=True, kw_only=True):
    """Add derivations, dependencies before dependents."""

    operation: v.Id
    derivations: Annotated[list[DerivationSpec], Meta(max_length=DERIVATIONS_PER_MESSAGE_MAX)]


class SubmitCommit(Message, frozen=True, kw_only=True):
    """Start the operation."""

    operation: v.Id


# --- what comes of it -----------------------------------------------------------------------------------


class Wait(Message, frozen=True, kw_only=True):
    """Be answered when the operation has ended."""

    operation: v.Id


class WaitResult(Message, frozen=True, kw_only=True):
    """How an operation ended, in numbers of derivations."""

    ok: bool
    state: v.Word
    built: v.Count = 0
    joined: v.Count = 0
    reused: v.Count = 0
    failed: v.Count = 0
    skipped: v.Count = 0
    settled: v.Count = 0
    told: v.Count = 0


class Outcome(Message, frozen=True, kw_only=True):
    """Ask for one part of what came of an operation, a page at a time."""

    operation: v.Id
    part: OutcomePart
    offset: v.Count = 0
    limit: v.PageSize = 1000


class Rows(Message, frozen=True, kw_only=True):
    """A page. What a row is depends on what was asked for: see `rows_of`."""

    rows: list[Any]
    next: Optional[v.Count] = None


class MatchedRow(msgspec.Struct, frozen=True, array_like=True):
    """``[dref, [rref, …]]``: what stands for a target."""

    dref: v.DRefText
    rrefs: v.RRefs


class FailedRow(Message, frozen=True, kw_only=True):
    """Why a derivation was not realized; also how a caller reports that what it was asked to do failed."""

    dref: Optional[v.DRefText] = None
    code: v.Word
    message: v.Text
    type: v.Text = ""
    traceback: v.Text = ""
    pickled: Optional[v.Pickled] = None
    exit_status: v.Status = 1
    fields: v.JSONFields = field(default_factory=dict)
    uid: Union[v.Uid, UnsetType] = UNSET
    """Whose code may have made what is pickled: the user for whom it ran. The daemon sets it, whatever was sent."""


class SkippedRow(msgspec.Struct, frozen=True, array_like=True):
    """``[dref, because]``: not looked at, since the other failed."""

    dref: v.DRefText
    because: v.DRefText


class StepRow(msgspec.Struct, frozen=True, array_like=True):
    """``[dref, kind, reason]``: what a dry run says."""

    dref: v.DRefText
    kind: v.Word
    reason: v.Text


class ToldRow(msgspec.Struct, frozen=True, array_like=True):
    """``[dref, category, text]``: a warning that a matcher or a build gave in a process of the daemon's."""

    dref: v.DRefText
    category: v.Word
    text: v.Text


class Candidate(msgspec.Struct, frozen=True, array_like=True):
    """``[rref, started]``: a realization, and when its build started in UTC seconds since the epoch."""

    rref: v.RRefText
    started: v.Seconds
