"""The language of client and daemon: all its methods and notifications.

This file holds the tables; the types lie by theme in the files beside it and are all to be had from here.
What is said of each in `docs/protocol.md` is compared with these tables by a test. Must not know who
answers a request, nor how.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias, Union

import msgspec

from pylightnix.protocol._caller import Abandon, Claim, Deliver, Match, MatchAnswer
from pylightnix.protocol._hello import CallerClass, ClientHello, DaemonWelcome
from pylightnix.protocol._inspection import (
    BuildLine,
    Code,
    CodeResult,
    DaemonStatus,
    GivenUpLine,
    Held,
    Info,
    InfoResult,
    Log,
    LogResult,
    OperationLine,
    Processes,
    Ps,
    Query,
    QueryWhat,
    Register,
    Registered,
    Status,
)
from pylightnix.protocol._operations import (
    Candidate,
    DerivationSpec,
    Done,
    Environment,
    FailedRow,
    MatchedRow,
    MatcherKind,
    MatcherSpec,
    Outcome,
    OutcomePart,
    RealizerKind,
    RealizerSpec,
    Rows,
    SkippedRow,
    Steering,
    StepRow,
    SubmitAdd,
    SubmitBlob,
    SubmitCommit,
    SubmitOpen,
    Submitted,
    ToldRow,
    Wait,
    WaitResult,
    WorkerKind,
)
from pylightnix.protocol._pausing import Insert, Inserted, InsertOpen, InsertOpened, Pause, PauseAnswer
from pylightnix.protocol._removal import MEND_MAX, NEEDED_BY_MAX, KeptRow, Mend, Mended, MendedRow, Remove, Removed
from pylightnix.protocol._values import DRefText, RRefText
from pylightnix.protocol._watching import (
    Attach,
    Attached,
    Cancel,
    Credit,
    DrainingNotice,
    Ended,
    Event,
    EventKind,
    EventPhase,
    Events,
    Fetched,
    Fetching,
    LogPiece,
    Resources,
    Subscribe,
)
from pylightnix.protocol.errors import MessageInvalid
from pylightnix.protocol.vocabulary import HELLO, Message, Method, NotificationType, Side, Vocabulary, in_words

__all__ = [
    "Abandon",
    "Attach",
    "Attached",
    "BuildLine",
    "CLIENT_VOCABULARY",
    "CallerClass",
    "Cancel",
    "Candidate",
    "Claim",
    "ClientHello",
    "Code",
    "CodeResult",
    "Credit",
    "DaemonStatus",
    "DaemonWelcome",
    "Deliver",
    "DerivationSpec",
    "Done",
    "DrainingNotice",
    "Ended",
    "Environment",
    "Event",
    "EventKind",
    "EventPhase",
    "Events",
    "FailedRow",
    "Fetched",
    "Fetching",
    "GivenUpLine",
    "Held",
    "Info",
    "InfoResult",
    "Insert",
    "InsertOpen",
    "InsertOpened",
    "Inserted",
    "KeptRow",
    "Log",
    "LogPiece",
    "LogResult",
    "MEND_MAX",
    "METHODS",
    "Match",
    "MatchAnswer",
    "MatchedRow",
    "MatcherKind",
    "MatcherSpec",
    "Mend",
    "Mended",
    "MendedRow",
    "Message",
    "NEEDED_BY_MAX",
    "NOTIFICATIONS",
    "OUTCOME_ROWS",
    "OperationLine",
    "Outcome",
    "OutcomePart",
    "Pause",
    "PauseAnswer",
    "Processes",
    "Ps",
    "QUERY_ROWS",
    "Query",
    "QueryWhat",
    "RealizerKind",
    "RealizerSpec",
    "Register",
    "Registered",
    "Remove",
    "Removed",
    "Resources",
    "Row",
    "Rows",
    "SkippedRow",
    "Status",
    "Steering",
    "StepRow",
    "SubmitAdd",
    "SubmitBlob",
    "SubmitCommit",
    "SubmitOpen",
    "Submitted",
    "Subscribe",
    "ToldRow",
    "Wait",
    "WaitResult",
    "WorkerKind",
    "rows_of",
]

METHODS: Final[dict[str, Method]] = {
    HELLO: Method(ClientHello, DaemonWelcome, read_only=True),
    "register": Method(Register, Registered),
    "submit.open": Method(SubmitOpen, Submitted),
    "submit.blob": Method(SubmitBlob, Done),
    "submit.add": Method(SubmitAdd, Done),
    "submit.commit": Method(SubmitCommit, Done),
    "wait": Method(Wait, WaitResult, read_only=True),
    "outcome": Method(Outcome, Rows, read_only=True),
    "subscribe": Method(Subscribe, Done, read_only=True),
    "cancel": Method(Cancel, Done),
    "attach": Method(Attach, Attached, read_only=True),
    "ps": Method(Ps, Processes, read_only=True),
    "status": Method(Status, DaemonStatus, read_only=True),
    "log": Method(Log, LogResult, read_only=True),
    "info": Method(Info, InfoResult, read_only=True),
    "code": Method(Code, CodeResult, read_only=True),
    "query": Method(Query, Rows, read_only=True),
    "remove": Method(Remove, Removed),
    "mend": Method(Mend, Mended),
    "deliver": Method(Deliver, Done),
    "abandon": Method(Abandon, Done),
    "match.answer": Method(MatchAnswer, Done),
    "pause.answer": Method(PauseAnswer, Done),
    "insert.open": Method(InsertOpen, InsertOpened),
    "insert": Method(Insert, Inserted),
}
"""What a client may ask of a daemon."""

NOTIFICATIONS: Final[dict[str, NotificationType]] = {
    "credit": NotificationType(Credit, Side.client),
    "fetched": NotificationType(Fetched, Side.client),
    "events": NotificationType(Events, Side.server),
    "log": NotificationType(LogPiece, Side.server),
    "ended": NotificationType(Ended, Side.server),
    "draining": NotificationType(DrainingNotice, Side.server),
    "claim": NotificationType(Claim, Side.server),
    "match": NotificationType(Match, Side.server),
    "pause": NotificationType(Pause, Side.server),
}
"""What either tells the other without being asked."""

CLIENT_VOCABULARY: Final = Vocabulary.of(METHODS, NOTIFICATIONS)

Row: TypeAlias = Union[MatchedRow, FailedRow, SkippedRow, StepRow, ToldRow, Candidate, str]

# Each value is a type to convert to; msgspec takes Annotated ones, for which typing has no name.
OUTCOME_ROWS: Final[dict[str, object]] = {
    "matched": MatchedRow,
    "built": DRefText,
    "joined": DRefText,
    "reused": DRefText,
    "failed": FailedRow,
    "skipped": SkippedRow,
    "steps": StepRow,
    "told": ToldRow,
}
"""What a row of each part of an outcome is."""

QUERY_ROWS: Final[dict[str, object]] = {
    "allrrefs": RRefText,
    "drefrrefs": RRefText,
    "drefrrefsC": RRefText,
    "rootrrefs": RRefText,
    "starts": Candidate,
}
"""What a row of the answer to each query is."""


def rows_of(question: OutcomePart | QueryWhat, page: Rows) -> list[Row]:
    """Return the rows of a page with their types, as the question (`part` or `what`) that was asked has them.

    Raises:
        MessageInvalid: a row is not of that type.
    """
    kind: Any = {**OUTCOME_ROWS, **QUERY_ROWS}[question]
    rows: list[Row] = []
    for i, row in enumerate(page.rows):
        try:
            rows.append(msgspec.convert(row, kind, strict=True, builtin_types=(bytes,)))
        except msgspec.ValidationError as error:
            raise MessageInvalid(in_words(str(error)), f"$.rows[{i}]") from error
    return rows
