# mypy: ignore-errors
"""Stores, registries and the defaults of a thread."""

import threading

from pylightnix import *
from pylightnix.core import *
from pylightnix.types import *
from pylightnix.utils import *

folder = mkdtemp()
S, T = mkSS(join(folder, "s")), mkSS(join(folder, "t"), join(folder, "t", "elsewhere"), join(folder, "t", "tmp"))
for one in (S, T):
    fsinit(one, remove_existing=True, use_as_default=False)
    assert_valid_storage(one)
assert fsstorage(T) == join(folder, "t", "elsewhere") and fsstorage(S) == join(folder, "s", storagename()) and fstmpdir(S)


def node(r: Optional[Registry] = None, n: int = 0) -> DRef:
    return mknode(tlregistry(r), {"n": n}, {"f": b"x"}, name="n")


with current_storage(S):
    assert tlstorage(None) == S and fsroot() == S.root
    with current_registry(mkregistry()) as r:
        assert r.S == S and tlregistry(None) is r
        a, b = node(), node(n=1)
        assert list(r.builders) == [a, b]
        _, closure = instantiate([a, b])
        context = realize(closure)[2]
        assert set(allrrefs()) == {rref for rrefs in context.values() for rref in rrefs}
        assert realize1(mkclosure(a, r)) == context[a][0]
assert list(allrrefs(T)) == []
r = mkregistry(T)
rref = realize1(instantiate(node, r=r))
assert realize1(instantiate(node, S=S)) == rref and rref2path(rref, T).startswith(folder)
assert dref2path(rref2dref(rref), S) == join(fsstorage(S), rref2dref(rref)[5:]) and path2rref(rref2path(rref, T)) == rref
fsinit(join(folder, "u"))
assert fsroot() == join(folder, "u", "_pylightnix")
try:
    fsinit(join(folder, "u"), check_not_exist=True)
except FileExistsError:
    pass
else:
    raise SystemExit("it was there")
seen = []
thread = threading.Thread(target=lambda: seen.append(fsroot()))
thread.start()
thread.join()
assert seen == [join(folder, "u", "_pylightnix")]
fsinit(None)
dirrm(folder)
