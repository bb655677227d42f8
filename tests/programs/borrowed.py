# mypy: ignore-errors
"""A program that has all it needs from the star import."""

from pylightnix import *

fsinit()


@dataclass
class Settings:
    lr: float = 0.1
    steps: int = 3


class Point(NamedTuple):
    x: int
    y: Optional[int] = None


def helper(items: Iterable[int]) -> Dict[str, List[int]]:
    counts = defaultdict(list)
    for item in chain(items, [7]):
        counts["odd" if item % 2 else "even"].append(item)
    return dict(counts)


@autostage(name="borrowed", out=[selfref, "out.json"])
def stage(out, steps=3, lr=0.1):
    path = Path(out)
    with open(path.parent / "raw.txt", "w") as f:
        json_dump(helper(range(steps)), f)
    copyfile(path.parent / "raw.txt", path)


settings = Settings(steps=4)
rref = realize1(instantiate(partial(stage, steps=settings.steps, lr=settings.lr)))
with open(mklens(rref).out.syspath) as f:
    found = json_load(f)
assert found == {"even": [0, 2], "odd": [1, 3, 7]} and deepcopy(found) == found and Point(1).y is None
assert re_match("a", "ab") and re_sub("a", "b", "a") == "b" and fnmatch("abc", "a*") and urlparse("http://x/y").path == "/y"
assert isinstance(Path(rref2path(rref)) / "out.json", str) and (Path(rref2path(rref)) / "out.json").exists()
assert [basename(p) for p in sorted(Path(rref2path(rref)).glob("*.json"))] == ["context.json", "out.json"]
assert (
    strftime("%Y", gmtime(0)) == "1970" and timegm(gmtime(0)) == 0 and signature(helper).parameters and isinstance(core.mkdrv, type(mkdrv))
)
assert stages.fetchurl is fetchurl is fetch.fetchurl and fetch2.fetchurl2 is fetchurl2 and trivial.mknode is mknode and types.DRef is DRef
