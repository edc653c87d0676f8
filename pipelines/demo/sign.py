"""Sign a delivery as Midbound does, in either way that its secret may be understood."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Literal

Derivation = Literal["base64", "text"]


def sign(
    secret: str, webhook_id: str, timestamp: str, body: bytes, derivation: Derivation = "base64"
) -> str:
    """Give the text of the `webhook-signature` header, `v1,<base64>`.

    The vendor's SDK decodes the secret from base64, its documentation uses the text.
    """
    text = secret.removeprefix("whsec_")
    key = (
        base64.b64decode(text + "=" * (-len(text) % 4)) if derivation == "base64" else text.encode()
    )
    signed = b"%b.%b.%b" % (webhook_id.encode(), timestamp.encode(), body)
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()
