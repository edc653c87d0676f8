"""Decide whether a delivery was signed with one of our keys.

Pure: header texts and bytes in, the key that signed out. The caller owns the clock, the log and the
answer to the sender, so every rule here can be tested with plain values.

Standard Webhooks: the signed text is `id.timestamp.body`, the signature header a list of entries
`v1,<base64 of HMAC-SHA256>` separated by spaces. In two steps, so that a server need not read the
body of what it will refuse: `check_headers` (syntax and age), then `find_key` (the HMAC).

The sender's libraries decode a secret from base64, its documentation uses the text itself as key.
Both are functions of the same secret, so both are accepted, unless one is pinned.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from receiver.errors import (
    BadIdError,
    BadTimestampError,
    ConfigurationError,
    MissingHeaderError,
    StaleDeliveryError,
    WrongSignatureError,
)
from receiver.hashing import update

Derivation = Literal["base64", "text"]
AllowedDerivations = Literal["both", "base64", "text"]

HEADER_NAMES = ("webhook-id", "webhook-timestamp", "webhook-signature")
TOLERANCE_S = 300  # both ways; what the Standard Webhooks libraries use
MAX_ENTRIES = 16
SECRET_PREFIX = "whsec_"  # noqa: S105  # nosec B105
FINGERPRINT_CHARS = 6
MIN_SECRET_CHARS = 16
MIN_DECODED_BYTES = (
    16  # decoding what is not base64 can give a few bytes, which anybody could guess
)

_DIGEST_BYTES = 32
# Visible ASCII without the comma, with which servers join repeated headers. The specification also
# bans the dot; refusing it would lose an event that was billed, and nothing here splits at dots.
_ID = re.compile(r"[!-+\--~]{1,256}")
_TIMESTAMP = re.compile(r"[0-9]{1,12}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True, kw_only=True)
class Key:
    """One HMAC key; which secret of the list it comes from, and how.

    The fingerprint is of the secret, so that counts follow it when its place in the list changes.
    """

    secret_index: int
    fingerprint: str
    derivation: Derivation
    value: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """The key's name in logs and counts, from which nobody can guess its value."""
        return f"{self.fingerprint}:{self.derivation}"


@dataclass(frozen=True, kw_only=True)
class SignedHeaders:
    """The three headers of a delivery, checked as far as that goes without the body."""

    webhook_id: str
    webhook_timestamp: str
    digests: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Match:
    """The key that signed a delivery, and the entry of the header that proves it."""

    key: Key
    signature: str


def derive_keys(secrets: Iterable[str], allowed: AllowedDerivations = "both") -> tuple[Key, ...]:
    """Give all keys of all secrets, in their order. Raises ConfigurationError."""
    stripped = [secret.strip() for secret in secrets]
    return tuple(
        key for index, secret in enumerate(stripped) for key in _derive(index, secret, allowed)
    )


def check_headers(
    headers: Mapping[str, str], *, now_s: int, tolerance_s: int = TOLERANCE_S
) -> SignedHeaders:
    """Check all that can be checked without the body; names of headers in lower case.

    Raises an UnsignedError.
    """
    webhook_id, timestamp, signature = (headers.get(name, "") for name in HEADER_NAMES)
    if not (webhook_id and timestamp and signature):
        missing = [name for name in HEADER_NAMES if not headers.get(name)]
        raise MissingHeaderError(f"without {' and '.join(missing)}")
    if not _ID.fullmatch(webhook_id):
        raise BadIdError("the id is not 1 to 256 visible ASCII characters without comma")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise BadTimestampError("the timestamp is not 1 to 12 ASCII digits")
    _check_age(int(timestamp), now_s, tolerance_s)
    digests = tuple(islice(_read_digests(signature), MAX_ENTRIES))
    if not digests:
        raise WrongSignatureError("no well-formed v1 entry in the signature header")
    return SignedHeaders(webhook_id=webhook_id, webhook_timestamp=timestamp, digests=digests)


def find_key(headers: SignedHeaders, body: bytes, keys: Iterable[Key]) -> Match:
    """Find the key that signed this body. Raises WrongSignatureError if none did."""
    # The header's own text is signed, not a number printed anew: 0123 is not 123.
    signed = f"{headers.webhook_id}.{headers.webhook_timestamp}.".encode("ascii") + body
    match: Match | None = None
    # Every key meets every entry, match or not, so that the time tells nothing about which fits.
    for key in keys:
        expected = _digest(key, signed)
        for digest in headers.digests:
            if hmac.compare_digest(expected, digest) and match is None:
                match = Match(key=key, signature=f"v1,{base64.b64encode(digest).decode('ascii')}")
    if match is None:
        raise WrongSignatureError(f"none of {len(headers.digests)} entries fits one of our keys")
    return match


def _digest(key: Key, signed: bytes) -> bytes:
    digest = hmac.new(key.value, digestmod="sha256")
    update(digest, signed)
    return digest.digest()


def _check_age(signed_at_s: int, now_s: int, tolerance_s: int) -> None:
    age_s = now_s - signed_at_s
    if abs(age_s) > tolerance_s:
        # The age is worth logging: a steady offset means that a clock is wrong.
        raise StaleDeliveryError(age_s, tolerance_s)


def _read_digests(signature: str) -> Iterator[bytes]:
    """Give the digest of each well-formed v1 entry; whatever else is in the header is skipped."""
    for entry in signature.split(" "):
        version, _, encoded = entry.partition(",")
        digest = _try_decode(encoded) if version == "v1" else None
        if digest is not None and len(digest) == _DIGEST_BYTES:
            yield digest


def _fingerprint(text: str) -> str:
    """Name a secret: enough of a digest to tell a few apart, too little to find the secret by."""
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:FINGERPRINT_CHARS]


def _derive(index: int, secret: str, allowed: AllowedDerivations) -> Iterator[Key]:
    text = secret.removeprefix(SECRET_PREFIX)
    where = f"receiver.webhook_secret (RECEIVER__WEBHOOK_SECRET), secret {index + 1}"
    if len(text) < MIN_SECRET_CHARS or not text.isascii():
        raise ConfigurationError(
            f"{where}: it has fewer than {MIN_SECRET_CHARS} characters after {SECRET_PREFIX}, "
            "or some that are not ASCII; copy the whole secret from the Midbound Console"
        )
    decoded = _try_decode_secret(text)
    if allowed == "base64" and decoded is None:
        raise ConfigurationError(
            f"{where}: it is not base64 of at least {MIN_DECODED_BYTES} bytes; copy the whole "
            "secret from the Midbound Console, or set receiver.key_derivation to both or text"
        )
    fingerprint = _fingerprint(text)
    if allowed != "text" and decoded is not None:
        yield Key(secret_index=index, fingerprint=fingerprint, derivation="base64", value=decoded)
    if allowed != "base64":
        value = text.encode("ascii")
        yield Key(secret_index=index, fingerprint=fingerprint, derivation="text", value=value)


def _try_decode_secret(text: str) -> bytes | None:
    # Secrets are seen with and without padding.
    padded = text if text.endswith("=") else text + "=" * (-len(text) % 4)
    decoded = _try_decode(padded)
    return decoded if decoded is not None and len(decoded) >= MIN_DECODED_BYTES else None


def _try_decode(text: str) -> bytes | None:
    """Decode padded base64 of the standard alphabet; None for anything else."""
    if len(text) % 4 or not _BASE64.fullmatch(text):
        return None
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
