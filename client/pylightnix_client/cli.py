"""The program `pylightnix`: its commands by name, its global options, and the boundary that ends it.

Commands are imported when they are asked for, and import what is heavy when they run, so that
``--help`` and completion answer at once. What a command raises becomes a report here, and nowhere else.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import runpy
import sys
from collections.abc import Sequence
from typing import Any, Final, Optional

import click

from pylightnix_client.output import Answers, hold_standard_descriptors, note
from pylightnix_client.session import Session

__all__ = ["COMPLETE_VARIABLE", "PROGRAM", "cli", "main"]

PROGRAM: Final = "pylightnix"
COMPLETE_VARIABLE: Final = "_PYLIGHTNIX_COMPLETE"
"""Set by the shell's completion script; the program then completes and does nothing else."""

_COMMANDS: Final = {
    "attach": "daemon",
    "build": "build",
    "cancel": "daemon",
    "cat": "files",
    "completion": "completion",
    "du": "upkeep",
    "export": "transfer",
    "find": "upkeep",
    "gc": "upkeep",
    "hash": "paths",
    "import": "transfer",
    "import-v0": "transfer",
    "log": "log",
    "ls": "files",
    "path": "paths",
    "path2rref": "paths",
    "plan": "plan",
    "prefetch": "prefetch",
    "ps": "daemon",
    "rm": "upkeep",
    "show": "show",
    "status": "daemon",
    "store": "store",
    "why-rebuild": "plan",
}
"""Each command with the module in `commands` that has it, as a function named after it with ``_command`` (dashes as underscores)."""

_EPILOG: Final = """\b
Exit status:
    0  all is well
    1  a build failed, or what it made does not do; something is in use and was not removed; a file cannot be fetched
    2  the command line or a target is wrong; nothing was built
   65  something in a store, an archive or a fetched file is not what its name says
   66  no such reference, file, operation or log
   69  no daemon serves the store, or can be started, or it is gone
   70  a defect of this program
   73  something cannot be made: the store, an out-link
   74  the disk is full or fails, or an archive cannot be read or written
   75  the store, its daemon or a server is busy, or the daemon went away from under attach or log -f; try again later
   76  the daemon and this program do not understand each other
   77  the store or its daemon belongs to another user
   78  the store is of a newer version; a setting of the environment does not do
  130  interrupted
  141  whoever read the output has gone
"""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"pylightnix_client.commands.{_COMMANDS[cmd_name]}")
        command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        if not isinstance(command, click.Command):
            raise AssertionError(f"BUG: {cmd_name} is no command")
        return command


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    click.echo(f"{PROGRAM} {_version()}")
    ctx.exit()


def _version() -> str:
    """Return the version of `pylightnix` without importing that package, whose public face imports it all."""
    package = importlib.util.find_spec("pylightnix")
    if package is None or not package.submodule_search_locations:
        raise AssertionError("BUG: the program is installed without its library")
    version: str = runpy.run_path(os.path.join(package.submodule_search_locations[0], "_version.py"))["__version__"]
    return version


@click.group(cls=_LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--store",
    metavar="ROOT",
    type=click.Path(file_okay=False),
    help="The store to use.  [default: $PYLIGHTNIX_ROOT, else the platform's user data folder]",
)
@click.option(
    "--socket",
    metavar="PATH",
    type=click.Path(),
    help="Use the store of the daemon that listens at PATH, rather than --store.",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version and exit.")
@click.pass_obj
def cli(session: Session, store: Optional[str], socket: Optional[str]) -> None:
    """Make data with Python stages, each at most once, and look at what was made."""
    if store == "":  # an unset variable of a script, most likely; it must not mean the current folder
        raise click.BadParameter("expected a folder, found an empty text", param_hint="--store")
    if socket == "":
        raise click.BadParameter("expected a path, found an empty text", param_hint="--socket")
    if store is not None and socket is not None:
        raise click.UsageError("--store and --socket both say which store; give one of them")
    if store is not None or socket is not None:
        from pylightnix.workfolder import absolute

        session.root = None if store is None else _root(absolute(store))
        session.socket = None if socket is None else absolute(socket)


def _root(folder: str) -> str:
    from pylightnix.storage import root_in

    root = root_in(folder)
    if root != folder:
        note(f"there is no store in {folder}; using the one in {root}")
    return root


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line `argv` (else the process's) and return the exit status."""
    hold_standard_descriptors()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if COMPLETE_VARIABLE in os.environ:
        cli.main(arguments, prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE)  # prints completions and exits
    # A first guess, for faults of the command line itself; the option corrects it.
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    session = Session(Answers("--json" in options))
    try:
        # Not cli.main(): it turns every EOFError into "Aborted" and every broken pipe into status 1.
        with cli.make_context(PROGRAM, arguments, obj=session) as ctx:
            status: Any = cli.invoke(ctx)
            return int(status or 0)
    except click.exceptions.Exit as error:
        return error.exit_code
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001  # the boundary: everything becomes a report
        return _ended(error, session.answers)


def _ended(error: BaseException, answers: Answers) -> int:
    from pylightnix_client.failures import EXIT_PIPE, report

    if isinstance(error, BrokenPipeError):
        _silence_stdout()
        return EXIT_PIPE
    found = report(error)
    if answers.as_json:
        try:
            answers.object("error", **found.fields())
        except (OSError, AssertionError):
            _silence_stdout()
        except Exception as lost:  # noqa: BLE001  # nobody can be told on standard output then
            note(str(lost), "error: ", "red")
    elif isinstance(error, click.ClickException):
        shown = io.StringIO()
        error.show(shown)
        note(shown.getvalue().rstrip("\n"))
    else:
        if found.traceback:
            note(found.traceback.rstrip("\n"))
        note(found.message, "error: ", "red")
    return found.exit_status


def _silence_stdout() -> None:
    # The interpreter flushes sys.stdout when it ends, and would complain about the pipe again.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
