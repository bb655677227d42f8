"""The language as programs call it: every name they rely on is there, and takes what they pass.

The tables are the record of what was promised. `NAME(parameters)` has parameters in order, `=` for those with a
default; a module before the name is the one that it is imported from. What follows the arrow in `VALUES` and `RECORDS` is what the name is.
"""

from __future__ import annotations

import importlib
import inspect
import threading
from typing import Any

import pytest
from tests.loops import for_each

import pylightnix
from pylightnix import BuildArgs, Closure, Derivation, DRef, Hash, HashPart, Name, Path, PylightnixException, RRef, SPath, StorageSettings

SIGNATURES = """
# storage
mkSS(root, stordir=None, tmpdir=None)
fsinit(ss=None, check_not_exist=False, remove_existing=False, use_as_default=True)
fsroot(S=None)
fsstorage(S=None)
fstmpdir(S=None)
storagename()
assert_valid_storage(S=None)
setstorage(S)
setregistry(r)
tlregistry(M)
tlstorage(S)
current_storage(S)
current_registry(r)
mkregistry(S=None)
# references
mkdref(dhash, refname)
undref(r)
mkrref(rhash, dhash, refname)
unrref(r)
rref2dref(rref)
trimhash(h)
mkname(s)
mkrefpath(r, items=[])
isdref(ref)
isrref(ref)
isrefpath(p)
isselfpath(p)
isclosure(x)
reserved(folder, name)
assert_valid_dref(ref)
assert_valid_rref(ref)
assert_valid_hash(h)
assert_valid_hashpart(hp)
assert_valid_name(s)
assert_valid_refpath(refpath)
assert_valid_config(c)
assert_valid_context(c)
assert_valid_closure(closure)
assert_rref_deps(c)
assert_have_realizers(r, drefs)
assert_serializable(d, argname='dict')
assert_valid_dict(d, argname)
dref2path(r, S=None)
rref2path(r, S=None)
drefcfgpath(r, S=None)
rrefpath2path(r, refpath, S=None)
path2dref(p)
path2rref(p)
# configs
Config(d)
RConfig(d)
ConfigAttrs(d)
mkconfig(d)
cfgdict(cp)
cfgcattrs(c)
cfgname(c)
cfgserialize(c)
cfghash(c)
cfgdeps(c)
cfgsp(c)
resolve(c, r)
# registries and closures
Registry(S=None)
mkdrv(config, matcher, realizer, r=None)
mkdrv_(c, S=None)
instantiate(stage, *args, S=None, r=None, **kwargs)
mkclosure(result, r)
# matchers
match_only()
match_latest(n=1)
match_some(n=1, key=None)
match_exact(rrefs)
match_all(S, rrefs)
match(key, trim, mnext=None)
texthash()
latest()
exact(expected)
output_matcher(r)
# realization
realize(closure, force_rebuild=[], assert_realized=[], realize_args={}, dry_run=False)
realizeMany(closure, force_rebuild=[], assert_realized=[], realize_args={}, dry_run=False)
realize1(closure, force_rebuild=[], assert_realized=[], realize_args={}, dry_run=False)
realize_async(closure, force_rebuild=[], assert_realized=[], realize_args={}, dry_run=False)
realizeSeq(closure, force_interrupt=[], assert_realized=[], realize_args={}, dry_run=False)
evaluate(stage, *args, **kwargs)
unpack_closure_arg_(arg)
output_realizer(f)
output_validate(dref, o, S=None)
mkrealization(dref, l, o, S=None)
mkcontext()
context_eq(a, b)
context_add(ctx, dref, rrefs)
context_deref(context, dref)
context_derefpath(context, refpath, S=None)
context_serialize(c)
# builds
Build(ba)
Output(val)
build_wrapper(f, nouts=1, starttime='AUTO', stoptime='AUTO')
build_wrapper_(f, ctr, nouts=1, starttime='AUTO', stoptime='AUTO')
mkbuildargs(S, dref, context, starttime, stoptime, iarg, rarg)
build_markstart(b, nouts)
build_markstop(b)
build_markstop_noexcept(b)
build_outpaths(b)
build_outpath(b)
build_config(b)
build_context(b)
build_name(b)
build_cattrs(b)
build_deref(b, dref)
build_deref_(b, dref)
build_path(b, refpath)
build_paths(b, refpath)
build_environ(b, env=None)
rrefbstart(rref, S=None)
rrefbstop(rref, S=None)
rrefbdelta(rref, S=None)
# stages of functions
autostage(fn=None, *, sourcedeps=[], r=None, **kwargs)
autostage_(f=None, *, nouts=1, matcher=None, always_multiref=False, sourcedeps=[], r=None, **decokw)
autodrv(*args, sourcedeps=[], **kwargs)
autodrv_(*, nouts=1, matcher=None, always_multiref=False, sourcedeps=[], r=None, **kwargs)
wrapsig(f, extargs)
unroll(ctx, dref, b, rindex, max_depth=None, always_multiref=False, S=None)
unrollR(sr, ctx, max_depth=None, always_multiref=False, S=None)
realizeU(arg, *args, max_depth=None, always_multiref=False, **kwargs)
# lenses
mklens(x, o=None, b=None, rref=None, ctx=None, closure=None, build_output_idx=0, S=None, r=None)
val2dict(v, ctx)
val2rref(v, ctx)
val2path(v, ctx)
traverse(l, hint)
mutate(l, v, hint)
lens_repr(l, accessor)
# what is in a store
drefcfg(dref, S=None)
drefcfg_(dref, S=None)
drefattrs(r, S=None)
rrefattrs(r, S=None)
rrefctx(r, S=None)
drefdeps1(drefs, S=None)
rrefdeps1(rrefs, S=None)
drefdeps(drefs, S=None)
rrefdeps(rrefs, S=None)
alldrefs(S=None)
allrrefs(S=None)
drefrrefs(dref, S=None)
drefrrefsC(dref, context, S=None)
rootdrefs(S=None)
rootrrefs(S=None)
rrefdata(rref, S=None)
# what a shell does
lsref(r, S=None)
lsrref(r, fn=[], S=None)
lsrref_(r, fn=[], S=None)
lsdref_(r, S=None)
catref(r, fn=[], S=None)
catrref_(r, fn, S=None)
rmref(r, S=None)
shell(r=None, S=None)
shellref(r=None, S=None)
du(S=None)
find(name=None, newer=None, S=None)
diff(stageA, stageB, S=None)
linkrref(rref, destdir=None, format='_rref_%(T)s_%(N)s', S=None)
linkrrefs(rrefs, destdir=None, format='_rref_%(T)s_%(N)s', S=None)
linkdref(dref, destdir=None, format='_rref_%(N)s', S=None)
# garbage
store_gc(keep_drefs, keep_rrefs, S=None)
garb.gc_exceptions(keep_paths)
garb.gc_candidates(keep, S=None)
garb.gc(keep_dirs, interactive=True, verbose=True, S=None)
garb.diskspace_h(sz)
# archives
arch.spack(roots, out, S=None)
arch.sunpack(archive, S=None)
arch.copyclosure(rrefs_S, S, D=None)
arch.deref_(ctxr, dref, S)
# either
either.Either(right=None, left=None)
either.mkright(o)
either.mkleft(paths, exc)
either.either_isRight(e)
either.either_isLeft(e)
either.either_status(e)
either.either_paths(e)
either.either_loadR(rrefs, S)
either.either_realizer(f)
either.either_matcher(m)
either.either_validate(dref, e, S=None)
either.mkdrvE(config, matcher, realizer, m=None)
either.realizeE(closure, force_rebuild=[], assert_realized=[], realize_args={})
either.realizeManyE(arg, force_rebuild=[], assert_realized=[], realize_args={})
# REPL
ReplHelper(gen, result)
repl_realize(arg, force_interrupt=True, realize_args={})
repl_continue(out_paths=None, out_rrefs=None, rh=None)
repl_continue1(out_paths=None, out_rrefs=None, rh=None)
repl_continueMany(out_paths=None, out_rrefs=None, rh=None)
repl_result(rh)
repl_rrefs(rh)
repl_rref(rh)
repl_cancel(rh=None)
repl_buildargs(rh=None)
repl_build(rh=None, nouts=1)
repl_continueBuild(b, rh=None)
repl_cancelBuild(b, rh=None)
# stages that come with the package
mknode(r, cfgdict, artifacts={}, name='mknode')
redefine(stage, new_config=..., new_matcher=None, new_realizer=None)
realized(stage)
command(argv, env={}, inputs={}, outputs=['out'], name='command', r=None)
fetchurl(url, sha256=None, sha1=None, mode='unpack,remove', name=None, filename=None, force_download=False, check_promises=True, r=None, **kwargs)
fetchurl2(url, sha256=None, sha1=None, name=None, filename=None, force_download=False, r=None, **kwargs)
fetchlocal(sha256, path=None, envname=None, mode='unpack,remove', name=None, filename=None, check_promises=True, r=None, **kwargs)
unpack(path=None, refpath=None, name=None, sha256=None, sha1=None, aunpack_args=[], r=None, **kwargs)
source(path, name=None, exclude=[], r=None)
# points in time
timestring(sec=None)
parsetime(time)
tzlocal()
# hashes
datahash(data, verbose=False)
filehash(path)
dirhash(path, verbose=False)
dirshash(paths, verbose=False)
dirhash_iter(path)
dicthash(d)
pyobjhash(pyobjs)
# files and folders
dirrm(path, ignore_not_found=True)
dirrw(o)
dirro(o)
dirchmod(o, mode)
filero(f)
filerw(f)
dircp(src, dst, make_rw=False)
dirsize(o)
forcelink(src, dst, **kwargs)
logdir(tag, logrootdir, timetag=None)
mklogdir(tag, logrootdir, subdirs=[], symlinks=True, timetag=None)
readstr(path)
writestr(path, data)
readjson(json_path)
writejson(path, data, indent=None)
tryread(path)
tryreadstr(path)
tryreadjson(json_path)
tryread_def(path, default)
tryreadjson_def(json_path, default)
tryreadstr_def(path, default)
trywrite(path, data)
maybereadstr(path, default, mp)
maybereadjson(path, default, mp)
trycatch(f, default, mp)
# values and graphs
traverse_dict(d, mut)
traverse_list(l, mut)
traverse_tuple(t, mut)
scanref_dict(d)
scanref_list(l)
kahntsort(nodes, inbounds)
dagroots(sorted_nodes, inbounds)
encode(s, encoding='utf-8')
concat(l)
# exceptions
PromiseException(dref, failed)
BuildError(S, dref, outpaths, exception, msg='')
"""  # noqa: E501  # a signature is one line

RECORDS = {
    StorageSettings: ("root", "storage", "tmpdir"),
    Derivation: ("dref", "matcher", "realizer"),
    Closure: ("result", "targets", "derivations", "S"),
    BuildArgs: ("S", "dref", "context", "starttime", "stoptime", "iarg", "rarg"),
}

VALUES = {
    "PYLIGHTNIX_NAMEPAT": "[a-zA-Z0-9_-]",
    "PYLIGHTNIX_SELF_TAG": "__self__",
    "selfref": "__self__",
    "PYLIGHTNIX_STORE_VERSION": 1,
    "PYLIGHTNIX_RESERVED": ["__buildstart__.txt", "__buildstop__.txt", "context.json"],
}

ALIASES = [
    *("Context", "InstantiateArg", "Key", "Matcher", "MatcherO", "RealizeArg", "RealizeSeqGen", "Realizer", "RealizerO"),
    *("ExceptionText", "Mutator", "RefPath", "Stage", "StageResult", "Attrs", "Lens", "LensContext"),
]

MAY_BE_LEFT_OUT = {
    *(("tlregistry", "M"), ("tlstorage", "S"), ("lens_repr", "accessor")),
    *(("arch.deref_", "S"), ("either.either_loadR", "S")),
}
"""Parameters for which ours has a default where none was promised. Whoever passes them notices nothing."""

OF_FETCHES = ["sha512", "mirrors", "headers", "max_bytes", "insecure_redirects", "total_seconds"]
ADDED = {
    "arch.sunpack": ["limits"],
    "garb.gc_exceptions": ["S"],
    "either.realizeE": ["dry_run"],
    "either.realizeManyE": ["dry_run"],
    "fetchlocal": ["limits"],
    "fetchurl": [*OF_FETCHES, "limits"],
    "fetchurl2": OF_FETCHES,
    "unpack": ["limits"],
    "PromiseException": ["left"],
    "realize": ["observe"],
    "realize1": ["observe"],
    "realizeMany": ["observe"],
    "realize_async": ["observe"],
}
"""Parameters that ours has besides, after those that were promised and with a default. Whoever passes none notices nothing."""


def lines() -> list[str]:
    return [line for line in SIGNATURES.strip().splitlines() if not line.startswith("#")]


def name_of(line: str) -> str:
    return line.partition("(")[0]


def promised(line: str) -> inspect.Signature:
    scope: dict[str, Any] = {}
    exec(f"def f{line[len(name_of(line)) :]}: ...", scope)  # a signature reads best as one
    return inspect.signature(scope["f"])


def default_of(parameter: inspect.Parameter) -> object:
    # Which empty sequence it is makes no difference to a caller.
    return list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default


def named(name: str) -> Any:
    """Return what is meant by a name in the tables."""
    module, _, inner = name.rpartition(".")
    return getattr(importlib.import_module(f"pylightnix.{module}") if module else pylightnix, inner)


def parameters_of(name: str) -> dict[str, inspect.Parameter]:
    found = named(name)
    if isinstance(found, type) and found.__init__ is object.__init__:  # type: ignore[misc]  # a class is no instance
        return {}
    return dict(inspect.signature(found).parameters)


@for_each("line", lines())
def test_takes_what_was_promised(line: str) -> None:
    name, expected = name_of(line), promised(line).parameters
    found, added = parameters_of(name), ADDED.get(name, [])
    assert [key for key in found if key not in added] == list(expected)
    for key, parameter in expected.items():
        assert found[key].kind is parameter.kind, key
        if parameter.default is not ... and (name, key) not in MAY_BE_LEFT_OUT:
            assert default_of(found[key]) == default_of(parameter), key


def test_parameters_that_may_be_left_out_are_recorded_for_a_reason() -> None:
    for name, key in MAY_BE_LEFT_OUT:
        assert parameters_of(name)[key].default is not inspect.Parameter.empty


@for_each("name", ADDED)
def test_what_was_added_stands_in_nobodys_way(name: str) -> None:
    found = list(parameters_of(name).values())
    mine = [parameter for parameter in found if parameter.name in ADDED[name]]
    assert [parameter.name for parameter in mine] == ADDED[name]
    for parameter in mine:
        assert parameter.default is not parameter.empty
        rest = found[found.index(parameter) + 1 :]
        assert parameter.kind is parameter.KEYWORD_ONLY or [one.name for one in rest if one not in mine] == []


@for_each("name", [*map(name_of, lines()), *VALUES, *ALIASES, *(record.__name__ for record in RECORDS)])
def test_is_public(name: str) -> None:
    module, _, inner = name.rpartition(".")
    assert inner in importlib.import_module(f"pylightnix.{module}" if module else "pylightnix").__all__


@pytest.mark.parametrize(("name", "value"), VALUES.items())
def test_constants(name: str, value: object) -> None:
    assert getattr(pylightnix, name) == value


@for_each("record", RECORDS)
def test_records_are_tuples_with_these_fields(record: Any) -> None:
    assert issubclass(record, tuple)
    assert record._fields == RECORDS[record]


@pytest.mark.parametrize("kind", [Path, SPath, Hash, HashPart, DRef, RRef, Name], ids=lambda kind: kind.__name__)
def test_texts_are_made_of_any_text(kind: type[str]) -> None:
    assert issubclass(kind, str)
    assert kind("anything at all") == "anything at all"


def test_attributes_of_a_registry() -> None:
    r = pylightnix.Registry(pylightnix.mkSS("/root"))
    assert (list(r.builders), r.S, r.in_instantiate) == ([], pylightnix.mkSS("/root"), False)


def test_attributes_of_a_build() -> None:
    ba = BuildArgs(None, DRef("d"), {}, "start", "stop", {"i": 1}, {"r": 1})
    build = pylightnix.Build(ba)
    assert {field: getattr(build, field) for field in BuildArgs._fields} == ba._asdict()
    assert (build.outpaths, build.cattrs_cache) == (None, None)


def test_attributes_of_a_repl_helper() -> None:
    helper = pylightnix.ReplHelper(None, "result")
    assert {"gen", "S", "dref", "context", "drv", "result", "rarg"} <= set(vars(helper))


@pytest.mark.parametrize("module", ["repl", "stages", "build", "either", "arch", "garb"])
def test_modules_that_programs_import(module: str) -> None:
    importlib.import_module(f"pylightnix.{module}")


def test_the_repl_module_has_all_of_it() -> None:
    module = importlib.import_module("pylightnix.repl")
    names = [name_of(line) for line in lines() if name_of(line).lower().startswith("repl")]
    for name in names:
        assert getattr(module, name) is getattr(pylightnix, name)
    assert isinstance(module.ERR_INVALID_RH, str)
    assert isinstance(module.ERR_INACTIVE_RH, str)
    found = []
    thread = threading.Thread(target=lambda: found.append(module.PYLIGHTNIX_REPL_HELPER))
    thread.start()
    thread.join()
    assert found == [None], "a new thread has none"


@pytest.mark.parametrize("kind", [pylightnix.PromiseException, pylightnix.BuildError])
def test_exceptions_have_one_base(kind: type[Exception]) -> None:
    assert issubclass(kind, PylightnixException)


WERE_ASSERTIONS = [
    *(
        "AmbiguousMatch",
        "CycleError",
        "ForeignDerivation",
        "InvalidConfig",
        "InvalidMatch",
        "InvalidName",
        "InvalidOutput",
        "InvalidReference",
    ),
    *("InvalidStageCall", "InvalidStorage", "MatcherRefused", "MissingKey", "Misuse", "NoRegistry", "NotRealized"),
    *("ArchiveIOError", "FetchFailed", "InvalidArchive", "InvalidChecksum", "InvalidURL", "UnpackFailed", "WrongChecksum"),
]


@for_each("name", WERE_ASSERTIONS)
def test_what_was_an_assertion_error_still_is(name: str) -> None:
    assert issubclass(getattr(pylightnix, name), AssertionError)


def test_what_was_missing_is_a_missing_file_still() -> None:
    for missing in (pylightnix.MissingDerivation, pylightnix.MissingRealization):
        assert issubclass(missing, FileNotFoundError)
