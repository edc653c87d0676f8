"""The command `midbound`: one verb each, imported only when it is asked for.

`receive` must not import dlt, and `load` must find out that nothing waits without it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from pipelines.errors import LoadError, WarehouseHeldError
from pipelines.exit_codes import ExitCode
from receiver.config import Settings, read_settings
from receiver.errors import BusyError, ConfigurationError, ReceiverError

INTERRUPTED = 130  # as shells say it: 128 and the number of SIGINT


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb, what it does in one line, and the module that does it."""

    name: str
    summary: str
    module: str


class VerbModule(Protocol):
    """What the module of a verb offers."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Settings], int]


VERBS = (
    Verb("receive", "serve the webhook endpoint until stopped", "pipelines.verbs.receive"),
    Verb("load", "load what the spool holds into the warehouse", "pipelines.verbs.load"),
    Verb("send", "send signed deliveries to a receiver", "pipelines.demo.send"),
    Verb("status", "tell what waits, what was refused, what arrived", "pipelines.verbs.status"),
    Verb("explain", "tell what became of one event", "pipelines.verbs.explain"),
    Verb("demo", "run the whole line once, from delivery to answer", "pipelines.demo.run"),
)

EXIT_CODES = """\
exit codes: 0 done; 1 failed, nothing is lost; 2 options or configuration;
3 nothing to do; 4 busy; 5 done, but needs attention"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and give its exit code; every error of ours is one line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    verb = next((word for word in arguments if not word.startswith("-")), "")
    try:
        return _run(verb, arguments)
    except KeyboardInterrupt:
        return _fail(verb, "interrupted; nothing is lost", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; Python's own flush at the end must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except (ReceiverError, LoadError) as error:
        return _fail(verb, str(error), _exit_code(error))
    except ModuleNotFoundError as error:
        if _is_ours(error.name):
            raise
        # The distribution is never uploaded, so no index has it.
        message = (
            f"{error.name} is not installed; run in the project's checkout: "
            ".venv/bin/pip install --editable '.[load]'"
        )
        return _fail(verb, message, ExitCode.USAGE)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(verb, f"{place}{error.strerror or error}", ExitCode.FAILED)


def _run(verb: str, arguments: Sequence[str]) -> int:
    parser, module = _make_parser(verb)
    args = parser.parse_args(arguments)
    code = cast("VerbModule", module).run(args, read_settings())
    sys.stdout.flush()
    return int(code)


def _make_parser(wanted: str) -> tuple[argparse.ArgumentParser, object]:
    """Make the parser, and import the module of the wanted verb only."""
    parser = argparse.ArgumentParser(
        prog="midbound",
        description="Receive Midbound Cloud's webhooks and load them into a warehouse.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    module: object = None
    for verb in VERBS:
        verb_parser = verbs.add_parser(verb.name, help=verb.summary, description=verb.summary)
        if verb.name == wanted:
            module = import_module(verb.module)
            cast("VerbModule", module).add_arguments(verb_parser)
    return parser, module


class _ShowVersion(argparse.Action):
    """Look the version up only when it is asked for: that takes 30 ms."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from importlib import metadata  # noqa: PLC0415 see above

        try:
            version = metadata.version("midbound-warehouse")
        except metadata.PackageNotFoundError:
            version = "of a source tree that is not installed"
        print(f"midbound {version}")
        parser.exit()


def _fail(verb: str, message: str, code: int) -> int:
    from pipelines.redact import hide_secrets  # noqa: PLC0415 not wanted when all goes well

    name = f"midbound {verb}" if verb else "midbound"
    print(f"{name}: {hide_secrets(message, Path(), os.environ)}", file=sys.stderr)
    return code


def _is_ours(module: str | None) -> bool:
    return (module or "pipelines").split(".")[0] in ("pipelines", "receiver")


def _exit_code(error: Exception) -> ExitCode:
    if isinstance(error, ConfigurationError):
        return ExitCode.USAGE
    if isinstance(error, (BusyError, WarehouseHeldError)):
        return ExitCode.BUSY
    return ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
