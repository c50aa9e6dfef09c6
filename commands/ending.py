"""How every command ends: its exit status, a plain message for what went wrong, and the line of JSON.

With `--json` the last line of standard output is JSON whatever happens, also after a mistyped option, a signal, or an
error that nobody has foreseen.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import click
import typer
from rich.console import Console

from fedrec import __version__
from fedrec.core.disk import is_of_the_disk, mend, reason
from fedrec.core.errors import ConfigError, FedrecError
from fedrec.core.strict_json import json_line

FAILED, NOT_VALID, BUG, INTERRUPTED = 1, 2, 70, 130
"""Exit statuses: the run failed; configuration or command line is not valid; fedrec is wrong; Ctrl-C."""

JSON_OPTION = "--json"
REPORT = "please report it, with the lines above, where you got fedrec from"


@contextlib.contextmanager
def ending(as_json: bool) -> Iterator[tuple[Console, dict[str, Any]]]:
    """Yields the console to write to, and the dictionary to fill, which becomes the line of JSON."""
    end: dict[str, Any] = {}
    status = 0
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        try:
            yield Console(stderr=as_json), end
        except (typer.Exit, click.ClickException):  # `command_line` ends these
            raise
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            end, status = {"error": "interrupted"}, INTERRUPTED
        except SystemExit as error:  # of a signal: see `commands.signals`
            status = error.code if isinstance(error.code, int) else FAILED
            end = {"error": _signalled(status)}
            print(end["error"], file=sys.stderr)
        except Exception as error:
            end, status = failure(error)
            if status == BUG:
                traceback.print_exception(error)
            print(f"error: {end['error']}", file=sys.stderr)
    if as_json:
        print_line(end)
    if status:
        raise typer.Exit(status)


def failure(error: Exception) -> tuple[dict[str, Any], int]:
    """What the line of JSON says of an error, and the exit status."""
    if isinstance(error, ConfigError):
        return {"error": str(error), "problems": list(error.problems)}, NOT_VALID
    if isinstance(error, FedrecError):
        return {"error": str(error)}, FAILED
    if is_of_the_disk(error):
        where = getattr(error, "filename", None) or "a file"
        said = f"{where} cannot be read or written ({reason(error)}): {mend(error, 'give another place')}"
        return {"error": said}, FAILED
    if _out_of_memory(error):
        return {"error": f"there is not enough memory ({reason(error)}): give smaller numbers, or more memory"}, FAILED
    said = f"this is a bug in fedrec {__version__}: {type(error).__name__}: {reason(error)}; {REPORT}"
    return {"error": said, "bug": True}, BUG


def print_line(end: Mapping[str, Any]) -> None:
    """The line of JSON; who has closed the pipe does not want it."""
    with contextlib.suppress(BrokenPipeError):
        print(json_line(end), flush=True)


def command_line(app: typer.Typer) -> None:
    """Carry out what the command line asks for, and end the process with its status."""
    as_json = JSON_OPTION in sys.argv[1:]
    try:
        status = app(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        if as_json:
            print_line({"error": error.format_message()})
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        if as_json:
            print_line({"error": "interrupted"})
        sys.exit(INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _out_of_memory(error: Exception) -> bool:
    """PyTorch says it with a RuntimeError of its allocator."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def _signalled(status: int) -> str:
    with contextlib.suppress(ValueError):
        return f"ended by {signal.Signals(status - 128).name}"
    return f"ended with status {status}"
