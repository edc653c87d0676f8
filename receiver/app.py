"""The web application: bytes in, status out, no rule of its own.

`POST /webhooks/midbound` takes a delivery, `GET /healthz` says that the process lives, and
`GET /readyz` whether it could keep an event now. Every answer is a constant text, so that a
stranger learns nothing: not which check failed, and no counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from flask import Flask, Request, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import MapAdapter

from receiver.clock import Clock
from receiver.config import Settings
from receiver.disk import Disk
from receiver.errors import BrokenBodyError, DeliveryError, UnexpectedError
from receiver.intake import WAIT_FOR_DISK_S, Intake
from receiver.log import log_event
from receiver.signature import SignedHeaders

WEBHOOK_PATH = "/webhooks/midbound"
RETRY_AFTER_S = 5
PREPARED_KEY = "midbound.prepared"
INTAKE_KEY = "midbound.intake"

_TEXTS = {
    200: b"ok",
    400: b"bad request",
    401: b"unauthorized",
    404: b"not found",
    405: b"method not allowed",
    408: b"request timeout",
    413: b"content too large",
    415: b"unsupported media type",
    503: b"unavailable",
}


def is_delivery(method: str, path: str) -> bool:
    """Tell whether a request is a delivery, by the rules by which Flask finds the view."""
    return method.upper() == "POST" and "/" + path.lstrip("/") == WEBHOOK_PATH


class Answer(NamedTuple):
    """What the sender gets."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass(slots=True)
class Prepared:
    """A delivery whose head is checked and whose body is read; PREPARED_KEY of the environment.

    For a server that can do this, and wait for the disk, without holding a thread. It finds in
    `taken` what tells when the event is durable, wakes the intake, and sends the 200 only then.
    """

    signed: SignedHeaders
    body: bytes
    taken: Future[None] | None = None


class _App(Flask):
    """Finds a view by path and method alone.

    No URL is ever built here, and no host told from another, for which Flask would take the host of
    each request apart.
    """

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        if request is None:
            return None
        return self.url_map.bind("", default_method=request.method, path_info=request.path)


def create_app(
    settings: Settings,
    *,
    disk: Disk | None = None,
    clock: Clock | None = None,
    wait_for_disk_s: float = WAIT_FOR_DISK_S,
    needs_spool: bool = True,
) -> Flask:
    """Make the application. Raises ConfigurationError, or as `Intake` does for its spool.

    Whoever ends the process calls `app.extensions[INTAKE_KEY].close()`.
    """
    app = _App(__name__, static_folder=None)
    # A redirect counts as a failure with senders, so no path is ever "corrected".
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    intake = app.extensions[INTAKE_KEY] = Intake(
        settings,
        disk=disk,
        clock=clock,
        wait_for_disk_s=wait_for_disk_s,
        needs_spool=needs_spool,
    )

    @app.post(WEBHOOK_PATH, provide_automatic_options=False)
    def receive() -> Response:
        prepared: Prepared | None = request.environ.get(PREPARED_KEY)
        if prepared is None:
            signed = intake.check_head(lower_names(request.headers.items()))
            intake.wait(intake.take(signed, _read_body(intake)))
        else:
            prepared.taken = intake.take(prepared.signed, prepared.body, wake=False)
        return _respond(answer(200))

    @app.get("/healthz", provide_automatic_options=False)
    def healthz() -> Response:
        return _respond(answer(200))

    @app.get("/readyz", provide_automatic_options=False)
    def readyz() -> Response:
        problem = intake.problem()
        if problem is not None:
            log_event(logging.WARNING, "not_ready", problem=problem)
        return _respond(answer(200 if problem is None else 503))

    app.register_error_handler(Exception, lambda error: _answer_error(intake, error))
    return app


def refuse(intake: Intake, error: Exception, webhook_id: str) -> Answer:
    """Count, log and answer whatever kept a delivery from its 200."""
    if not isinstance(error, DeliveryError):
        # A bug must not cost an event: as a passing failure it makes the sender come again. Only
        # its type is logged, since its text may hold parts of a body.
        error = UnexpectedError(type(error).__name__)
    try:
        intake.count_refused(error, webhook_id)
    except Exception as failure:  # noqa: BLE001 - a count is for people, the answer for the sender
        log_event(logging.ERROR, "refusal_not_counted", error=type(failure).__name__)
    return answer(error.status)


def answer(status: int) -> Answer:
    """Give the constant answer of a status."""
    headers = [("content-type", "text/plain; charset=utf-8")]
    if status == 503:
        headers.append(("retry-after", str(RETRY_AFTER_S)))
    return Answer(status, headers, _TEXTS[status])


def lower_names(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Give headers by name in lower case."""
    return {name.lower(): value for name, value in headers}


def _answer_error(intake: Intake, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return _respond(refuse(intake, error, request.headers.get("webhook-id", "")))
    response = _respond(answer(error.code if error.code in _TEXTS else 404))
    if isinstance(error, MethodNotAllowed):
        response.allow.update(error.valid_methods or ())
    return response


def _respond(given: Answer) -> Response:
    return Response(given.body, given.status, given.headers)


def _read_body(intake: Intake) -> bytes:
    """Read the whole body, or refuse it: never a part. Raises BrokenBodyError or TooLargeError."""
    body = bytearray()
    try:
        while piece := request.stream.read(intake.max_body_bytes + 1 - len(body)):
            body += piece
            intake.check_size(len(body))
    except (HTTPException, OSError) as error:
        raise BrokenBodyError(f"reading the body failed: {type(error).__name__}") from error
    if request.content_length not in (None, len(body)):
        raise BrokenBodyError(f"{len(body)} of {request.content_length} bytes arrived")
    return bytes(body)
