"""Hands an environment that one node has to others over their own network, so that wheels come into a cluster once.

    offer     stdin {"env", "address", "takers", "limit_s"}   stdout {"url"}; goes on unseen until all have it
    take      stdin {"env", "url"}                            stdout {"changed": bool}

A virtual environment lies at the same path on both. It is sent as one tar with `.complete` at its end, and renamed into
place whole. Standard library only, Python 3.9+.
"""

from __future__ import annotations

import fcntl
import hmac
import http.server
import json
import os
import secrets
import shutil
import sys
import tarfile
import threading
import urllib.request
from typing import Any

MARK = ".complete"
SILENCE_S = 60.0


def offer(env: str, address: str, takers: int, limit_s: float) -> None:
    """Answers at once. The address is this node's on the inner network, the path a secret of this one hand-over."""
    token, done, over = "/" + secrets.token_urlsafe(24), threading.Semaphore(0), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = SILENCE_S

        def do_GET(self) -> None:
            if not hmac.compare_digest(self.path.encode(), token.encode()):
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            with tarfile.open(fileobj=self.wfile, mode="w|") as tar:
                tar.add(env, ".", filter=lambda entry: None if entry.name == "./" + MARK else entry)
                tar.add(os.path.join(env, MARK), "./" + MARK)
            done.release()

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer((address, 0), Handler)
    print(json.dumps({"url": f"http://{address}:{server.server_address[1]}{token}"}), flush=True)
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Thread(target=lambda: ([done.acquire() for _ in range(takers)], over.set()), daemon=True).start()
    over.wait(limit_s)
    os._exit(0)


def take(env: str, url: str) -> bool:
    """Whether it was fetched; it may be there by now. The lock is the one of a build."""
    part = env + ".taken"
    os.makedirs(os.path.dirname(env), mode=0o700, exist_ok=True)
    with open(env + ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(os.path.join(env, MARK)):
            return False
        shutil.rmtree(part, ignore_errors=True)
        more: dict[str, Any] = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(url, timeout=SILENCE_S) as answer, tarfile.open(fileobj=answer, mode="r|") as tar:
            tar.extractall(part, **more)  # noqa: S202  (of a node of ours, by a path that only it was told)
        if not os.path.exists(os.path.join(part, MARK)):
            raise OSError("it ended early")
        shutil.rmtree(env, ignore_errors=True)
        os.rename(part, env)
    return True


def main(act: str, message: dict[str, Any]) -> None:
    if act == "offer":
        offer(**message)
    else:
        try:
            print(json.dumps({"changed": take(**message)}))
        except (OSError, tarfile.TarError) as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1], json.load(sys.stdin))
