"""From a closure to the messages that submit it. Pure but for packing what users wrote; see `exchange`."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Optional, Union, cast

from pylightnix.embedded import forced_drefs
from pylightnix.errors import PylightnixException
from pylightnix.nesting import build_token
from pylightnix.options import Options, options_of
from pylightnix.protocol import messages as m
from pylightnix.protocol.limits import BLOB_BYTES_MAX, BLOB_PIECE_BYTES_MAX, DERIVATIONS_PER_MESSAGE_MAX
from pylightnix.registry import RegisteredDerivation, assert_valid_closure, needed_graph
from pylightnix.samples import samples_of
from pylightnix.storage import store_layout
from pylightnix.store.derivations import read_canonical
from pylightnix.store.layout import StoreLayout
from pylightnix.travel import Packed, capture_environment, pack_arguments, pack_claimed, pack_matcher, pack_realizer
from pylightnix.types import Closure, Derivation, DRef, Matcher, RealizeArg, Realizer
from pylightnix_client.code import sent_code
from pylightnix_client.exchange import CREDIT, Ask, Exchange

__all__ = ["Wishes", "steering_of", "submission"]

ADD_BYTES_MAX: Final = 6 << 20
"""Most bytes of configs and arguments in one message; the rest of its 8 MiB is for what is around them."""
_SPEC_BYTES: Final = 400
"""About what a derivation takes besides its config and its arguments."""
_REASON_CHARACTERS: Final = 4000
_POSITIVE_MAX: Final = 2**31 - 1
_COUNT_MAX: Final = 2**53


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a closure is to be realized; as the parameters of `pylightnix.embedded.realize_closure`."""

    force_rebuild: Union[Sequence[DRef], bool] = ()
    assert_realized: Sequence[DRef] = ()
    realize_args: Mapping[DRef, RealizeArg] = field(default_factory=dict)
    dry_run: bool = False
    keep_going: bool = False
    watch: bool = False
    """Whether to subscribe to events, before there are any."""
    log: bool = False
    """Whether to subscribe to what builds write, too."""
    jobs: Optional[int] = None
    """How many builds may be wanted at a time; None for all."""
    ask: Sequence[DRef] = ()
    """Before what to pause."""
    ask_on_failure: bool = False
    """Whether to pause at what failed."""


def submission(closure: Closure, wishes: Wishes) -> Exchange[str]:
    """Submit the part of a closure that its targets need; return the operation's name. It runs then.

    Raises:
        Misuse, ForeignDerivation, MissingDerivation, CycleError: it is no closure that can be realized.
        DaemonRefusal, MessageInvalid: the daemon does not take it. Nothing of it is left then.
    """
    assert_valid_closure(closure)
    forced = forced_drefs(closure, wishes.force_rebuild)
    graph = needed_graph(closure.targets, closure.derivations, closure.S)
    known = {derivation.dref: derivation for derivation in closure.derivations}
    opened = yield Ask(
        "submit.open",
        m.SubmitOpen(
            targets=[str(dref) for dref in closure.targets],
            forced=[str(dref) for dref in forced],
            assert_realized=[str(dref) for dref in wishes.assert_realized],
            dry_run=wishes.dry_run,
            keep_going=wishes.keep_going,
            jobs=wishes.jobs,
            ask=[str(dref) for dref in wishes.ask],
            ask_on_failure=wishes.ask_on_failure,
            parent=build_token(store_layout(closure.S).storage),
            environment=_environment({name for dref in graph.order for name in options_of(known[dref].realizer).env}),
        ),
    )
    operation: str = opened.operation
    layout = store_layout(closure.S)
    packing = _Packing(operation)
    try:
        batch: list[m.DerivationSpec] = []
        size = 0
        for dref in graph.order:
            spec, weight = packing.spec(known[dref], _canonical(known[dref], layout), wishes.realize_args.get(dref))
            yield from packing.blobs()
            if batch and (len(batch) == DERIVATIONS_PER_MESSAGE_MAX or size + weight > ADD_BYTES_MAX):
                yield Ask("submit.add", m.SubmitAdd(operation=operation, derivations=batch))
                batch, size = [], 0
            batch.append(spec)
            size += weight
        yield Ask("submit.add", m.SubmitAdd(operation=operation, derivations=batch))
        if wishes.watch:
            yield Ask("subscribe", m.Subscribe(operation=operation, credit=CREDIT, log=wishes.log))
        yield Ask("submit.commit", m.SubmitCommit(operation=operation))
    except PylightnixException:
        yield Ask("cancel", m.Cancel(operation=operation))
        raise
    return operation


def _canonical(derivation: Derivation, layout: StoreLayout) -> bytes:
    if isinstance(derivation, RegisteredDerivation) and derivation.config is not None:
        return derivation.config
    return read_canonical(layout, derivation.dref)


def _environment(declared: Iterable[str]) -> m.Environment:
    found = capture_environment(declared)
    return m.Environment(
        interpreter=found.interpreter,
        import_path=list(found.import_path),
        umask=found.umask,
        variables=found.variables,
    )


def steering_of(options: Options) -> Optional[m.Steering]:
    """Return what a daemon is told of a stage's options; None if there is nothing to tell."""
    steering = m.Steering(
        cpus=min(math.ceil(options.cpus), _POSITIVE_MAX),  # more than any daemon has, and so is what is cut
        memory=min(options.memory or 0, _COUNT_MAX),
        tags={name: min(number, _POSITIVE_MAX) for name, number in options.tags.items()},
        timeout_seconds=options.timeout_seconds,
        silent_timeout_seconds=options.silent_timeout_seconds,
        sandbox=options.sandbox,
        worker=options.worker,
        priority=options.priority,
    )
    return None if steering == m.Steering() else steering


RealizerKind = Literal["command", "mknode", "fetch", "python", "caller"]
MatcherKind = Literal["latest", "some", "only", "all", "exact", "python", "caller"]


class _Packing:
    """Turns derivations into specs; every blob goes once."""

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self._sent: set[str] = set()
        self._unsent: list[tuple[str, bytes]] = []
        self._realizers: dict[int, tuple[Realizer, m.RealizerSpec, Optional[str]]] = {}
        self._matchers: dict[int, tuple[Matcher, m.MatcherSpec]] = {}
        self._codes: dict[bytes, tuple[Optional[str], Packed]] = {}

    def spec(self, derivation: Derivation, config: bytes, arguments: Optional[RealizeArg]) -> tuple[m.DerivationSpec, int]:
        """Return the derivation as it travels, and about how many bytes that is. Its blobs go before it."""
        realizer, digest = self._realizer(derivation)
        packed = pack_arguments(arguments or {})
        args = packed.blob
        if packed.kind == "caller" or len(args or b"") > BLOB_PIECE_BYTES_MAX:
            reason = packed.reason or f"they take {len(args or b'')} bytes, and {BLOB_PIECE_BYTES_MAX} may be sent"
            reason = f"its arguments: {reason}".encode("utf-8", "backslashreplace").decode()
            realizer = m.RealizerSpec(kind="caller", reason=reason[:_REASON_CHARACTERS])
            # They stay here, and this stands for them: nobody can tell whether others are equal to what is not bytes.
            args = hashlib.sha256(args).digest() if args is not None else os.urandom(32)
        matcher = self._matcher(derivation)
        samples = samples_of(derivation.realizer) if realizer.kind == "python" else 1  # here they are made in order
        options = options_of(derivation.realizer)
        spec = m.DerivationSpec(
            config=config,
            matcher=matcher,
            realizer=realizer,
            digest=digest,
            declared=list(options.env),
            args=args,
            samples=samples,
            steering=steering_of(options),
        )
        return spec, len(config) + len(args or b"") + 90 * len(matcher.rrefs) + len(realizer.reason) + _SPEC_BYTES

    def _realizer(self, derivation: Derivation) -> tuple[m.RealizerSpec, Optional[str]]:
        """Return the realizer as it travels, and what code it is."""
        realizer = derivation.realizer
        known = self._realizers.get(id(realizer))
        if known is not None:
            return known[1:]
        packed = pack_realizer(realizer)
        digest = None  # where the code is this package's
        if packed.kind == "python" and packed.blob is not None:
            if packed.blob not in self._codes:  # what is pickled alike is the same code
                code = sent_code(realizer, travels=True)
                self._codes[packed.blob] = code.digest, packed if code.claim is None else pack_claimed(packed.blob, code.claim)
            digest, packed = self._codes[packed.blob]
        elif packed.kind == "caller":
            digest = sent_code(realizer, travels=False).digest
        kind, blob, reason = self._taken(packed.kind, packed.blob, packed.reason)
        spec = m.RealizerSpec(kind=cast(RealizerKind, kind), blob=blob, reason=reason)
        self._realizers[id(realizer)] = (realizer, spec, digest)  # with the object itself, so that nothing else gets its id
        return spec, digest

    def _matcher(self, derivation: Derivation) -> m.MatcherSpec:
        matcher = derivation.matcher
        known = self._matchers.get(id(matcher))
        if known is not None:
            return known[1]
        packed = pack_matcher(matcher)
        kind, blob, _ = self._taken(packed.kind, packed.blob, packed.reason)
        spec = m.MatcherSpec(kind=cast(MatcherKind, kind), n=packed.n, rrefs=[str(rref) for rref in packed.rrefs], blob=blob)
        self._matchers[id(matcher)] = (matcher, spec)
        return spec

    def _taken(self, kind: str, blob: Optional[bytes], reason: str) -> tuple[str, str, str]:
        """Return kind, hash and reason of something packed; what is too large stays here."""
        if blob is None:
            return kind, "", reason.encode("utf-8", "backslashreplace").decode()[:_REASON_CHARACTERS]
        if len(blob) > BLOB_BYTES_MAX:
            return "caller", "", f"it takes {len(blob)} bytes, and {BLOB_BYTES_MAX} may be sent"
        sha256 = hashlib.sha256(blob).hexdigest()
        if sha256 not in self._sent:
            self._sent.add(sha256)
            self._unsent.append((sha256, blob))
        return kind, sha256, ""

    def blobs(self) -> Iterator[Ask]:
        """Yield the messages of the blobs that were not sent yet."""
        for sha256, blob in self._unsent:
            for offset in range(0, max(1, len(blob)), BLOB_PIECE_BYTES_MAX):
                piece = blob[offset : offset + BLOB_PIECE_BYTES_MAX]
                yield Ask("submit.blob", m.SubmitBlob(operation=self._operation, sha256=sha256, size=len(blob), offset=offset, data=piece))
        self._unsent.clear()
