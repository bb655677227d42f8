# mypy: ignore-errors
"""Failures as results."""

from pylightnix import *

fsinit()


def divide(b: Build) -> None:
    writestr(mklens(b).out.syspath, str(6 // mklens(b).by.val))


def divided(by: int, r: Registry) -> DRef:
    return mkdrvE(mkconfig({"name": "divided", "by": by, "out": [selfref, "out"]}), match_latest(), build_wrapper(divide), r)


def halved(by: int, r: Registry) -> DRef:
    def half(S, dref, context, rarg) -> Output[Path]:
        b = Build(mkbuildargs(S, dref, context, None, None, {}, rarg))
        build_markstart(b, 1)
        writestr(join(build_outpath(b), "half"), str(int(readstr(build_path(b, build_config(b).val["of"]))) / 2))
        return b.outpaths

    return mkdrvE(mkconfig({"name": "halved", "of": [divided(by, r), "out"]}), match_latest(), half, r)


good, bad = realizeE(instantiate(halved, 2)), realizeE(instantiate(halved, 0))
assert isinstance(good, Either) and either_isRight(good) and not either_isLeft(good)
assert catref(RRef(either_paths(good)[0]), ["half"]) == ["1.5"] and either_status(good) is None
assert either_isLeft(bad) and "ZeroDivisionError" in either_status(bad)
assert isfile(join(rref2path(either_paths(bad)[0]), "either_status.txt"))
assert either_isLeft(realizeManyE(instantiate(divided, 0), force_rebuild=True))
