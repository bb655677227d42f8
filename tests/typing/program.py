"""A user's program that uses the language from end to end, for a type checker to read and for a test to run.

`assert_type` says what a checker must find out by itself; at run time it does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FsPath
from typing import Any, Optional, assert_type

from pylightnix import (
    Attrs,
    Build,
    BuildArgs,
    BuildError,
    Closure,
    Config,
    Context,
    Derivation,
    DRef,
    Lens,
    Matcher,
    Name,
    Output,
    Path,
    PromiseException,
    RConfig,
    Realizer,
    RealizeSeqGen,
    RefPath,
    Registry,
    ReplHelper,
    RRef,
    Stage,
    StorageSettings,
    alldrefs,
    allrrefs,
    autostage,
    build_config,
    build_context,
    build_deref,
    build_environ,
    build_markstart,
    build_name,
    build_outpath,
    build_outpaths,
    build_path,
    build_wrapper,
    build_wrapper_,
    cfgdict,
    cfgname,
    command,
    context_deref,
    current_registry,
    current_storage,
    dref2path,
    drefcfg,
    drefdeps,
    drefrrefs,
    drefrrefsC,
    evaluate,
    fsinit,
    fstmpdir,
    instantiate,
    match,
    match_all,
    match_latest,
    match_only,
    match_some,
    mkconfig,
    mkdrv,
    mklens,
    mknode,
    mkrealization,
    mkrefpath,
    mkregistry,
    mkSS,
    output_matcher,
    output_realizer,
    path2rref,
    realize,
    realize1,
    realize_async,
    realized,
    realizeMany,
    realizeSeq,
    realizeU,
    redefine,
    repl_build,
    repl_cancel,
    repl_continue1,
    repl_continueBuild,
    repl_realize,
    repl_rref,
    rootrrefs,
    rref2dref,
    rref2path,
    rrefbstart,
    rrefctx,
    selfref,
    unroll,
)

# --- stages -------------------------------------------------------------------------------------------


def write(path: str, text: str) -> None:
    FsPath(path).write_text(text)


def numbers(r: Registry, count: int = 3) -> DRef:
    def build(b: Build) -> None:
        config = build_config(b)
        assert_type(config, RConfig)
        assert_type(build_name(b), Name)
        assert_type(build_outpath(b), Path)
        write(build_path(b, config.val["out"]), "\n".join(map(str, range(config.val["count"]))))

    config = mkconfig({"name": "numbers", "count": count, "out": [selfref, "out.txt"]})
    assert_type(config, Config)
    return mkdrv(config, match_latest(), build_wrapper(build), r)


class CountingBuild(Build):
    """A build with a value of its own."""

    def __init__(self, ba: BuildArgs) -> None:
        super().__init__(ba)
        self.counted = 0


def total(r: Registry, source: Optional[DRef] = None) -> DRef:
    below = numbers(r) if source is None else source
    refpath: RefPath = mkrefpath(below, ["out.txt"])

    def build(b: CountingBuild) -> None:
        assert_type(build_context(b), Context)
        assert_type(build_deref(b, below), RRef)
        (folder,) = build_markstart(b, 1)
        b.counted = sum(map(int, FsPath(build_path(b, refpath)).read_text().split()))
        write(f"{folder}/total.txt", str(b.counted))

    realizer: Realizer = build_wrapper_(build, CountingBuild, nouts=None)
    return mkdrv(mkconfig({"name": "total", "source": refpath}), match_latest(), realizer, r)


def raw(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> Output[Path]:
    import tempfile

    folders = [Path(tempfile.mkdtemp(dir=fstmpdir(S))) for _ in range(2)]
    for i, folder in enumerate(folders):
        write(f"{folder}/n.txt", str(i))
    return Output(folders)


def first(S: StorageSettings, rrefs: Output[RRef]) -> Optional[Output[RRef]]:
    return Output(rrefs.val[:1]) if rrefs.val else None


def pair(r: Registry) -> dict[str, DRef]:
    choose: Matcher = output_matcher(first)
    return {
        "one": mkdrv(mkconfig({"name": "one"}), choose, output_realizer(raw), r),
        "both": mkdrv(mkconfig({"name": "both"}), match_all, output_realizer(raw), r),
        "some": mkdrv(mkconfig({"name": "some"}), match_some(2), output_realizer(raw), r),
        "longest": mkdrv(mkconfig({"name": "longest"}), match(size, lambda found: found[:1] or None), output_realizer(raw), r),
        "node": mknode(r, {"x": 1}, {"file.bin": b"\0"}),
        "echo": command(["/bin/sh", "-c", 'echo hello > "$0"', [selfref, "out"]], r=r),
    }


def size(S: StorageSettings, rref: RRef) -> int:
    return len(FsPath(rref2path(rref, S), "n.txt").read_text())


@autostage(name="greeting", words=["hello"], out=[selfref, "out.txt"])
def greeting(build: Build, words: list[str], out: str) -> None:
    write(out, " ".join(words) + build_name(build))


@autostage(out=[selfref, "loud.txt"])
def loud(out: str, source: Any = greeting) -> None:
    write(out, FsPath(source.out).read_text().upper())


# --- using them ---------------------------------------------------------------------------------------


def realizing(S: StorageSettings) -> None:
    closure = instantiate(total, S=S)
    assert_type(closure[1], Closure)
    rref = realize1(closure)
    assert_type(rref, RRef)
    assert_type(realizeMany(closure, force_rebuild=True), list[RRef])
    _, _, context = realize(closure, [], realize_args={rref2dref(rref): {"speed": 1}}, dry_run=True)
    assert_type(context, Context)
    assert_type(context_deref(rrefctx(rref, S), next(iter(drefdeps([rref2dref(rref)], S)))), list[RRef])
    assert_type(evaluate(pair_of_one, S=S), RRef)
    changed: Stage = redefine(numbers, new_config=lambda config: config.update(count=5), new_matcher=match_only())
    assert_type(realize1(instantiate(changed, S=S)), RRef)
    assert realize1(instantiate(realized(changed), S=S))
    with current_storage(S), current_registry(mkregistry(S)) as r:
        assert_type(loud(), DRef)
        assert_type(loud(r, source=lambda r: greeting(r=r, words=["other"])), DRef)
        found: Attrs = realizeU(instantiate(loud(r)))
        assert FsPath(found.out).read_text() == "HELLOGREETING"
        assert unroll(realize(instantiate(loud(r)))[2], loud(r), None, 0).source


def pair_of_one(r: Registry) -> DRef:
    return pair(r)["one"]


def stepping(S: StorageSettings) -> None:
    result, closure = instantiate(total, S=S)
    gen: RealizeSeqGen = realizeSeq(closure, [result])
    settings, dref, context, derivation, _ = next(gen)
    assert_type(derivation, Derivation)
    folder = Path(str(FsPath(fstmpdir(settings), "mine")))
    FsPath(folder).mkdir()
    write(f"{folder}/total.txt", "by hand")
    rref = mkrealization(dref, context, folder, settings)
    try:
        gen.send(([rref], False))
    except StopIteration as end:
        assert_type(end.value, Any)
    helper: ReplHelper = repl_realize((result, closure), realize_args={})
    b = repl_build(helper)
    write(f"{build_outpath(b)}/total.txt", "by hand again")
    assert_type(repl_continueBuild(b), Optional[RRef])
    assert repl_rref(helper)
    repl_realize(closure)
    assert repl_continue1(out_rrefs=[rref]) == rref
    repl_realize(closure)
    repl_cancel()


def looking(S: StorageSettings) -> Iterator[str]:
    rref = realize1(instantiate(total, S=S))
    lens = mklens(rref, S=S)
    assert_type(lens, Lens)
    yield lens.source.contents
    yield str(cfgname(drefcfg(rref2dref(rref), S)))
    assert_type(cfgdict(drefcfg(rref2dref(rref), S)), dict[str, Any])
    assert path2rref(rref2path(rref, S)) == rref
    assert rref in set(allrrefs(S)) & drefrrefs(rref2dref(rref), S) & set(drefrrefsC(rref2dref(rref), rrefctx(rref, S), S))
    assert rref in rootrrefs(S)
    assert {dref2path(dref, S) for dref in alldrefs(S)}
    yield rrefbstart(rref, S) or ""


def failing(S: StorageSettings) -> None:
    def broken(b: Build) -> None:
        assert build_environ(b)["name"] == "broken"
        raise OSError(build_outpaths(b)[0])

    def stage(r: Registry) -> DRef:
        return mkdrv(mkconfig({"name": "broken", "out": [selfref, "never"]}), match_only(), build_wrapper(broken), r)

    try:
        realize1(instantiate(stage, S=S))
    except BuildError as error:
        assert_type(error.exception, BaseException)
        assert_type(error.outpaths, list[Path])
    except PromiseException as error:
        assert_type(error.dref, DRef)


async def awaiting(S: StorageSettings) -> Context:
    _, _, context = await realize_async(instantiate(pair, S=S))
    return context


def main(root: str) -> list[str]:
    """Use all of it on a store at `root`."""
    import anyio

    S = mkSS(root)
    fsinit(S, use_as_default=False)
    realizing(S)
    stepping(S)
    failing(S)
    assert len(anyio.run(awaiting, S)) == 6
    return list(looking(S))
