# mypy: ignore-errors
"""Realizers without the Build API."""

from pylightnix import *

fsinit()


def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: RealizeArg) -> List[Path]:
    paths = [Path(mkdtemp(prefix="my_", dir=fstmpdir(S))) for _ in range(2)]
    for i, path in enumerate(paths):
        (path / "n").write_text(str(i))
        assert (path / "n").exists() and path.parent == fstmpdir(S)
    return paths


def stage(r, name="raw", f=realizer, **config):
    return mkdrv(mkconfig({"name": name, **config}), match_all, f, r)


rrefs = realizeMany(instantiate(stage))
assert sorted(readstr(join(rref2path(rref), "n")) for rref in rrefs) == ["0", "1"]


def output(S, dref, context, rarg) -> Output[Path]:
    return Output(realizer(S, dref, context, rarg))


assert len(realizeMany(instantiate(stage, name="output", f=output_realizer(output)))) == 2
try:
    realize(instantiate(stage, name="promise", f=output_realizer(output), file=[selfref, "missing"]))
except PromiseException as error:
    assert error.dref and len(error.failed) == 2
else:
    raise SystemExit("a promise was broken")
gen = realizeSeq(instantiate(stage), force_interrupt=[instantiate(stage)[0]])
S, dref, context, drv, rarg = next(gen)
assert drv.dref == dref and context == {} and rarg == {}
try:
    gen.send((rrefs[:1], False))
except StopIteration as stop:
    assert stop.value == {dref: rrefs[:1]}
rref = mkrealization(dref, mkcontext(), Path(realizer(mkSS(fsroot()), dref, {}, {})[0]))
assert rref in rrefs and drefrrefs(dref) == set(rrefs) == set(drefrrefsC(dref, {}))
