"""The command `completion`: the script that makes a shell complete this program's words."""

from __future__ import annotations

import click

from pylightnix_client.parameters import json_option
from pylightnix_client.session import Session

__all__ = ["completion_command"]


_EPILOG = """\b
To have it in every shell from now on:
  bash:  echo 'eval "$(pylightnix completion bash)"' >> ~/.bashrc
  zsh:   echo 'eval "$(pylightnix completion zsh)"' >> ~/.zshrc
  fish:  pylightnix completion fish > ~/.config/fish/completions/pylightnix.fish
"""


@click.command("completion", epilog=_EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
@click.pass_obj
def completion_command(session: Session, shell: str) -> None:
    """Print the completion script of SHELL.

    References are completed from the store, in bash without their dref: or rref: (it takes a colon for the end of a word).
    """
    from click.shell_completion import ShellComplete, get_completion_class

    from pylightnix_client.cli import COMPLETE_VARIABLE, PROGRAM, cli

    kind = get_completion_class(shell)
    if kind is None:
        raise AssertionError(f"BUG: click does not know {shell}")
    # The base class's method, for that of bash runs a bash first, only to warn about old ones.
    script = ShellComplete.source(kind(cli, {}, PROGRAM, COMPLETE_VARIABLE))
    if session.answers.as_json:
        session.answers.object("completion", shell=shell, script=script)
    else:
        session.answers.text(script.rstrip("\n"))
