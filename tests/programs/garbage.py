# mypy: ignore-errors
"""Keeping what links lead to."""

from pylightnix import *
from pylightnix.garb import gc

folder = mkdtemp()
S = mkSS(join(folder, "_pylightnix"))
fsinit(join(folder, "_pylightnix"))
assert fsroot() == S.root


def stage(n: int, r: Registry) -> DRef:
    below = mknode(r, {"n": n}, {"f": b"%d" % n}, name="below")
    return mkdrv(
        mkconfig({"name": "top", "below": below}), match_latest(), build_wrapper(lambda b: writestr(join(build_outpath(b), "x"), "x")), r
    )


kept, lost = [realize1(instantiate(stage, n)) for n in (1, 2)]
keep = mklogdir("keep", folder)
links = linkrrefs([kept], destdir=keep)
assert islink(links[0]) and path2rref(links[0]) == kept and realpath(links[0]) == realpath(rref2path(kept))
drefs, rrefs = store_gc([], [kept])
assert lost in rrefs and rref2dref(lost) in drefs and kept not in rrefs and len(rrefs) == 2
assert gc_exceptions([keep]) == ([], [kept])
gc([keep], interactive=False, verbose=True)
assert set(allrrefs()) == {kept, *rrefdeps([kept])} and len(list(alldrefs())) == 2
assert rootrrefs() == {kept} and rootdrefs() == {rref2dref(kept)}
assert sum(total for total, _ in du().values()) > 0 and diskspace_h(2048) == "   2K"
rmref(kept)
assert kept not in set(allrrefs())
fsinit(None)
dirrm(folder)
