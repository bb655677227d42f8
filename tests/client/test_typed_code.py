"""Stages work whose code lies in no file: given to ``python -c``, piped, and typed at the plain prompt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.prompt import Prompt

PROGRAM = """
from pathlib import Path
from pylightnix import autostage, build_outpath, build_wrapper, code_manifest, fsinit, instantiate, match_only, mkconfig, mkdrv
from pylightnix import mklens, realize1, selfref

fsinit()
NUMBER = 3
class Box:
    content = 4
class Named:
    def get(self):
        return 5
def half(x): return x / 2
double = lambda x: 2 * x

@autostage(name="typed", out=[selfref, "out.txt"])
def typed(out):
    # A comment.
    Path(out).write_text(str((half(NUMBER), double(NUMBER), Box.content, Named().get())))

print(Path(mklens(realize1(instantiate(typed))).out.syspath).read_text())
write = build_wrapper(lambda b: Path(build_outpath(b), "x").write_text("y"))
print(realize1(instantiate(lambda r: mkdrv(mkconfig({"name": "made"}), match_only(), write, r)))[-5:])
print(code_manifest([typed]).unresolved)
"""
EXPECTED = "(1.5, 6, 4, 5)\n-made\n()\n"


def environment(folder: Path) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PYLIGHTNIX_ROOT": str(folder / "store"), "HOME": str(folder)}


def run(folder: Path, *arguments: str, **streams: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment(folder), cwd=folder, capture_output=True, text=True, **streams)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("options", [["-c"], ["-W", "ignore", "-Xutf8", "-Bc"], ["--check-hash-based-pycs", "always", "-Wignore", "-c"]])
def test_program_of_the_command_line(tmp_path: Path, options: list[str]) -> None:
    ran = run(tmp_path, *options, PROGRAM, "an argument", "-c")
    assert (ran.stdout, ran.stderr) == (EXPECTED, "")


def test_program_of_standard_input(tmp_path: Path) -> None:
    (tmp_path / "program").write_text(PROGRAM)
    with open(tmp_path / "program") as file:
        ran = run(tmp_path, "-", stdin=file)
    assert (ran.stdout, ran.stderr) == (EXPECTED, "")


@pytest.mark.skipif("glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="only there what was read from a pipe is found")
def test_program_of_a_pipe(tmp_path: Path) -> None:
    ran = run(tmp_path, "-", input=PROGRAM)
    assert (ran.stdout, ran.stderr) == (EXPECTED, "")


def test_program_that_is_not_kept_is_told_in_few_lines(tmp_path: Path) -> None:
    ran = run(tmp_path, "-", input=PROGRAM + "# much\n" * 10_000)
    assert ran.stdout == ""
    said = ran.stderr.splitlines()
    assert "define it in a file" in said[-1]
    assert "its source <stdin> is not kept" in said[-1]
    assert len([line for line in said if line.startswith("  File ")]) <= 2
    assert len(said[-1]) < 300


def test_text_is_not_taken_for_the_source_of_something_else(tmp_path: Path) -> None:
    text = "exec('''def f(x):\\n    return x + 2\\n''')\nfrom pylightnix import pyobjhash\npyobjhash([f])\n"
    ran = run(tmp_path, "-c", f"def g(x):\n    return x + 1\n{text}")
    assert "cannot tell what the code of __main__.f is" in ran.stderr


STAGE = """@autostage(name='typed', out=[selfref, 'out.txt'])
def typed(out):
    # A comment.
    Path(out).write_text(str((half(NUMBER), double(NUMBER), Named().get())))
"""
TYPED = [
    "from pathlib import Path",
    "from pylightnix import autostage, code_manifest, fsinit, instantiate, mklens, pyobjhash, realize1, selfref",
    "fsinit()",
    "NUMBER = 3",
    "def half(x): return x / 2\n",
    "double = lambda x: 2 * x",
    "class Named:\n    def get(self):\n        return 5\n",
    STAGE,
]
SHOW = "print(Path(mklens(realize1(instantiate(typed))).out.syspath).read_text())"


def test_what_is_typed_at_the_plain_prompt(tmp_path: Path) -> None:
    with Prompt(tmp_path, environment(tmp_path)) as prompt:
        for text in TYPED:
            assert prompt.type(text) == ""
        assert prompt.type(SHOW) == "(1.5, 6, 5)\n"
        assert prompt.type("code_manifest([typed]).unresolved") == "()\n"
        # Defined anew: the latest counts, and an edit of a helper does.
        assert prompt.type("def half(x): return x / 4\n") == ""
        assert prompt.type(SHOW) == "(0.75, 6, 5)\n"
        assert prompt.type("class Named:\n    def get(self):\n        return 7\n") == ""
        assert prompt.type(SHOW) == "(0.75, 6, 7)\n"
        # Lines that the history leaves out: one that is the same as that before, and an empty one in brackets.
        assert prompt.type("def twice(x):\n    x += 1\n    x += 1\n    return x\n") == ""
        assert prompt.type("def spread(x):\n    return (x,\n\n    1)\n") == ""
        assert prompt.type("len({pyobjhash([f]) for f in (twice, spread, lambda: 0)})") == "3\n"
        # Functions in functions, and two of one name.
        assert prompt.type("def outer():\n    n = 2\n    def inner(x):\n        return x + n\n    return inner\n") == ""
        assert prompt.type("f = outer()\ndef outer():\n    def inner(x):\n        return x - 1\n    return inner\n") == ""
        assert prompt.type("pyobjhash([f]) != pyobjhash([outer()])") == "True\n"


def test_what_was_not_remembered_is_told(tmp_path: Path) -> None:
    with Prompt(tmp_path, environment(tmp_path)) as prompt:
        for text in [*TYPED, "import readline\nreadline.clear_history()"]:
            assert prompt.type(text) == ""
        said = prompt.type(SHOW).splitlines()
        assert "its source <stdin> is not kept; define it in a file" in said[-1]
        assert len([line for line in said if line.startswith("  File ")]) <= 2


DOCTEST = '''
"""
>>> from pylightnix import autostage, fsinit, instantiate, mklens, realize1, selfref
>>> fsinit()
>>> def half(x):
...     return x / 2
>>> @autostage(name="tested", out=[selfref, "out.txt"])
... def tested(out):
...     _ = open(out, "w").write(str(half(3)))
>>> open(mklens(realize1(instantiate(tested))).out.syspath).read()
'1.5'
"""
import doctest
assert doctest.testmod().attempted
'''


def test_examples_of_a_docstring(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(DOCTEST)
    assert run(tmp_path, "program.py").stdout == ""


def test_code_whose_maker_tells_its_source(tmp_path: Path) -> None:
    makes = (
        "import linecache\nfrom pylightnix import code_manifest\ntext = 'def f(x):\\n    return x + 1\\n'\n"
        "linecache.cache['<made>'] = (len(text), None, text.splitlines(True), '<made>')\n"
        "exec(compile(text, '<made>', 'exec'))\nprint(code_manifest([f]).unresolved)\n"
    )
    (tmp_path / "program.py").write_text(makes)
    assert run(tmp_path, "program.py").stdout == "()\n"


def test_constant_that_a_piped_program_changes_counts_by_its_statement(tmp_path: Path) -> None:
    changes = (
        "from pylightnix import code_manifest\nPARAMS = {'rate': 1}\ndef f():\n    PARAMS['more'] = 2\n    return PARAMS\n"
        "found = code_manifest([f])\nprint(found.digest, found.unresolved)\n"
    )
    one, other = (run(tmp_path, "-c", changes.replace("1}", number)).stdout for number in ("1}", "3}"))
    assert one != other
    assert one.endswith(" ()\n")
