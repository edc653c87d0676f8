"""Check that the server could listen as it is told to: a free port, a certificate that works.

Granian would share a port with another receiver in silence, and tell of a bad certificate without
its setting.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from pathlib import Path

from receiver.errors import ConfigurationError

_NOTHING_TYPED = ""  # given instead of a prompt, which nobody would see


def check_address(host: str, port: int) -> None:
    """Raise ConfigurationError if this address is not of this machine, or its port is taken."""
    family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            # Connections that have just ended do not matter. SO_REUSEPORT, which Granian sets,
            # would let us in beside a receiver that serves already.
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {error.strerror}; set receiver.host and "
            "receiver.port (RECEIVER__HOST, RECEIVER__PORT) to a free address of this machine"
        ) from error


def check_certificate(certificate: Path, key: Path) -> None:
    """Raise ConfigurationError if the certificate and its key cannot be used together."""
    _check_readable("receiver.tls_certificate", certificate)
    _check_readable("receiver.tls_key", key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(cafile=certificate)
    except ssl.SSLError:
        raise ConfigurationError(
            f"receiver.tls_certificate: {certificate} holds no certificate in PEM form; "
            "set it to a file that does, with the intermediate ones behind it"
        ) from None
    try:
        context.load_cert_chain(certificate, key, password=lambda: _NOTHING_TYPED)
    except ssl.SSLError as error:
        raise ConfigurationError(f"receiver.tls_key: {_why(error, certificate, key)}") from None


def _check_readable(setting: str, path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{setting}: cannot read {path}: {error.strerror}; "
            "set it to a file that the receiver may read"
        ) from None


def _why(error: ssl.SSLError, certificate: Path, key: Path) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{key} is not the key of {certificate}; set both to files of one pair"
    if b"ENCRYPTED" in key.read_bytes():
        return f"{key} is encrypted; decrypt it with: openssl pkey -in {key} -out FILE"
    return f"{key} holds no private key in PEM form; set it to a file that does"
