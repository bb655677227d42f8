"""What leaves a program: environments and their keys, realizers and matchers as bytes, errors on their way back."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest
from tests.daemon import realizers

from pylightnix import (
    AmbiguousMatch,
    Build,
    BuildError,
    CommandFailed,
    DRef,
    InvalidOutput,
    Matcher,
    MissingRealization,
    Misuse,
    Output,
    PromiseException,
    PylightnixException,
    Registry,
    RRef,
    StorageSettings,
    build_wrapper,
    command,
    errors,
    match,
    match_all,
    match_exact,
    match_latest,
    match_only,
    match_some,
    mknode,
)
from pylightnix.matchers import BuiltinMatcher
from pylightnix.matchers import _MatchLatest as MatchLatest
from pylightnix.planner.messages import Candidate
from pylightnix.travel import (
    CodeChanged,
    Environment,
    RemoteFailure,
    RemoteTraceback,
    build_environment_key,
    builtin_matcher,
    capture_environment,
    dump_exception,
    load_exception,
    pack_arguments,
    pack_matcher,
    pack_realizer,
    unpack,
    unpack_node,
    worker_key,
)

DREF = DRef(f"dref:{'0' * 32}-sample")
RREFS = [RRef(f"rref:{digit * 32}-{'0' * 32}-sample") for digit in "321"]

# --- environments ----------------------------------------------------------------------------------------


def test_relative_folders_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "inner", "/else", "inner/", ".", "archive.zip"])
    monkeypatch.setenv("PYTHONPATH", f"inner{os.pathsep}/else{os.pathsep}")
    found = capture_environment()
    here = os.getcwd()
    assert found.import_path == (here, f"{here}/inner", "/else", f"{here}/archive.zip")
    assert found.variables["PYTHONPATH"] == os.pathsep.join([f"{here}/inner", "/else", here])
    assert os.path.isabs(found.interpreter)


def test_the_interpreter_is_that_of_the_virtual_environment() -> None:
    program = "import sys; print(sys.prefix)"
    found = capture_environment()
    assert subprocess.run([found.interpreter, "-c", program], capture_output=True, text=True).stdout.strip() == sys.prefix


def test_an_embedded_python_cannot_be_started_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(Misuse, match=r"sys\.executable is empty"):
        capture_environment()


LEFT_BEHIND = [
    *("TERM", "PWD", "OLDPWD", "SHLVL", "_", "DISPLAY"),
    *("SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "XDG_SESSION_ID"),
    *("MY_TOKEN", "TOKENS", "aws_secret_key", "DB_PASSWORD"),
]


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_what_is_a_terminals_or_a_secret_stays_unless_declared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "value")
    assert name not in capture_environment().variables
    assert capture_environment([name]).variables[name] == "value"


@pytest.mark.parametrize("name", ["TERMINFO", "XDG_DATA_HOME", "PATH", "HOME", "CUDA_VISIBLE_DEVICES", "SSH", "__", "PASS"])
def test_other_variables_travel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "value")
    assert capture_environment().variables[name] == "value"


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_the_umask_is_read_and_left_alone(mask: int) -> None:
    before = os.umask(mask)
    try:
        assert capture_environment().umask == mask
    finally:
        assert os.umask(before) == mask


ENVIRONMENT = Environment("/python", ("/a", "/b"), 0o022, {"A": "1", "B": "2"})
CHANGED = [
    replace(ENVIRONMENT, interpreter="/other"),
    replace(ENVIRONMENT, import_path=("/b", "/a")),
    replace(ENVIRONMENT, umask=0o002),
    replace(ENVIRONMENT, variables={"A": "2", "B": "2"}),
]


def test_the_worker_key_covers_everything() -> None:
    others = [*CHANGED, replace(ENVIRONMENT, variables={**ENVIRONMENT.variables, "C": ""})]
    assert len({worker_key(environment) for environment in [ENVIRONMENT, *others]}) == 1 + len(others)
    assert worker_key(replace(ENVIRONMENT, variables={"B": "2", "A": "1"})) == worker_key(ENVIRONMENT)


def test_the_build_key_covers_declared_variables_only() -> None:
    keys = [build_environment_key(environment, ["A"]) for environment in [ENVIRONMENT, *CHANGED]]
    assert len(set(keys)) == len(keys)
    other = replace(ENVIRONMENT, variables={"A": "1", "B": "3", "C": "4"})
    assert build_environment_key(other, ["A"]) == keys[0]
    assert build_environment_key(other, ["A", "C"]) != build_environment_key(ENVIRONMENT, ["C", "A"])
    assert build_environment_key(replace(ENVIRONMENT, variables={}), ["A"]) != build_environment_key(
        replace(ENVIRONMENT, variables={"A": ""}), ["A"]
    )


def test_undecodable_bytes_have_keys() -> None:
    odd = replace(ENVIRONMENT, import_path=("/\udcff",), variables={"A": "\udcfe"})
    assert worker_key(odd) != worker_key(replace(odd, variables={"A": "\udcff"}))


# --- realizers -------------------------------------------------------------------------------------------


@pytest.mark.embedded_only("nothing is realized")
def test_builtin_stages_travel_by_name_and_arguments(S: StorageSettings) -> None:
    r = Registry(S)
    program, node = command(["true"], r=r), mknode(r, {}, {"b": b"\xff", "a": b""})
    packed = pack_realizer(r.builders[program].realizer)
    assert (packed.kind, packed.blob, packed.reason) == ("command", None, "")
    packed = pack_realizer(r.builders[node].realizer)
    assert packed.kind == "mknode"
    assert unpack_node(packed.blob or b"") == r.builders[node].realizer


def test_project_code_travels_by_reference() -> None:
    packed = pack_realizer(realizers.trivial)
    assert (packed.kind, packed.reason) == ("python", "")
    assert packed.blob is not None
    assert b"tests.daemon.realizers" in packed.blob
    assert len(packed.blob) < 100
    assert unpack(packed.blob) is realizers.trivial


def nothing(build: Build) -> None:
    pass


def test_wrappers_hold_no_config() -> None:
    blob = pack_realizer(build_wrapper(nothing)).blob
    assert blob == pack_realizer(build_wrapper(nothing)).blob
    assert blob != pack_realizer(build_wrapper(nothing, nouts=2)).blob


def test_no_arguments_are_no_bytes() -> None:
    assert pack_arguments({}).blob is None
    assert unpack(pack_arguments({"a": [1]}).blob or b"") == {"a": [1]}
    assert pack_arguments({"a": threading.Lock()}).kind == "caller"


def test_what_cannot_travel_stays_with_a_reason(tmp_path: Path) -> None:
    def generator() -> Any:
        yield 1

    class Stubborn:
        def __reduce__(self) -> Any:
            raise RuntimeError("I stay")

    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    (tmp_path / "file").write_text("text")
    with (tmp_path / "file").open() as text, (tmp_path / "file").open("rb") as binary:
        held = {
            "_thread.lock": threading.Lock(),
            "generator": generator(),
            "open file": text,
            "Buffered": binary,
            "I stay": Stubborn(),
            "deep": deep,
        }
        for reason, thing in held.items():

            def realizer(S: Any, dref: Any, context: Any, rarg: Any, thing: Any = thing) -> list[Any]:
                return [thing]

            packed = pack_realizer(realizer)
            assert (packed.kind, packed.blob) == ("caller", None)
            assert reason in packed.reason
    while deep:
        deep = deep[0]  # or taking it apart would recurse


def test_standard_streams_travel_as_such() -> None:
    program = (
        "import sys; from pylightnix.travel import *; p = pack_arguments({'log': sys.stderr}); print(unpack(p.blob)['log'] is sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("True\n", "")


# --- the main program --------------------------------------------------------------------------------------

_MAIN = """
import sys
from pylightnix import autostage, build_wrapper, current_registry, Registry, fsinit, mkSS, selfref
from pylightnix.travel import pack_realizer

S = mkSS(sys.argv[1])
fsinit(S, use_as_default=False)
WORDS = {"a": 1, "b": [2, 3]}

def helper(build):
    return WORDS

def fill(build):
    open(f"{build.outpaths.val[0]}/out.txt", "w").write(repr(helper(build)))

@autostage
def staged(out=[selfref, "out.txt"], word="word"):
    assert staged.__name__ == "staged"
    open(out, "w").write(word)

r = Registry(S)
dref = staged(r=r)
for realizer in [build_wrapper(fill), r.builders[dref].realizer]:
    packed = pack_realizer(realizer)
    print(dref, packed.blob.hex())
"""


def run_main(tmp_path: Path, seed: str) -> list[tuple[DRef, bytes]]:
    (tmp_path / "main.py").write_text(_MAIN)
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    argv = [sys.executable, str(tmp_path / "main.py"), str(tmp_path / "store")]
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    words = [line.split() for line in ended.stdout.splitlines()]
    return [(DRef(dref), bytes.fromhex(blob)) for dref, blob in words]


def test_code_of_the_main_program_travels_by_value(tmp_path: Path) -> None:
    packed = run_main(tmp_path, "1")
    program = "import sys, pickle\nfrom pylightnix import *\nS = mkSS(sys.argv[1], None, sys.argv[3])\n"
    program += "print(open(pickle.loads(bytes.fromhex(sys.argv[4]))(S, DRef(sys.argv[2]), {}, {})[0] + '/out.txt').read())"
    texts: list[str] = []
    for dref, blob in packed:
        folder = tmp_path / f"build-{len(texts)}"
        folder.mkdir()
        argv = [sys.executable, "-c", program, str(tmp_path / "store"), dref, str(folder), blob.hex()]
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr
        texts.append(ended.stdout.strip())
    assert texts == ["{'a': 1, 'b': [2, 3]}", "word"]


def test_equal_code_is_equal_bytes_in_every_process(tmp_path: Path) -> None:
    assert [blob for _, blob in run_main(tmp_path, "1")] == [blob for _, blob in run_main(tmp_path, "2")]


# --- matchers ----------------------------------------------------------------------------------------------

BUILTIN: dict[str, Matcher] = {
    "latest": match_latest(2),
    "some": match_some(3),
    "only": match_only(),
    "all": match_all,
    "exact": match_exact(RREFS),
}


@pytest.mark.parametrize("kind", sorted(BUILTIN))
def test_builtin_matchers_travel_by_name_and_arguments(kind: str) -> None:
    packed = pack_matcher(BUILTIN[kind])
    assert (packed.kind, packed.blob, packed.reason) == (kind, None, "")
    assert builtin_matcher(packed.kind, packed.n, packed.rrefs) == BUILTIN[kind]


def test_other_matchers_are_pickled() -> None:
    packed = pack_matcher(match(lambda S, rref: 1, lambda rrefs: rrefs))
    assert packed.kind == "python"
    assert unpack(packed.blob or b"")(StorageSettings(), RREFS) == RREFS
    lock = threading.Lock()
    assert pack_matcher(lambda S, rrefs: [lock]).kind == "caller"  # type: ignore[list-item]  # never called


class Contrary(MatchLatest):
    def pick(self, candidates: Any) -> Optional[list[RRef]]:
        return None


def test_a_subclass_of_a_builtin_matcher_is_not_taken_for_it() -> None:
    packed = pack_matcher(Contrary(1))
    assert packed.kind == "python"
    again: BuiltinMatcher = unpack(packed.blob or b"")
    assert again.pick([Candidate(RREFS[0], 0.0)]) is None


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("python",), ("latest", -1), ("latest", True), ("some", "1"), ("exact", 0, ["rref:x"]), ("exact", 0, [1])]
)
def test_what_names_no_matcher_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(Misuse, match="matcher"):
        builtin_matcher(*arguments)


@pytest.mark.parametrize("blob", [b"", b"\xc1", b"\x01", b"\x81\x01\xc4\x01a", b"\x81\xa1a\xa1a"])
def test_what_is_no_node_is_refused(blob: bytes) -> None:
    with pytest.raises(Misuse, match="artifacts of mknode"):
        unpack_node(blob)


# --- errors ------------------------------------------------------------------------------------------------


def raised(error: BaseException) -> BaseException:
    """Return `error` with a traceback."""
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def journey(error: BaseException, trusted: bool) -> BaseException:
    """Send an error as it would go over a connection that knows plain values only."""
    dumped = dump_exception(raised(error))
    blob = dumped.pop("pickled")
    assert blob is None or isinstance(blob, bytes)
    return load_exception({**json.loads(json.dumps(dumped)), "pickled": blob}, trusted)


OWN: list[PylightnixException] = [
    AmbiguousMatch("it", RREFS, "one"),
    CommandFailed(["a", "b"], "exit status 1", "last\nlines"),
    InvalidOutput(DREF, "here", "wrong", "right it"),
    MissingRealization(RREFS[0], "/there"),
    CodeChanged(DREF, "1" * 64, "2" * 64),
    PromiseException(DREF, []),
]


@pytest.mark.parametrize("error", OWN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("trusted", [True, False])
def test_own_errors_keep_class_text_and_facts(error: PylightnixException, trusted: bool) -> None:
    loaded = journey(error, trusted)
    assert type(loaded) is type(error)
    assert str(loaded) == str(error)
    facts = {name: fact for name, fact in vars(error).items() if isinstance(fact, str) and "\n" not in fact}
    assert facts.items() <= vars(loaded).items()
    assert pickle.loads(pickle.dumps(loaded)).args == loaded.args


def test_every_error_of_the_package_can_stand_in_for_itself() -> None:
    for name in errors.__all__:
        cls = getattr(errors, name)
        if cls not in (BuildError, RemoteFailure):  # which show the error inside
            loaded = load_exception({"code": cls.code, "message": "text", "fields": {"code": "no", "__class__": "no"}}, trusted=False)
            assert (loaded.__class__.code, str(loaded)) == (cls.code, "text")  # type: ignore[attr-defined]


def test_an_error_is_not_unpickled_unless_trusted() -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (os._exit, (1,))

    loaded = load_exception({"code": "remote-exception", "type": "T", "message": "text", "pickled": pickle.dumps(Trap())}, trusted=False)
    assert str(loaded) == "T: text"


@pytest.mark.parametrize("blob", [b"", b"nonsense", pickle.dumps("no error"), pickle.dumps(SystemExit(1)), None, "text"])
def test_what_is_no_pickled_error_is_replaced(blob: object) -> None:
    loaded = load_exception({"type": "T", "message": "text", "pickled": blob, "traceback": "lines"}, trusted=True)
    assert isinstance(loaded, RemoteFailure)
    assert (loaded.type_name, loaded.text, loaded.traceback, loaded.code) == ("T", "text", "lines", "remote-exception")
    assert str(pickle.loads(pickle.dumps(loaded))) == str(loaded)


@pytest.mark.parametrize("trusted", [True, False])
def test_an_interrupt_stays_one_and_an_exit_ends_no_other_program(trusted: bool) -> None:
    loaded = journey(KeyboardInterrupt("why"), trusted)
    assert type(loaded) is KeyboardInterrupt
    assert loaded.args == ("why",)
    assert isinstance(loaded.__cause__, RemoteTraceback)
    assert journey(KeyboardInterrupt(), trusted).args == ()
    ended = journey(SystemExit(0), trusted)
    assert isinstance(ended, RemoteFailure)
    assert ended.type_name == "SystemExit"


@pytest.mark.parametrize(
    "dumped", [{}, {"type": 1, "message": b"", "fields": [], "traceback": None}, {"code": "build-failed", "fields": {"outpaths": 1}}]
)
def test_any_map_becomes_some_error(dumped: dict[str, Any]) -> None:
    assert isinstance(load_exception(dumped, trusted=True), PylightnixException)


def test_the_remote_traceback_is_shown_and_free_of_our_frames() -> None:
    loaded = journey(ValueError("why"), trusted=True)
    text = "".join(traceback.format_exception(loaded))
    assert type(loaded) is ValueError
    assert text.index("in raised") < text.index("direct cause")
    assert isinstance(loaded.__cause__, RemoteTraceback)


def test_frames_of_the_package_are_left_out() -> None:
    def pick(S: Any, rrefs: Any) -> Any:
        return match(lambda S, rref: 1 / 0, lambda rrefs: rrefs)(S, rrefs)

    with pytest.raises(ZeroDivisionError) as caught:
        pick(StorageSettings(), RREFS)
    assert "matchers.py" in "".join(traceback.format_exception(caught.value))
    text = dump_exception(caught.value)["traceback"]
    assert "matchers.py" not in text
    assert "in pick" in text
    assert "1 / 0" in text


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize(
    "inner", [ValueError("why"), realizers.AwkwardError(1, 2), realizers.LockedError("why")], ids=lambda e: type(e).__name__
)
def test_a_failed_build_says_what_failed_it(inner: Exception, trusted: bool) -> None:
    raised(inner)
    loaded = journey(BuildError(StorageSettings(), DREF, Output([]), inner, "before"), trusted)
    assert isinstance(loaded, BuildError)
    assert loaded.dref == DREF
    assert loaded.msg == "before"
    assert loaded.__cause__ is loaded.exception
    assert isinstance(loaded.exception.__cause__, RemoteTraceback)
    assert "in raised" in str(loaded.exception.__cause__)
    assert str(inner) in str(loaded)
    assert type(inner).__name__ in str(loaded)
    assert (type(loaded.exception) is type(inner)) == (trusted and type(inner) is not realizers.LockedError)


class Odd(Exception):
    calls = 0

    def __init__(self, left: object, right: object) -> None:
        super().__init__(f"{left}-{right}")
        self.left, self.right = left, right
        Odd.calls += 1


class OddSystemError(OSError):
    def __init__(self, *, path: str) -> None:
        super().__init__(2, "is not there", path)
        self.path = path


class OddImportError(ImportError):
    def __init__(self, missing: int) -> None:
        super().__init__(f"{missing} missing", name="module")


class OddKey(KeyError):
    def __init__(self, one: str, two: str, *, three: Any = None) -> None:
        super().__init__(one + two)
        self.three = three


class ByItself(Exception):
    """Says itself how it is pickled: once, then its constructor counts."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("by itself")
        self.one, self.two = one, two

    def __reduce__(self) -> Any:
        return (type(self), (self.one, self.two))


ODD = [
    *(Odd(1, [2]), OddSystemError(path="/here"), OddImportError(3), OddKey("a", "b", three=Odd(1, 2)), ByItself(1, 2)),
    ExceptionGroup("several", [Odd(1, 2), ValueError("why")]),
]


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
def test_errors_whose_constructor_takes_something_else_than_the_text(error: Exception) -> None:
    calls = Odd.calls
    loaded: Any = journey(error, trusted=True)
    assert type(loaded) is type(error)
    assert (str(loaded), repr(loaded.args)) == (str(error), repr(error.args))
    for name in [*vars(error), *(name for name in ("errno", "filename", "name") if hasattr(error, name))]:
        if name != "__notes__":
            assert repr(getattr(loaded, name)) == repr(getattr(error, name))
    assert Odd.calls == calls
    assert isinstance(loaded.__cause__, RemoteTraceback)
    stranger = journey(error, trusted=False)
    assert isinstance(stranger, RemoteFailure)
    assert (stranger.type_name, stranger.text) == (
        f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins."),
        str(error),
    )


def test_an_error_with_hostile_methods_is_dumped() -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise RecursionError

        def __reduce__(self) -> Any:
            raise KeyError

        def __repr__(self) -> str:
            raise ValueError

    dumped = dump_exception(raised(Hostile()))
    assert dumped["message"] == "(its text cannot be had: RecursionError)"
    assert dumped["pickled"] is None
    assert json.dumps({**dumped, "pickled": None})


def test_texts_are_valid_and_limited() -> None:
    dumped = dump_exception(raised(ValueError("\udcff" + "x" * 1_000_000)))
    assert dumped["message"].startswith("\\udcff")
    for key in ("message", "traceback", "type"):
        assert len(dumped[key].encode("utf-8")) < 65_536
    assert "left out" in dumped["message"]
    assert dumped["pickled"] is not None
    assert dump_exception(ValueError("x" * (1 << 20)))["pickled"] is None
