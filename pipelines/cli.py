"""The command `midbound`: one verb each, imported only when it is asked for.

`receive` must not import dlt, and `load` must find out that nothing waits without it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Protocol, cast

from pipelines.errors import LoadError, WarehouseHeldError
from pipelines.exit_codes import ExitCode
from receiver.config import Settings, read_settings
from receiver.errors import BusyError, ConfigurationError, ReceiverError


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
    parser = _make_parser(arguments)
    args = parser.parse_args(arguments)
    try:
        return int(cast("VerbModule", args.module).run(args, read_settings()))
    except KeyboardInterrupt:
        return 130
    except (ReceiverError, LoadError) as error:
        print(f"midbound {args.verb}: {error}", file=sys.stderr)
        return _exit_code(error)


def _make_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midbound",
        description="Receive Midbound Cloud's webhooks and load them into a warehouse.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"midbound {metadata.version('midbound-warehouse')}"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        verb_parser = verbs.add_parser(verb.name, help=verb.summary, description=verb.summary)
        if arguments[:1] == [verb.name]:
            module = cast("VerbModule", import_module(verb.module))
            module.add_arguments(verb_parser)
            verb_parser.set_defaults(module=module)
    return parser


def _exit_code(error: Exception) -> ExitCode:
    if isinstance(error, ConfigurationError):
        return ExitCode.USAGE
    if isinstance(error, (BusyError, WarehouseHeldError)):
        return ExitCode.BUSY
    return ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
