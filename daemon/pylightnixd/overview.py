"""What `ps` tells: the operations and builds there are, and what builds wait for. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pylightnix.protocol import messages as m
from pylightnixd.builds import Builds
from pylightnixd.kept_results import KeptResults
from pylightnixd.operation import Operation, OperationState
from pylightnixd.table import BuildState, TableEntry

__all__ = ["PS_BUILDS_MAX", "PS_ENDED_MAX", "processes"]

PS_BUILDS_MAX: Final = 1000
"""How many builds are told of."""
PS_ENDED_MAX: Final = 100
"""Of how many operations that have ended."""
_TARGETS_MAX: Final = 100


def processes(operations: Mapping[str, Operation], kept: KeptResults, builds: Builds) -> m.Processes:
    """Return what is going on, and what has ended last."""
    # What runs is told of first: with thousands that wait, it is what somebody wants to know.
    entries = sorted(builds.table.entries(), key=lambda entry: entry.state is BuildState.queued)
    told = entries[:PS_BUILDS_MAX]
    return m.Processes(
        operations=[
            m.OperationLine(
                operation=o.id,
                state=o.state.value,
                targets=o.request.targets[:_TARGETS_MAX],
                user=o.user,
                started=o.created,
                done=o.done,
                total=o.total,
                clients=o.clients,
            )
            for o in operations.values()
        ],
        builds=[_build_line(entry, operations, builds) for entry in told],
        more_builds=len(entries) - len(told),
        given_up=[
            m.GivenUpLine(pid=gone.pid, what=gone.what, since=gone.since, folder=gone.folder) for gone in builds.pool.processes.given_up
        ],
        ended=[
            m.OperationLine(
                operation=result.id,
                state=OperationState.ended.value,
                targets=list(result.targets[:_TARGETS_MAX]),
                user=result.user,
                started=result.created,
                done=result.done,
                total=result.total,
                clients=0,
            )
            for result in kept.latest(PS_ENDED_MAX)
        ],
    )


def _build_line(entry: TableEntry, operations: Mapping[str, Operation], builds: Builds) -> m.BuildLine:
    running = builds.running.get(entry.id)
    users = sorted({operations[name].user for name in entry.operations if name in operations})
    return m.BuildLine(
        build=entry.id,
        dref=entry.key.dref,
        state=entry.state.value,
        operations=list(entry.operations),
        pid=running.pid if running else None,
        started=running.started if running else None,
        user=", ".join(users),
        waiting_for=_waiting_for(entry, builds),
        resources=builds.resources_of(entry.id),
    )


def _waiting_for(entry: TableEntry, builds: Builds) -> str:
    running = builds.running.get(entry.id)
    if running is not None and running.fetching is not None:
        fetch = running.fetching
        return f"{fetch.bytes} of {'?' if fetch.total is None else fetch.total} bytes from {fetch.mirror or 'its mirrors'}"
    if entry.state is not BuildState.queued:
        return "what its realizer has asked for" if entry.waits else "slots to go on" if entry.lent else ""
    return builds.waits_for(entry.needs)
