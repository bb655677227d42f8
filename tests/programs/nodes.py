# mypy: ignore-errors
"""Derivations by hand: a node, and a realizer that looks at it through a lens."""

from pylightnix import *

fsinit()


def texts(r):
    return mknode(r, {"kind": "texts", "file": [selfref, "a.txt"]}, {"a.txt": b"one two three"}, name="texts")


def count(b: Build) -> None:
    lens = mklens(b)
    with open(lens.source.syspath) as f:
        words = f.read().split()
    with open(join(build_outpath(b), "count.txt"), "w") as f:
        f.write(str(len(words) * lens.factor.val))


def counted(r, factor=1):
    name = "counted"
    source = mkrefpath(texts(r), ["a.txt"])
    out = [selfref, "count.txt"]
    return mkdrv(mkconfig(locals()), match_only(), build_wrapper(count), r)


rref = realize1(instantiate(counted))
assert catref(rref, ["count.txt"]) == ["3"]
assert readstr(mklens(rref).out.syspath) == tryread(mklens(rref).out.syspath) == "3"
assert realize1(instantiate(counted)) == rref
assert realize1(instantiate(counted, factor=2)) != rref
assert sorted(lsref(rref)) == ["__buildstart__.txt", "__buildstop__.txt", "context.json", "count.txt"]
assert isrref(rref) and isdref(rref2dref(rref)) and isfile(join(rref2path(rref), "count.txt"))
assert cfgdict(drefcfg_(rref2dref(rref)))["factor"] == 1
assert [undref(dref)[1] for dref in rrefctx(rref)] == ["texts"]
