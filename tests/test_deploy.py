"""The files that others copy: what must hold in the units, the crontab and the proxy."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from receiver.config import ReceiverSettings
from receiver.server import BACKLOG

DEPLOY = Path(__file__).parents[1] / "deploy"
SERVICES = ["midbound-load.service", "midbound-receive.service"]


def _read(name: str) -> str:
    """Give a file without its comments."""
    return re.sub(r"(?m)^\s*#.*\n", "", (DEPLOY / name).read_text("utf-8"))


def _unit(name: str) -> dict[str, dict[str, str]]:
    sections: dict[str, dict[str, str]] = {}
    for line in _read(name).splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line:
            key, _, value = line.partition("=")
            assert key not in section, f"{key} is set twice in {name}"
            section[key] = value
    return sections


def test_the_receiver_is_started_again_however_often_it_ends() -> None:
    unit = _unit("midbound-receive.service")
    assert unit["Service"]["Restart"] == "always"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"


def test_the_receiver_reloads_by_the_signal_that_it_knows() -> None:
    assert _unit("midbound-receive.service")["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"


def test_the_receiver_may_open_as_many_connections_as_it_takes() -> None:
    limit = int(_unit("midbound-receive.service")["Service"]["LimitNOFILE"])
    assert limit > 16 * BACKLOG


def test_the_receiver_has_the_time_to_finish_what_it_accepted() -> None:
    # A body, the disk, and the seal, as the server allows them.
    assert int(_unit("midbound-receive.service")["Service"]["TimeoutStopSec"]) > 30


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined_to_what_it_writes(name: str) -> None:
    service = _unit(name)["Service"]
    assert service["User"] == "midbound"
    assert service["UMask"] == "0077"
    assert service["ProtectSystem"] == "strict"
    assert service["ReadWritePaths"].startswith("/srv/midbound")
    assert {service[key] for key in ("NoNewPrivileges", "PrivateTmp", "ProtectHome")} == {"yes"}


def test_a_load_that_found_nothing_or_another_load_is_no_failure() -> None:
    unit = _unit("midbound-load.service")["Service"]
    assert (unit["Type"], unit["SuccessExitStatus"]) == ("oneshot", "3 4")


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs the program systemd-analyze"
)
@pytest.mark.parametrize("name", [*SERVICES, "midbound-load.timer"])
def test_systemd_understands_every_line(name: str, tmp_path: Path) -> None:
    # The command of a unit has to exist, and here that is another one.
    for unit in [*SERVICES, "midbound-load.timer"]:
        text = (DEPLOY / unit).read_text("utf-8")
        text = re.sub(r"/srv/midbound/\.venv/bin/midbound", "/bin/true", text)
        (tmp_path / unit).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / name)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert [line for line in done.stderr.splitlines() if "midbound" in line] == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", [0, 3, 1, 2, 4, 5])
def test_cron_mails_only_what_somebody_has_to_see(code: int, tmp_path: Path) -> None:
    (line,) = _read("crontab").splitlines()
    schedule, command = re.fullmatch(r"((?:\S+ ){5})(.*)", line).groups()
    assert schedule == "*/10 * * * * "
    midbound = tmp_path / ".venv/bin/midbound"
    midbound.parent.mkdir(parents=True)
    midbound.write_text(f'#!/bin/sh\necho "$@" > arguments\necho out\necho bad >&2\nexit {code}\n')
    midbound.chmod(0o700)
    done = subprocess.run(
        ["/bin/sh", "-c", command.replace("/srv/midbound", str(tmp_path))],
        check=False,
        capture_output=True,
        text=True,
    )
    is_well = code in (0, 3)
    expected = (0, "") if is_well else (code, "out\nbad\n")
    assert (done.returncode, done.stdout + done.stderr) == expected
    assert (tmp_path / "arguments").read_text() == "load --max-age 24h\n"


def test_the_proxy_refuses_no_burst_of_the_sender() -> None:
    """It has few addresses; a limit of its rate would refuse events that were paid for."""
    proxy = _read("nginx.conf")
    assert "limit_req" not in proxy
    (zone, most) = re.search(r"limit_conn (\w+) (\d+);", proxy).groups()
    assert int(most) >= 200
    assert f"limit_conn_zone $binary_remote_addr zone={zone}:" in proxy


def test_what_the_proxy_refuses_comes_again() -> None:
    proxy = _read("nginx.conf")
    assert "limit_conn_status 503;" in proxy
    assert re.search(r"error_page 502 503 504 @later;\n.*location @later \{\n", proxy, re.DOTALL)
    assert re.search(r"add_header Retry-After \d+ always;", proxy)
    assert "proxy_next_upstream off;" in proxy


def test_the_proxy_lets_the_receiver_judge_what_is_too_large() -> None:
    # What nginx refuses, nobody counts, and `midbound status` cannot ring.
    (size_mib,) = re.search(r"client_max_body_size (\d+)m;", _read("nginx.conf")).groups()
    assert int(size_mib) * 1024 * 1024 > ReceiverSettings().max_body_bytes


def test_the_proxy_keeps_slow_bodies_away_from_the_receiver() -> None:
    proxy = _read("nginx.conf")
    assert "proxy_request_buffering on;" in proxy
    for deadline in ("client_header_timeout", "client_body_timeout"):
        assert re.search(rf"{deadline} \d+s;", proxy)
