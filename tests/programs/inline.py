# mypy: ignore-errors
"""Derivations registered inside of stages."""

from pylightnix import *

fsinit()


def pipeline(r: Registry, n: int = 2) -> Dict[str, DRef]:
    out = [selfref, "squares"]

    @autodrv(**locals())
    def squares(build, out, n, name="squares", **kwargs):
        writestr(out, " ".join(str(i * i) for i in range(n)))

    @autodrv(r, name="total", squares=squares, out=[selfref, "total"])
    def total(build: Build, squares, out, **kwargs):
        assert build_name(build) == "total"
        writestr(out, str(sum(map(int, readstr(squares.out).split()))))

    return {"squares": squares, "total": total}


result, closure, context = realize(instantiate(pipeline, n=4))
assert {name: catref(context_deref(context, dref)[0], [name]) for name, dref in result.items()} == {"squares": ["0 1 4 9"], "total": ["14"]}
assert len(closure.targets) == 2 and isclosure(closure)


@autostage_(name="raw", nouts=2, out=[selfref, "out"])
def raw(build, arglist):
    for i, arg in enumerate(arglist):
        writestr(arg.out, str(i))


with current_registry(mkregistry()) as r:
    dref = raw()
    assert sorted(catref(rref, ["out"])[0] for rref in realizeMany(instantiate(dref))) == ["0", "1"]
