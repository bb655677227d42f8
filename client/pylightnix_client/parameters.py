"""The kinds of parameters that commands share, and how the shell completes them.

A completion answers from the store's names, and from what its daemon says at once: it never imports users'
code, makes no store, starts no daemon, and on any trouble it just knows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Optional, TypeVar

import click
from click.shell_completion import CompletionItem

from pylightnix_client.output import Answers
from pylightnix_client.session import Session

if TYPE_CHECKING:
    from pylightnix.protocol import messages as m

__all__ = ["LogType", "OperationType", "ReferenceType", "TargetType", "json_option"]

_COMPLETIONS_MAX = 500
_ANSWER_SECONDS: Final = 0.3
"""How long a daemon may take to answer a completion."""
_F = TypeVar("_F", bound=Callable[..., Any])


def _set_json(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    session = ctx.find_object(Session)
    if session is not None:  # there is none while a shell asks for completions
        session.answers.as_json = value


def json_option(command: _F) -> _F:
    """Add ``--json`` to a command: it sets what `Session.answers` writes."""
    option = click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=_set_json,
        help="Print JSON objects, one a line, for programs.",
    )
    return option(command)


def _stored(ctx: click.Context, incomplete: str, kinds: Sequence[str]) -> list[CompletionItem]:
    from pylightnix_client.references import stored_references

    # Bash takes a colon for the end of a word. So the kind is offered only to whoever typed it in a shell
    # that keeps it; everywhere else the rest is, which is understood as well.
    cut = 0 if ":" in incomplete else len("dref:")
    try:
        found = sorted(stored_references(incomplete, _session(ctx).settings(_ANSWER_SECONDS), kinds))
    except Exception:  # noqa: BLE001  # whatever it is, a traceback would land in the command that is being typed
        return []
    return [CompletionItem(ref[cut:], help=_KIND_NAMES[ref[:4]]) for ref in found[:_COMPLETIONS_MAX]]


def _session(ctx: click.Context) -> Session:
    given = ctx.find_root().params
    return Session(Answers(as_json=False), given.get("store"), given.get("socket"))


def _running(ctx: click.Context) -> Optional[m.Processes]:
    """Return what the daemon is at; None if there is none, or none that answers while somebody waits at a prompt."""
    from pylightnix.protocol import messages as m
    from pylightnix_client.exchange import Ask

    try:
        with _session(ctx).connect(_ANSWER_SECONDS) as client:
            found = client.call(Ask("ps", m.Ps()), _ANSWER_SECONDS)
    except Exception:  # noqa: BLE001  # as above
        return None
    return found if isinstance(found, m.Processes) else None


_KIND_NAMES = {"dref": "derivation", "rref": "realization"}


class ReferenceType(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """A reference to something in the store. Resolved by the command, which knows the store."""

    name = "ref"

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer what the store has."""
        # The file first: click's script for bash forgets what stood before one.
        return [CompletionItem(incomplete, type="file"), *_stored(ctx, incomplete, self.kinds)]


class OperationType(click.ParamType):  # type: ignore[type-arg]  # as above
    """What a daemon was asked for and is at."""

    name = "operation"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer what runs now."""
        found = _running(ctx)
        lines = [] if found is None else found.operations
        return [CompletionItem(line.operation, help=" ".join(line.targets[:3])) for line in lines if line.operation.startswith(incomplete)]


class LogType(ReferenceType):
    """Something that was built, or a build."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer builds that run now, and what the store has."""
        found = _running(ctx)
        lines = [] if found is None else found.builds
        builds = [CompletionItem(line.build, help=line.dref) for line in lines if line.build.startswith(incomplete)]
        return [*super().shell_complete(ctx, param, incomplete), *builds]


class TargetType(click.ParamType):  # type: ignore[type-arg]  # as above
    """What to build."""

    name = "target"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer files, and derivations to whoever begins with ``dref:``."""
        if incomplete.startswith("dref:"):
            return _stored(ctx, incomplete, ("dref",))
        return [CompletionItem(incomplete, type="file")]
