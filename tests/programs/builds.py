# mypy: ignore-errors
"""Builds of a class of one's own."""

from pylightnix import *

fsinit()


class MyBuild(Build):
    def __init__(self, ba: BuildArgs) -> None:
        super().__init__(ba)
        self.parked: List[str] = []

    def say(self, what: str) -> None:
        self.parked.append(what)


def node(r):
    return mknode(r, {}, {"f": b"node"}, name="node")


def run(b: MyBuild) -> None:
    c = build_cattrs(b)
    b.say(c.greeting)
    c.cache = 5
    assert build_cattrs(b).cache == 5
    paths = build_markstart(b, 2)
    for i, path in enumerate(paths):
        writestr(join(path, "said"), f"{b.parked[0]} {i} {b.rarg.get('extra')}")
    env = build_environ(b, {"HOME": "/home"})
    assert env["greeting"] == "hi" and env["HOME"] == "/home" and isfile(env["source"])
    assert readstr(build_path(b, c.source)) == "node" and build_deref(b, c.source[0]) in build_context(b)[c.source[0]]
    assert build_paths(b, [b.dref, "said"]) == [join(p, "said") for p in paths] and build_name(b) == "mine"


def mine(r):
    config = {"name": "mine", "greeting": "hi", "source": mkrefpath(node(r), ["f"]), "said": [selfref, "said"]}
    return mkdrv(mkconfig(config), match_latest(2), build_wrapper_(run, MyBuild, nouts=None, starttime=None), r)


dref, closure = instantiate(mine)
rrefs = realizeMany(closure, realize_args={dref: {"extra": 7}})
assert sorted(catref(rref, ["said"])[0] for rref in rrefs) == ["hi 0 7", "hi 1 7"]
assert all(parsetime(rrefbstop(rref)) for rref in rrefs) and rrefbdelta(rrefs[0]) is None or True
