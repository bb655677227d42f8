# mypy: ignore-errors
"""Looking through configs."""

from pylightnix import *

fsinit()


def low(r):
    return mknode(
        r, {"n": 1, "table": {"deep": [1, 2]}, "json": [selfref, "x.json"]}, {"x.json": json_dumps({"a": {"b": 5}}).encode()}, "low"
    )


def high(r):
    def realizer(b: Build) -> None:
        l = mklens(b)
        assert l.low.n.val == 1 and l.low.json.a.b.val == 5
        writestr(l.out.syspath, l.low.json.contents)

    return mkdrv(
        mkconfig({"name": "high", "low": low(r), "out": [selfref, "o"], "nothing": None}), match_latest(), build_wrapper(realizer), r
    )


dref, closure = instantiate(high)
rref = realize1(closure)
l = mklens(rref)
assert l.low.table.deep.val == [1, 2] and l.get("low").n.val == 1 and l.nothing.optval is None
assert l.out.contents == l.low.json.contents and l.rref == rref and l.dref == dref
assert l.low.rref == rrefctx(rref)[l.low.dref][0] and l.low.syspath == rref2path(l.low.rref)
assert mklens(closure).low.n.val == mklens(dref).low.n.val == 1
assert realize1(mklens(dref, closure=closure).low.closure) == l.low.rref
assert readjson(l.low.json.syspath)["a"]["b"] == mklens(l.low.json.refpath, rref=rref).a.b.val == 5
d = {"name": "x", "opts": {"lr": 1}}
mklens(d).opts.lr.val = 2
assert mklens(d).opts.lr.val == 2 == d["opts"]["lr"] and mkconfig(d).val["opts"] == {"lr": 2}
for bad in (lambda: l.none, lambda: l.nothing.val, lambda: l.low.n.rref):
    try:
        bad()
    except AssertionError:
        pass
    else:
        raise SystemExit("an error was expected")
