"""The API of the emulated region: moto's AWS, faults in front of it, and the control API beside it.

`python -m tests.cloud.api --port N` serves it without hosts, for plan checks and unit tests.
"""

from __future__ import annotations

import argparse
import io
import re
import signal
import socket
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server
from werkzeug.test import run_wsgi_app

from tests.cloud.faults import Call, Protocol, Refused, error_reply
from tests.cloud.moto_control import Control
from tests.cloud.moto_hidden import Veil
from tests.cloud.moto_region import World, open_world
from tests.cloud.types import Hosts, NoHosts, Pace

Environ = dict[str, Any]
Reply = tuple[int, dict[str, str], bytes]
ERROR_CODE = re.compile(rb"<Code>([\w.]+)</Code>|\"__type\":\s*\"(?:[^\"#]*#)?([\w.]+)\"")
S3_OBJECT = {"GET": "GetObject", "PUT": "PutObject", "DELETE": "DeleteObject", "HEAD": "HeadObject"}
S3_BUCKET = {"GET": "ListObjectsV2", "PUT": "CreateBucket", "DELETE": "DeleteBucket", "HEAD": "HeadBucket"}
TICK_S = 0.1
PROVIDER_WAITS_S = 0.05
"""How much later than at once Terraform's provider is answered: see decision 218."""


class Dropped(ConnectionError):
    """The caller gets no reply: werkzeug takes it for a peer that went away."""


def call_of(environ: Environ) -> Call:
    """Names the call. The body of a form is read and put back."""
    scope = re.search(r"Credential=[^/]+/\d+/([\w-]+)/([\w-]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    region, service = (scope[1], scope[2]) if scope else ("", "")
    target = environ.get("HTTP_X_AMZ_TARGET")
    if target:
        return Call(target.rpartition(".")[2], service, "json", region, {})
    if environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        params = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
        protocol: Protocol = "ec2" if service == "ec2" else "query"
        return Call(params.get("Action", "?"), service, protocol, region, params)
    names = S3_OBJECT if "/" in environ["PATH_INFO"].strip("/") else S3_BUCKET
    return Call(names.get(environ["REQUEST_METHOD"], "?"), service or "s3", "s3", region, {})


class App:
    """The WSGI application. One lock round moto, which is not safe for threads; slow faults wait outside of it."""

    def __init__(self, world: World, hosts: Hosts) -> None:
        self.world = world
        self.veil = Veil()
        self.calls: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self._control = Control(world, hosts, self.calls, self.errors)
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/_region/"):
            status, headers, body = self._control.reply(environ)
        else:
            status, headers, body = self._aws(environ)
            if "Terraform/" in environ.get("HTTP_USER_AGENT", ""):
                time.sleep(PROVIDER_WAITS_S)
        headers = {k: v for k, v in headers.items() if k.lower() != "connection"}
        if environ["REQUEST_METHOD"] != "HEAD":  # there it is the length of what a GET would have
            headers = {k: v for k, v in headers.items() if k.lower() != "content-length"}
            headers["Content-Length"] = str(len(body))
        start_response(f"{status} {'OK' if status < 400 else 'Error'}", list(headers.items()))
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    def _aws(self, environ: Environ) -> Reply:
        call, faults = call_of(environ), self.world.faults
        with self.world.life.lock:
            self.calls[call.name] += 1
            slow = faults.strike("slow", call=call.name)
        if slow:
            time.sleep(slow.seconds)
        with self.world.life.lock:
            self.world.life.settle()
            try:
                self.world.rights.check(call, environ)
                faults.refuse(call)
                reply = self._dispatch(call, environ)
            except Refused as refused:
                reply = error_reply(call, refused)
            except NotImplementedError as missing:
                reply = error_reply(call, Refused("InvalidAction", f"The emulated region lacks this: {missing}"))
            if reply[0] >= 400:
                self.errors[f"{call.name}: {error_code(reply)}"] += 1
            lost = reply[0] < 400 and faults.strike("lost_reply", call=call.name)
        if lost:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise Dropped
        return reply

    def _dispatch(self, call: Call, environ: Environ) -> Reply:
        if call.describes:
            self.veil.refuse(call)
        chunks, status, found = run_wsgi_app(self._moto, environ, buffered=True)
        body = b"".join(chunks)
        headers = dict(found.items())
        if call.protocol == "ec2":
            new = self.veil.births(body)
            hiding = new and not call.describes and self.world.faults.strike("hidden", call=call.name)
            if hiding:
                self.veil.hide(new, hiding.seconds)
            if call.describes:
                body = self.veil.thin(call, body)
        return int(status.split()[0]), headers, body


def error_code(reply: Reply) -> str:
    found = ERROR_CODE.search(reply[2])
    return (found[1] or found[2]).decode() if found else str(reply[0])


class Handler(MotoRequestHandler):
    """Quiet, and without a traceback for a reply that was dropped on purpose. An answer is sent in one piece."""

    wbufsize = 1 << 20

    def log(self, type: str, message: str, *args: Any) -> None: ...  # noqa: A002


@dataclass
class Server:
    """A running region. `close` ends it and gives moto back; the hosts are their maker's to end."""

    url: str
    world: World
    _web: BaseWSGIServer
    _threads: list[threading.Thread]
    _over: threading.Event

    def close(self) -> None:
        self._over.set()
        self._web.shutdown()
        for thread in self._threads:
            thread.join(timeout=60)
        self._web.server_close()
        self.world.close()


def serve(address: str, port: int, hosts: Hosts, pace: Pace | None = None) -> Server:
    """Serves the region at once, in threads of this process. Port 0 takes a free one."""
    world = open_world(hosts, pace or Pace())
    try:
        web = make_server(address, port, App(world, hosts), threaded=True, request_handler=Handler)
    except (OSError, SystemExit):
        world.close()
        raise
    over = threading.Event()

    def answer() -> None:
        web.serve_forever(poll_interval=0.05)

    def tick() -> None:
        while not over.wait(TICK_S):
            with world.life.lock:
                world.life.settle()

    threads = [threading.Thread(target=run, daemon=True) for run in (answer, tick)]
    for thread in threads:
        thread.start()
    return Server(f"http://{address}:{web.server_port}", world, web, threads, over)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the emulated region's API, without hosts.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--address", default="127.0.0.1")
    asked = parser.parse_args()
    server = serve(asked.address, asked.port, NoHosts())
    print(server.url, flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    server.close()


if __name__ == "__main__":
    main()
