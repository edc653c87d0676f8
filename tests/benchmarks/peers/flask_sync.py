"""What most would write: Flask, the `standardwebhooks` package, and open, append, fsync, close.

To be served by gunicorn's sync workers.
"""

from __future__ import annotations

import os

from flask import Flask, request
from standardwebhooks import Webhook, WebhookVerificationError

app = Flask(__name__)
webhook = Webhook(os.environ["RECEIVER__WEBHOOK_SECRET"])


@app.post("/webhooks/midbound")
def receive() -> tuple[str, int]:
    body = request.get_data()
    try:
        webhook.verify(body, dict(request.headers))
    except WebhookVerificationError:
        return "", 401
    with open("events.jsonl", "ab") as file:  # noqa: PTH123 as most would write it
        file.write(body + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return "", 200


@app.get("/healthz")
def healthz() -> str:
    return "ok"
