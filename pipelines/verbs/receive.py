"""`midbound receive`: serve until stopped, then seal."""

from __future__ import annotations

import argparse

from pipelines.exit_codes import ExitCode
from receiver.config import Settings
from receiver.server import serve


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Declare the options: all settings come from the configuration."""


def run(_args: argparse.Namespace, settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT."""
    serve(settings)
    return ExitCode.DONE
