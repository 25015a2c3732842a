"""Webhooks on this machine, good and bad: each path of the server behaves as it is called. A proxy for the way there,
and certificates of a test's own."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

BIG_BYTES = 10_000_000


class Server(ThreadingHTTPServer):
    """`got` has (path, message) of each request, in the order of their arrival."""

    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.scheme = "https" if tls else "http"
        self.got: list[tuple[str, dict[str, Any]]] = []
        self.over = threading.Event()
        self.fail = 0
        """So many requests to /flaky are refused."""

    def url(self, path: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/{path}"

    def count(self, path: str) -> int:
        return sum(one == f"/{path}" for one, _ in self.got)

    def wait(self, path: str, count: int = 1, seconds: float = 30.0) -> list[dict[str, Any]]:
        """The messages to a path, once there are so many."""
        until = time.monotonic() + seconds
        while self.count(path) < count and time.monotonic() < until:
            time.sleep(0.02)
        return [message for one, message in self.got if one == f"/{path}"]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None: ...

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # a caller that does not take our certificate
            super().handle()

    def do_GET(self) -> None:  # where a redirect would lead
        self.server.got.append((self.path, {}))
        self._say(200)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, json.loads(data)))
        kind = self.path.strip("/").split("/")[0]
        if kind == "hang":
            self.server.over.wait(60)
        elif kind == "trickle":
            for _ in range(600):  # a status line without an end
                if self.server.over.wait(0.1):
                    break
                self.wfile.write(b"H")
        elif kind == "redirect":
            self.send_response(307)
            self.send_header("Location", self.server.url("elsewhere"))
            self.end_headers()
        elif kind == "busy":
            self.send_response(429)
            self.send_header("Retry-After", self.path.rpartition("/")[2].replace("_", " "))
            self.end_headers()
        elif kind == "echo":
            self.send_response(404)
            self.end_headers()
            self.wfile.write(f"no such hook: {self.path}, {self.path.rpartition('=')[2]}".encode())
        elif kind == "big":
            with contextlib.suppress(OSError):
                self.send_response(500)
                self.end_headers()
                for _ in range(BIG_BYTES // 10_000):
                    self.wfile.write(b"x" * 10_000)
        elif kind == "flaky":
            self.server.fail -= 1
            self._say(503 if self.server.fail >= 0 else 200)
        else:
            self._say({"500": 500, "gone": 404}.get(kind, 200))

    def _say(self, code: int) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(b"no_service token=abcdefgh1234" if code >= 400 else b"ok")


class Proxy(ThreadingHTTPServer):
    """Leads everybody to one server, whatever host was asked for. `asked` has (method, target, what authorizes)."""

    daemon_threads = True

    def __init__(self, to: Server | None, refuse: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Tunnel)
        self.to, self.refuse = to, refuse
        self.asked: list[tuple[str, str, str | None]] = []
        self.over = threading.Event()

    def url(self, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.server_address[1]}"


class Tunnel(BaseHTTPRequestHandler):
    server: Proxy

    def log_message(self, *_: Any) -> None: ...

    def do_CONNECT(self) -> None:
        self._note()
        if self.server.refuse:
            self.send_response(self.server.refuse)
            self.end_headers()
        elif self.server.to is None:  # never a whole answer
            for _ in range(600):
                if self.server.over.wait(0.05):
                    break
                self.wfile.write(b"H")
        else:
            with socket.create_connection(self.server.to.server_address[:2]) as there:  # type: ignore[arg-type]
                self.send_response(200)
                self.end_headers()
                back = threading.Thread(target=self._copy, args=(there, self.connection), daemon=True)
                back.start()
                self._copy(self.connection, there)
                back.join(10)

    def do_POST(self) -> None:
        self._note()
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.server.refuse or 200)
        self.end_headers()

    def _note(self) -> None:
        self.server.asked.append((self.command, self.path, self.headers.get("Proxy-Authorization")))

    @staticmethod
    def _copy(source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)


def certificates(folder: Path, *hosts: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate authority in a file, and a server's context with a certificate of it for these hosts."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("test CA", hosts[0])]
    alternatives = [x509.IPAddress(ipaddress.ip_address(h)) if h[0].isdigit() else x509.DNSName(h) for h in hosts]
    made = []
    for at, extension in enumerate(
        (x509.BasicConstraints(ca=True, path_length=0), x509.SubjectAlternativeName(alternatives))
    ):
        begun = x509.CertificateBuilder(names[0], names[at], keys[at].public_key(), x509.random_serial_number())
        begun = begun.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(1))
        made.append(begun.add_extension(extension, critical=at == 0).sign(keys[0], hashes.SHA256()))
    authority, own = folder / "ca.pem", folder / "server.pem"
    authority.write_bytes(made[0].public_bytes(Encoding.PEM))
    key = keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    own.write_bytes(key + made[1].public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    return authority, context


@contextlib.contextmanager
def proxying(to: Server | None, refuse: int = 0) -> Iterator[Proxy]:
    with Proxy(to, refuse) as made:
        yield from _while_serving(made)


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    with Server(tls) as made:
        yield from _while_serving(made)


def _while_serving(server: Any) -> Iterator[Any]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join(5)
