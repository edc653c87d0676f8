"""Our server with a Flask route that reads the body and answers 204: nothing verified or stored.

python empty_route.py PORT WORKERS
"""

from __future__ import annotations

import sys

from flask import Flask, request
from granian import Granian
from granian.constants import HTTPModes, Interfaces

from receiver.wsgi import call, join_headers, make_environ

flask_app = Flask(__name__)


@flask_app.post("/webhooks/midbound")
def receive() -> tuple[str, int]:
    request.get_data()
    return "", 204


@flask_app.get("/healthz")
def healthz() -> str:
    return "ok"


async def app(scope, exchange) -> None:
    environ = make_environ(
        method=scope.method,
        path=scope.path,
        query=scope.query_string,
        scheme=scope.scheme,
        headers=join_headers(scope.headers.items()),
        body=await exchange(),
    )
    exchange.response_bytes(*call(flask_app.wsgi_app, environ))


if __name__ == "__main__":
    Granian(
        "empty_route:app",
        port=int(sys.argv[1]),
        workers=int(sys.argv[2]),
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        websockets=False,
    ).serve()
