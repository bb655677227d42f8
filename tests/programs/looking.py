# mypy: ignore-errors
"""Shell-like helpers."""

from pylightnix import *
from pylightnix.bashlike import *

fsinit()


@autostage(name="looked-at", file=[selfref, "sub", "f.txt"])
def stage(file, n=1):
    makedirs(dirname(file))
    writestr(file, "line 1\nline 2\n")


rref = realize1(instantiate(stage))
assert lsref(rref2dref(rref)) and "config.json" in lsref(rref2dref(rref))
assert catref(rref, ["sub", "f.txt"]) == ["line 1\n", "line 2\n"] and splitext(basename(mklens(rref).file.syspath)) == ("f", ".txt")
assert rref in find("looked-*") and rref in find(stage) and rref in find(newer=-3600) and find("nothing*") == []
assert du()[rref2dref(rref)][1][rref] > 0
other = realize1(instantiate(stage, n=2))
diff(rref, other)
folder = mkdtemp()
link = linkrref(rref, destdir=Path(folder), format="result-%(N)s")
assert (
    link == join(folder, "result-looked-at")
    and path2rref(link) == rref
    and relpath(realpath(link), fsstorage()).startswith(rref2dref(rref)[5:])
)
assert path2dref(linkdref(rref2dref(rref), destdir=Path(folder))) == rref2dref(rref)
environ["SHELL"] = "/bin/true"
shell(rref), shellref(rref2dref(rref)), shell()
rmref(other)
assert other not in find(stage)
rmtree(folder)
