# mypy: ignore-errors
"""Being the realizer."""

from pylightnix import *
from pylightnix.repl import *

fsinit()


def below(r):
    return mkdrv(
        mkconfig({"name": "below"}), match_only(), build_wrapper(lambda b: writestr(join(build_outpath(b), "b"), "by the realizer")), r
    )


def above(r):
    return mkdrv(mkconfig({"name": "above", "below": below(r), "out": [selfref, "out"]}), match_latest(), build_wrapper(lambda b: None), r)


rh = repl_realize(instantiate(above))
assert repl_rref(rh) is None and rh.dref == rh.result
b = repl_build()
try:
    repl_continueBuild(b)
except PromiseException as error:
    assert error.failed[0][1] == ["__self__", "out"]
else:
    raise SystemExit("a broken promise was handed over")
writestr(join(build_outpath(b), "out"), "by hand")
rref = repl_continueBuild(b)
assert repl_rref(rh) == rref and repl_rrefs(rh) == [rref] and catref(rref, ["out"]) == ["by hand"]
assert catref(context_deref(rrefctx(rref), mklens(rref).below.dref)[0], ["b"]) == ["by the realizer"]
rh = repl_realize(instantiate(above), force_interrupt=[mklens(rref).below.dref])
assert repl_continue1(out_rrefs=[mklens(rref).below.rref], rh=rh) == rref
rh = repl_realize(instantiate(above))
b = repl_build(rh)
assert repl_buildargs(rh).dref == b.dref
repl_cancelBuild(b, rh)
assert rh.gen is None and not isdir(build_outpath(b))
