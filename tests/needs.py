"""Skip what this machine cannot do, naming what is missing.

Where everything has to run (`.ci/run`), `conftest` makes a failure of each of these skips.
"""

from __future__ import annotations

import os
import shutil

import pytest


def need_commands(*names: str) -> None:
    """Skip unless all of these commands are there."""
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"the command {name} is missing")


def need_mounts() -> None:
    """Skip unless this user may mount file systems."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    need_commands("mount", "umount")
