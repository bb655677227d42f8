# mypy: ignore-errors
"""Choosing among realizations: keys, trims, matchers of one's own."""

from pylightnix import *

fsinit()


def sample(b: Build) -> None:
    for i, path in enumerate(build_outpaths(b)):
        writestr(join(path, "accuracy"), str(i / 10))


def sampled(matcher, r: Registry) -> DRef:
    return mkdrv(mkconfig({"name": "sampled", "accuracy": [selfref, "accuracy"]}), matcher, build_wrapper(sample, nouts=5), r)


def accuracy(S, rref: RRef) -> Optional[float]:
    value = float(mklens(rref, S=S).accuracy.contents)
    return value if value > 0 else None


def values(matcher):
    return sorted(float(readstr(mklens(rref).accuracy.syspath)) for rref in realizeMany(instantiate(sampled, matcher)))


def above(S, rrefs: List[RRef]) -> Optional[List[RRef]]:
    found = [rref for rref in rrefs if (accuracy(S, rref) or 0) >= 0.3]
    return found or None


assert values(match_some(1, lambda S, rref: accuracy(S, rref) or 0)) == [0.4]
assert values(match_some(4, lambda S, rref: accuracy(S, rref) or 0)) == [0.1, 0.2, 0.3, 0.4]
assert values(match(accuracy, lambda rrefs: rrefs[-1:])) == [0.1]
assert values(match(accuracy, lambda rrefs: rrefs[:2], match_some(1, lambda S, rref: -accuracy(S, rref)))) == [0.3]
assert values(match(latest(), lambda rrefs: rrefs)) == values(match_all) == values(match_latest(5))
assert values(above) == [0.3, 0.4]
best = realize1(instantiate(sampled, match(accuracy, lambda rrefs: rrefs[:1])))
assert (
    realizeMany(instantiate(sampled, match_exact([best]))) == realizeMany(instantiate(sampled, match(exact([best]), lambda l: l))) == [best]
)
assert values(output_matcher(lambda S, o: Output(o.val[:1]))) != []
assert realizeMany(instantiate(sampled, match(texthash(), lambda l: l[:1]))) == [max(drefrrefs(rref2dref(best)))]
for wrong in (match_only(), lambda S, rrefs: []):
    try:
        values(wrong)
    except AssertionError:
        pass
    else:
        raise SystemExit("an error was expected")
