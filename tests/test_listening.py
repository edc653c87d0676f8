"""What would keep the server from listening is told before it starts, with setting and cure."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from receiver.errors import ConfigurationError
from receiver.listening import check_address, check_certificate

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs the program openssl"
)


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """Give a socket that listens as Granian's do."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening


def address_message(host: str, port: int) -> str:
    with pytest.raises(ConfigurationError) as refused:
        check_address(host, port)
    return str(refused.value)


def test_a_port_that_another_receiver_would_share_is_refused(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    assert address_message("127.0.0.1", port) == (
        f"cannot listen on 127.0.0.1 port {port}: Address already in use; set receiver.host and "
        "receiver.port (RECEIVER__HOST, RECEIVER__PORT) to a free address of this machine"
    )


def test_an_address_of_another_machine_is_refused() -> None:
    assert address_message("192.0.2.1", 8080) == (
        "cannot listen on 192.0.2.1 port 8080: Cannot assign requested address; set receiver.host "
        "and receiver.port (RECEIVER__HOST, RECEIVER__PORT) to a free address of this machine"
    )


def test_a_port_whose_last_connection_has_just_ended_is_free(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        accepted, _ = taken.accept()
        accepted.close()  # first, so that this end waits in TIME_WAIT
        assert client.recv(1) == b""
    taken.close()
    check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)


def make_pair(directory: Path, name: str) -> tuple[Path, Path]:
    certificate, key = directory / f"{name}.pem", directory / f"{name}-key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-subj", "/CN=x", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def certificate_message(certificate: Path, key: Path) -> str:
    with pytest.raises(ConfigurationError) as refused:
        check_certificate(certificate, key)
    return str(refused.value)


@needs_openssl
def test_a_pair_that_fits_is_taken_and_one_that_does_not_is_refused(tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path, "one")
    other = make_pair(tmp_path, "other")[1]
    check_certificate(certificate, key)
    assert certificate_message(certificate, other) == (
        f"receiver.tls_key: {other} is not the key of {certificate}; set both to files of one pair"
    )


@needs_openssl
def test_a_file_that_is_missing_is_named_with_its_setting(tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path, "one")
    none = tmp_path / "none"
    assert certificate_message(none, key) == (
        f"receiver.tls_certificate: cannot read {none}: No such file or directory; "
        "set it to a file that the receiver may read"
    )
    assert certificate_message(certificate, none) == (
        f"receiver.tls_key: cannot read {none}: No such file or directory; "
        "set it to a file that the receiver may read"
    )


@needs_openssl
@pytest.mark.parametrize("text", ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_file_that_is_not_pem_is_named_with_its_setting(tmp_path: Path, text: str) -> None:
    certificate, key = make_pair(tmp_path, "one")
    bad = tmp_path / "bad.pem"
    bad.write_text(text)
    assert certificate_message(bad, key) == (
        f"receiver.tls_certificate: {bad} holds no certificate in PEM form; "
        "set it to a file that does, with the intermediate ones behind it"
    )
    assert certificate_message(certificate, bad) == (
        f"receiver.tls_key: {bad} holds no private key in PEM form; set it to a file that does"
    )


@needs_openssl
@pytest.mark.parametrize("traditional", [[], ["-traditional"]])
def test_an_encrypted_key_is_refused_without_a_prompt(
    tmp_path: Path, traditional: list[str]
) -> None:
    certificate, key = make_pair(tmp_path, "one")
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", *traditional, "-in", key, "-aes256", "-passout", "pass:x",
         "-out", locked],
        check=True, capture_output=True,
    )  # fmt: skip
    assert certificate_message(certificate, locked) == (
        f"receiver.tls_key: {locked} is encrypted; "
        f"decrypt it with: openssl pkey -in {locked} -out FILE"
    )
