"""The instance metadata service of a spot machine that is given notice after 12 s; for capture.py."""

from __future__ import annotations

import http.server
import json
import time
from typing import Any

BEGAN = time.monotonic()


class Metadata(http.server.BaseHTTPRequestHandler):
    def answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self.answer(200, b"token")

    def do_GET(self) -> None:
        if time.monotonic() < BEGAN + 12 or not self.path.endswith("/spot/instance-action"):
            self.answer(404, b"")
            return
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 120))
        self.answer(200, json.dumps({"action": "terminate", "time": at}).encode())

    def log_message(self, *_: Any) -> None:
        """Nothing: nobody reads it."""


if __name__ == "__main__":
    http.server.HTTPServer(("169.254.169.254", 80), Metadata).serve_forever()
