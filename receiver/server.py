"""Serve the application with Granian: several processes, deadlines, limits, a graceful end.

A thread per connection can be starved by a few clients that send nothing, so no thread waits here.
`Front` runs on the event loop of each process: it refuses by headers before it reads a body, reads
the body under a deadline and a limit, calls the Flask application (microseconds of verification),
and sends its 200 only after the spool's future has resolved.

The settings and the secret are read from files and environment by each process; nothing is in argv.
"""

from __future__ import annotations

import asyncio
import logging
import logging.config
import os
import signal
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from granian import Granian
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings

from receiver.app import (
    INTAKE_KEY,
    PREPARED_KEY,
    WEBHOOK_PATH,
    Answer,
    Prepared,
    answer,
    create_app,
    is_delivery,
    refuse,
)
from receiver.config import Settings, read_settings
from receiver.crossing import Crossing
from receiver.errors import BrokenBodyError, DuplicateHeaderError, ReceiverError, SlowBodyError
from receiver.intake import WAIT_FOR_DISK_S, Intake, declared_length
from receiver.listening import check_address, check_certificate
from receiver.log import LOG_CONFIG, log_event
from receiver.segment import Spool
from receiver.signature import HEADER_NAMES
from receiver.spool import recover
from receiver.wsgi import Environ, call, join_headers, make_environ

BACKLOG = 1024
HEADER_TIMEOUT_MS = 10_000  # also ends connections that are idle between two requests
SEAL_WITHIN_S = 10  # after the last request of a process that is told to stop
# What a header stands for whose absence would say that the body is plain, or of no length. A value
# that Granian does not show must be refused, not taken for none.
FRAMING_NAMES = ("content-encoding", "content-length", "transfer-encoding")
UNREADABLE = "unreadable"


class Headers(Protocol):
    """Granian's headers: names in lower case, a repeated one once for each time.

    A value that is not visible ASCII is left out of `items`; `in` knows its name all the same.
    """

    def __contains__(self, name: str) -> bool:
        """Say whether a header is there, whatever its value."""
        ...

    def items(self) -> list[tuple[str, str]]:
        """Give all headers."""
        ...


class Scope(Protocol):
    """Granian's description of a request; `path` is decoded."""

    method: str
    path: str
    query_string: str
    scheme: str
    headers: Headers


class Exchange(Protocol):
    """Granian's two ends of a request: the body in, the answer out."""

    async def __call__(self) -> bytes:
        """Read the whole body."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Read the body in pieces."""
        ...

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Answer."""
        ...


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then seal.

    Raises ConfigurationError, SpoolError or OSError at once.
    """
    logging.config.dictConfig(LOG_CONFIG)
    receiver = settings.receiver
    keys = settings.keys()
    _check_spool_and_certificate(settings)
    check_address(receiver.host, receiver.port)
    server = Granian(
        target="receiver.server",
        address=receiver.host,
        port=receiver.port,
        interface=Interfaces.RSGI,
        workers=receiver.workers,
        http=HTTPModes.http1,
        websockets=False,
        backlog=BACKLOG,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_TIMEOUT_MS),
        respawn_failed_workers=True,
        workers_kill_timeout=int(receiver.body_timeout_s + WAIT_FOR_DISK_S + SEAL_WITHIN_S),
        log_dictconfig=LOG_CONFIG,
        ssl_cert=receiver.tls_certificate,
        ssl_key=receiver.tls_key,
        ssl_protocol_min=SSLProtocols.tls12,
    )
    scheme = "http" if receiver.tls_certificate is None else "https"
    log_event(
        logging.INFO,
        "listening",
        address=f"{scheme}://{receiver.host}:{receiver.port}{WEBHOOK_PATH}",
        spool=settings.spool.path,
        workers=receiver.workers,
        keys=",".join(key.name for key in keys),
    )
    # A process would inherit handlers that only tell the parent's object, and sleep through a
    # SIGTERM that comes before it has its own. Until then, to end at once loses nothing.
    os.register_at_fork(after_in_child=_end_on_signals)
    # After Granian has set its own handler, which would replace good processes by any.
    reload = partial(_reload, settings.root, server.signal_handler_reload)
    server.on_startup(lambda: signal.signal(signal.SIGHUP, reload))
    loader = partial(load_front, settings.root)
    if receiver.metrics_port is not None:
        from receiver.metrics import serve_metrics  # noqa: PLC0415 only who wants it pays for it

        serve_metrics(Spool(settings.spool.path), receiver.metrics_host, receiver.metrics_port)
    # Granian's annotation wants a function, its code takes an object with __rsgi__.
    server.serve(target_loader=cast("Callable[..., Any]", loader), wrap_loader=False)


def _check_spool_and_certificate(settings: Settings) -> None:
    """Raise what would keep the processes from taking events."""
    Spool(settings.spool.path).create()
    receiver = settings.receiver
    if receiver.tls_certificate is not None and receiver.tls_key is not None:
        check_certificate(receiver.tls_certificate, receiver.tls_key)


def _end_on_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _reload(root: Path, replace_processes: Callable[[], object], *_signal: object) -> None:
    """Replace the processes, unless new ones could not start: then the old ones go on."""
    try:
        settings = read_settings(root)
        settings.keys()
        _check_spool_and_certificate(settings)
    except (ReceiverError, OSError) as error:
        log_event(logging.ERROR, "not_reloaded", error=error)
    else:
        replace_processes()


def load_front(root: Path) -> Front:
    """Make the front of one process, from the settings below `root`."""
    return Front(read_settings(root))


class Front:
    """One process: from Granian's requests to the Flask application and back."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # The parent has seen that it could keep events. If the disk has failed since, the processes
        # beside this one live on and answer 503; to end here would only end them all.
        self._app = create_app(settings, needs_spool=False)
        self._intake: Intake = self._app.extensions[INTAKE_KEY]

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Seal what processes before this one have left; or leave it, if the disk cannot now."""
        self._crossing = Crossing(loop, self._intake.wake)
        try:
            recover(Spool(self._settings.spool.path))
        except OSError as error:
            # A process that ended here would be started again at once, until Granian gives up.
            log_event(logging.ERROR, "recovery_failed", error=error)

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Seal before the process ends."""
        self._intake.close()

    async def __rsgi__(self, scope: Scope, exchange: Exchange) -> None:
        """Answer one request, whatever happens."""
        try:
            given = await self._answer(scope, exchange)
        except Exception as error:  # noqa: BLE001 - no error of ours may become a 500
            given = self._refuse(scope, error)
        exchange.response_bytes(*given)

    def _refuse(self, scope: Scope, error: Exception) -> Answer:
        try:
            webhook_id = dict(scope.headers.items()).get("webhook-id", "")
            return refuse(self._intake, error, webhook_id)
        except Exception:  # noqa: BLE001 - the last resort: the sender comes again
            return answer(503)

    async def _answer(self, scope: Scope, exchange: Exchange) -> Answer:
        items = scope.headers.items()
        headers = join_headers(items)
        if not is_delivery(scope.method, scope.path):
            return Answer(*call(self._app.wsgi_app, _environ_of(scope, headers)))
        _refuse_doubled([name for name, _ in items])
        _show_unreadable(scope.headers, headers)
        signed = self._intake.check_head(headers)
        body = await self._read_body(exchange, declared_length(headers))
        environ = _environ_of(scope, headers)
        prepared = environ[PREPARED_KEY] = Prepared(signed, body)
        given = Answer(*call(self._app.wsgi_app, environ))
        if prepared.taken is not None:
            self._crossing.wake_thread_soon()
            await self._intake.wait_async(prepared.taken, self._crossing)
        return given

    async def _read_body(self, exchange: Exchange, length: int | None) -> bytes:
        timeout_s = self._settings.receiver.body_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                body = await self._read_pieces(exchange) if length is None else await exchange()
        except TimeoutError:
            raise SlowBodyError(f"the body did not arrive within {timeout_s:g} s") from None
        except RuntimeError as error:  # what Granian raises for a connection that broke
            raise BrokenBodyError("the connection ended within the body") from error
        if length is not None and len(body) != length:
            raise BrokenBodyError(f"{len(body)} of {length} bytes arrived")
        return body

    async def _read_pieces(self, exchange: Exchange) -> bytes:
        """Read a body of unknown length up to the limit.

        Granian ends the pieces in silence if the framing breaks. What is missing then is missing
        from what was signed, too, so that a cut body never passes.
        """
        body = bytearray()
        async for piece in exchange:
            body += piece
            self._intake.check_size(len(body))
        return bytes(body)


def _environ_of(scope: Scope, headers: dict[str, str]) -> Environ:
    return make_environ(
        method=scope.method,
        path=scope.path,
        query=scope.query_string,
        scheme=scope.scheme,
        headers=headers,
        body=b"",
    )


def _refuse_doubled(names: list[str]) -> None:
    """Raise DuplicateHeaderError if one of the three headers of a signature is there twice."""
    if len({*names}) < len(names):
        for name in HEADER_NAMES:
            if names.count(name) > 1:
                raise DuplicateHeaderError(f"{name} is there more than once")


def _show_unreadable(given: Headers, headers: dict[str, str]) -> None:
    """Put in what the server has left out for its value, under a value that is refused."""
    for name in FRAMING_NAMES:
        if name in given:
            headers.setdefault(name, UNREADABLE)
