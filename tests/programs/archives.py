# mypy: ignore-errors
"""From store to store."""

from pylightnix import *
from pylightnix.arch import *

fsinit()


def tree(b: Build) -> None:
    o = build_outpath(b)
    makedirs(join(o, "sub", "empty"))
    writestr(join(o, "sub", "_f"), "text")
    symlink("sub/_f", join(o, "link"))


def stage(r):
    inner = mkdrv(mkconfig({"name": "inner"}), match_only(), build_wrapper(tree), r)
    return mkdrv(mkconfig({"name": "outer", "inner": inner}), match_only(), build_wrapper(tree), r)


rref = realize1(instantiate(stage))
folder = mkdtemp()
spack([rref], Path(join(folder, "a.zip")))
other = mkSS(join(folder, "other"))
fsinit(other, use_as_default=False)
sunpack(Path(join(folder, "a.zip")), S=other)
assert {rref, *rrefdeps([rref])} == set(allrrefs(other))
assert readlink(join(rref2path(rref, other), "link")) == "sub/_f" and readstr(join(rref2path(rref, other), "link")) == "text"
third = mkSS(join(folder, "third"))
fsinit(third, use_as_default=False)
copyclosure([rref], S=other, D=third)
assert set(allrrefs(third)) == set(allrrefs(other)) and rootrrefs(third) == {rref}
dirrm(folder)
