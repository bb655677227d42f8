"""Laws of the language, on small random graphs of real stages in real stores."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FsPath
from typing import Any, Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.stores import Notes, is_served, new_store, output, picture, refuses, stage, writes

from pylightnix import (
    AmbiguousMatch,
    Attrs,
    Closure,
    Config,
    Context,
    DRef,
    Matcher,
    Path,
    Realizer,
    Registry,
    RRef,
    StorageSettings,
    allrrefs,
    autostage,
    exact,
    instantiate,
    latest,
    match,
    match_all,
    match_exact,
    match_latest,
    match_only,
    match_some,
    mkclosure,
    mkconfig,
    mkdrv,
    mknode,
    mkrealization,
    mkregistry,
    realize,
    realizeMany,
    rref2path,
    selfref,
    texthash,
    timestring,
)
from pylightnix.protocol import Decoder, Request, encode_request, parse_message
from pylightnix.protocol import messages as m
from pylightnix.stages.command import CommandRealizer
from pylightnix.travel.claims import ClaimedRealizer
from pylightnix.travel.packing import builtin_matcher, unpack, unpack_node
from pylightnix_client.submission import Wishes, submission

pytestmark = pytest.mark.language


@dataclass(frozen=True)
class Node:
    """One stage: how it is written, what it depends on, and what distinguishes it."""

    kind: str
    below: tuple[int, ...]
    value: Any
    outputs: int
    matcher: str


MATCHERS: dict[str, Callable[[int], Matcher]] = {"latest": match_latest, "some": match_some, "all": lambda _: match_all}

values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("abé", max_size=3), lambda inner: st.lists(inner, max_size=2)
)


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    size = draw(st.integers(1, 5))
    below = [tuple(draw(st.lists(st.integers(0, i - 1), max_size=2, unique=True))) if i else () for i in range(size)]
    kinds = st.sampled_from(["drv", "auto", "node"])
    return [Node(draw(kinds), deps, draw(values), draw(st.integers(1, 2)), draw(st.sampled_from(sorted(MATCHERS)))) for deps in below]


@st.composite
def orders(draw: st.DrawFn, graph: Sequence[Node]) -> list[int]:
    """Draw an order in which the stages can be defined: each after what it depends on."""
    found: list[int] = []
    while len(found) < len(graph):
        free = [i for i, node in enumerate(graph) if i not in found and set(node.below) <= set(found)]
        found.append(draw(st.sampled_from(free)))
    return found


@autostage(out=[selfref, "out.txt"])
def auto(out: str, value: Any, below: list[Attrs]) -> None:
    FsPath(out).write_text(f"{value} {len(below)}")


def counting(ran: Optional[Notes], *outputs: Mapping[str, str]) -> Realizer:
    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        if ran is not None:
            ran.append(dref)
        return writes(*outputs)(S, dref, context, rarg)

    return realizer


def stages(graph: Sequence[Node], order: Sequence[int], r: Registry, *, ran: Optional[Notes] = None) -> list[DRef]:
    """Define the stages in this order; return their derivations in that of the graph."""
    drefs: dict[int, DRef] = {}
    for i in order:
        node, name = graph[i], f"n{i}"
        deps = [drefs[dep] for dep in node.below]
        if node.kind == "node":
            drefs[i] = mknode(r, {"value": node.value, "below": deps}, {"out.txt": json.dumps(node.value).encode()}, name=name)
        elif node.kind == "auto":
            drefs[i] = auto(r, name=name, value=node.value, below=deps)
        else:
            realizer = counting(ran, *({"out.txt": f"{node.value} {n}"} for n in range(node.outputs)))
            config = mkconfig({"name": name, "value": node.value, "below": deps, "outputs": node.outputs})
            drefs[i] = mkdrv(config, MATCHERS[node.matcher](node.outputs), realizer, r)
    return [drefs[i] for i in range(len(graph))]


def examples(S: StorageSettings, embedded: int) -> settings:
    return settings(deadline=None, max_examples=4 if is_served(S) else embedded, suppress_health_check=[HealthCheck.too_slow])


# --- instantiate ----------------------------------------------------------------------------------------


def test_instantiate_is_pure_and_the_order_of_independent_stages_does_not_matter(S: StorageSettings) -> None:
    @examples(S, 25)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        graph = data.draw(graphs())
        order, other = data.draw(orders(graph)), data.draw(orders(graph))
        drefs, closure = instantiate(stages, graph, order, S=S)
        before = picture(S)
        assert instantiate(stages, graph, order, S=S)[0] == drefs
        assert instantiate(stages, graph, other, S=S)[0] == drefs
        assert picture(S) == before
        assert [derivation.dref for derivation in closure.derivations] == [drefs[i] for i in order]
        assert list(allrrefs(S)) == []

    check()


# --- realize --------------------------------------------------------------------------------------------


def test_realize_is_idempotent(S: StorageSettings) -> None:
    numbers = itertools.count()

    @examples(S, 15)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        ran = Notes()
        graph = [*data.draw(graphs()), Node("drv", (), f"example {next(numbers)}", 1, "latest")]
        order, other = data.draw(orders(graph)), data.draw(orders(graph))
        closure = instantiate(stages, graph, order, S=S, ran=ran)
        _, _, context = realize(closure)
        assert closure[0][-1] in list(ran)
        assert len(set(ran)) == len(ran)
        runs, before = len(ran), picture(S)
        assert realize(closure)[2] == context
        assert realize(instantiate(stages, graph, other, S=S, ran=ran))[2] == context
        assert len(ran) == runs
        assert picture(S) == before

    check()


# --- matching -------------------------------------------------------------------------------------------


def size(S: StorageSettings, rref: RRef) -> Optional[int]:
    """A key that has ties, and leaves some out."""
    text = FsPath(rref2path(rref, S), "out.txt").read_text()
    return len(text) if text else None


def head(n: int) -> Callable[[list[RRef]], Optional[list[RRef]]]:
    return lambda rrefs: rrefs[:n] or None


def matchers(n: int, some: list[RRef]) -> dict[str, Matcher]:
    """Return each matcher and each key that there is."""
    keys = {"texthash": texthash(), "latest": latest(), "exact": exact(some), "size": size}
    return {
        "only": match_only(),
        "latest": match_latest(n),
        "some": match_some(n),
        "all": match_all,
        "exact": match_exact(some),
        **{f"some by {name}": match_some(n, keys[name]) for name in ("texthash", "latest")},  # those that leave none out
        **{f"match by {name}": match(key, head(n)) for name, key in keys.items()},
        **{f"match by {name}, then latest": match(key, head(n + 1), match_latest(n)) for name, key in keys.items()},
    }


def answer(matcher: Matcher, S: StorageSettings, rrefs: list[RRef]) -> object:
    try:
        return matcher(S, rrefs)
    except AmbiguousMatch as error:
        return "ambiguous", str(error)


def test_matching_depends_on_nothing_but_what_there_is(S: StorageSettings, tmp_path: FsPath) -> None:
    numbers = itertools.count()
    other = new_store(tmp_path / "other")
    # Texts, with seconds at which they were begun: few, so that there are ties.
    made = st.dictionaries(st.text("ab", max_size=3), st.integers(1, 3), min_size=1, max_size=5)

    def insert(store: StorageSettings, name: str, texts: Sequence[tuple[str, int]]) -> tuple[DRef, list[RRef]]:
        dref: DRef = instantiate(lambda r: stage(r, name), S=store)[0]
        folders = [output(store, {"out.txt": text, "__buildstart__.txt": timestring(float(begun))}) for text, begun in texts]
        return dref, [mkrealization(dref, {}, folder, store) for folder in folders]

    @examples(S, 15)
    @given(made, st.integers(0, 4), st.data())
    def check(found: dict[str, int], n: int, data: st.DataObject) -> None:
        name = f"matched-{next(numbers)}"
        one, two = list(found.items()), data.draw(st.permutations(list(found.items())))
        dref, rrefs = insert(S, name, one)
        assert insert(other, name, two)[0] == dref
        shuffled = data.draw(st.permutations(rrefs))
        some = data.draw(st.lists(st.sampled_from(rrefs), unique=True))
        for what, matcher in matchers(n, some).items():
            first = answer(matcher, S, rrefs)
            assert answer(matcher, S, list(shuffled)) == first, what
            assert answer(matcher, other, list(shuffled)) == first, what
            if isinstance(first, list) and first:
                for store in (S, other):
                    plan = instantiate(lambda r, chosen=matcher: stage(r, name, matcher=chosen, realizer=refuses), S=store)
                    assert realizeMany(plan) == sorted(first), what

    check()


# --- closures on the wire -------------------------------------------------------------------------------


def sent(closure: Closure) -> list[m.Message]:
    """Return the messages that submit a closure, as they arrive: from bytes."""
    decoder, arrived = Decoder(), list[m.Message]()
    asking = submission(closure, Wishes())
    answered: Any = None
    for number in itertools.count():
        try:
            ask = asking.send(answered)
        except StopIteration:
            return arrived
        decoder.receive_data(encode_request(number, ask.method, ask.params))
        request = decoder.next_message()
        assert isinstance(request, Request)
        arrived.append(parse_message(request.params, m.METHODS[request.method].params))
        answered = m.Submitted(operation="1") if ask.method == "submit.open" else m.Done()
    raise AssertionError("BUG: it counts forever")


def unpack_claimed(blob: bytes) -> Realizer:
    realizer: Realizer | ClaimedRealizer = unpack(blob)
    return unpack(realizer.blob) if isinstance(realizer, ClaimedRealizer) else realizer


def received(messages: list[m.Message], S: StorageSettings) -> Closure:
    """Make a closure of the messages."""
    r = mkregistry(S)
    blobs = {message.sha256: message.data for message in messages if isinstance(message, m.SubmitBlob)}
    opened = messages[0]
    assert isinstance(opened, m.SubmitOpen)
    for message in messages:
        for spec in message.derivations if isinstance(message, m.SubmitAdd) else ():
            taken, made = spec.matcher, spec.realizer
            rrefs = [RRef(rref) for rref in taken.rrefs]
            matcher = unpack(blobs[taken.blob]) if taken.kind == "python" else builtin_matcher(taken.kind, taken.n, rrefs)
            unpacking: dict[str, Callable[[bytes], Realizer]] = {"mknode": unpack_node, "python": unpack_claimed}
            realizer = CommandRealizer() if made.kind == "command" else unpacking[made.kind](blobs[made.blob])
            mkdrv(Config(json.loads(spec.config)), matcher, realizer, r)
    return mkclosure([DRef(target) for target in opened.targets], r)


@pytest.mark.embedded_only("it is about what would be sent to a daemon")
def test_a_closure_survives_its_way_over_the_wire(S: StorageSettings, tmp_path: FsPath) -> None:
    far = new_store(tmp_path / "far")
    last = match(size, head(1))

    @examples(S, 15)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        graph = data.draw(graphs())

        def main(r: Registry) -> list[DRef]:
            drefs = stages(graph, range(len(graph)), r)
            return [*drefs[-1:], stage(r, "top", matcher=last, realizer=writes({"out.txt": "1"}, {"out.txt": "22"}), below=drefs)]

        targets, closure = instantiate(main, S=S)
        arrived = received(sent(closure), far)
        assert arrived.targets == targets
        expected = {derivation.dref: derivation for derivation in closure.derivations}
        assert {derivation.dref for derivation in arrived.derivations} == set(expected)
        for derivation in arrived.derivations:
            if expected[derivation.dref].matcher is not last:
                assert derivation.matcher == expected[derivation.dref].matcher
        assert realize(arrived)[2] == realize(closure)[2]

    check()
