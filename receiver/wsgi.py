"""Call a WSGI application for a request whose body has been read already."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from typing import Any

StartResponse = Callable[..., Callable[[bytes], object]]
# Any: an environment holds what servers and applications put there.
Environ = dict[str, Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


def make_environ(  # noqa: PLR0913 - a request has these parts
    *, method: str, path: str, query: str, scheme: str, headers: dict[str, str], body: bytes
) -> Environ:
    """Describe a request as PEP 3333 wants it; `path` is decoded, names are in lower case."""
    environ: Environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path.encode("utf-8").decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "0",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    environ |= {
        "HTTP_" + name.upper().replace("-", "_"): value
        for name, value in headers.items()
        # An underscore would make two names one; the chunks are joined already.
        if "_" not in name and name != "transfer-encoding"
    }
    # The length of what is here, which the server has compared with what was declared.
    environ["CONTENT_LENGTH"] = str(len(body))
    environ["CONTENT_TYPE"] = headers.get("content-type", "")
    return environ


def join_headers(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Give headers by name, repeated ones joined by a comma as every WSGI server does."""
    joined: dict[str, str] = {}
    for name, value in items:
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def call(application: Application, environ: Environ) -> tuple[int, list[tuple[str, str]], bytes]:
    """Give status, headers and body of the application's answer."""
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], _error: object = None
    ) -> Callable[[bytes], object]:
        started.append((status, headers))
        return lambda _data: None

    pieces = application(environ, start_response)
    try:
        body = b"".join(pieces)
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
    status, headers = started[-1]
    return int(status.split(" ", 1)[0]), headers, body
