# mypy: ignore-errors
"""Stages made of stages."""

from pylightnix import *
from pylightnix.stages.trivial import redefine as redefine_

fsinit()
assert redefine_ is redefine


def base(r: Registry, size: int = 10, **kwargs) -> DRef:
    def realizer(b: Build) -> None:
        writestr(join(build_outpath(b), "size"), str(mklens(b).size.val))

    return mkdrv(mkconfig({"name": "base", "size": size}), match_latest(), build_wrapper(realizer), r)


def smaller(config):
    config["size"] = 1


small = redefine(base, new_config=smaller)
assert catref(realize1(instantiate(small)), ["size"]) == ["1"]
loud = redefine(
    base, new_realizer=build_wrapper(lambda b: writestr(join(build_outpath(b), "size"), "LOUD")), new_config=lambda c: c.update(loud=1)
)
assert catref(realize1(instantiate(loud)), ["size"]) == ["LOUD"]
many = redefine(base, new_matcher=match_all)
rref = realize1(instantiate(base))
assert realizeMany(instantiate(many)) == [rref] and realize1(instantiate(realized(base))) == rref
try:
    realize1(instantiate(realized(base), size=99))
except AssertionError:
    pass
else:
    raise SystemExit("it was built")
assert realize1(instantiate(base), force_rebuild=True) == rref
_, _, context = realize(instantiate(base, size=98), dry_run=True)
assert list(context.values()) == [None]
try:
    realize(instantiate(base, size=98), assert_realized=[instantiate(base, size=98)[0]])
except AssertionError:
    pass
else:
    raise SystemExit("it was built")
