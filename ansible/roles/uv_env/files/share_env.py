"""Hands an environment that one node has to others over their own network, so that wheels come into a cluster once.

    offer     stdin {"env", "address", "takers", "limit_s"}       stdout {"port", "sha256", "bytes", "tokens"}; goes on
                                                                  unseen until every token was used
    take      stdin {"env", "address", "offer", "place"}          stdout {"changed": bool}. What is larger than an
              "limit_s", "most_bytes"                             environment has limits of its own

What is sent is a list of every file with its SHA-256, then the files. The list's own digest (`sha256`) and length come
to a taker from the controller, over ssh, and so does the address: who answers there with anything else gives nothing.
There is no mode, owner, device or hard link in the list, so none can be made. A virtual environment lies at the same
path on both nodes and is renamed into place whole. Standard library only, Python 3.9+.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

MARK = ".complete"
SILENCE_S = 60.0
TAKE_S = 900.0
GUESTS = 128
CHUNK = 1 << 20
LIST_BYTES = 256 << 20
ENTRIES = 1_000_000
TOTAL_BYTES = 64 << 30
SPARE_BYTES = 1 << 30


class Refused(Exception):
    """What was told or sent is not what a node of ours tells or sends."""


def listed(env: str) -> list[list[Any]]:
    """What is below `env`, parents first: [d, name], [l, name, target], [f or x, name, bytes, SHA-256]. An x can be
    executed. The mark is the taker's own to make."""
    entries: list[list[Any]] = []
    for folder, names, files in os.walk(env):
        names.sort()
        for name in sorted(names + files):
            path = os.path.join(folder, name)
            short = os.path.relpath(path, env)
            if os.path.islink(path):
                entries.append(["l", short, os.readlink(path)])
            elif os.path.isdir(path):
                entries.append(["d", short])
            elif os.path.isfile(path) and short != MARK:
                with open(path, "rb") as file:
                    mode, digest = os.fstat(file.fileno()).st_mode, hashlib.sha256()
                    size = sum(digest.update(part) or len(part) for part in iter(lambda: file.read(CHUNK), b""))
                entries.append(["x" if mode & 0o100 else "f", short, size, digest.hexdigest()])
    return entries


def offer(env: str, address: str, takers: int, limit_s: float) -> None:
    """Answers at once. The address is this node's on the inner network; each token is one taker's, for one try."""
    entries = listed(env)
    text = json.dumps(entries).encode()
    tokens = {secrets.token_hex(24) for _ in range(takers)}
    told = {"sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text), "tokens": sorted(tokens)}
    lock, done, over = threading.Lock(), threading.Semaphore(0), threading.Event()

    class Guest(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(SILENCE_S)
            with contextlib.suppress(OSError):
                token = self.request.makefile("rb").readline(100).decode(errors="replace").strip()
                with lock:
                    if token not in tokens:
                        return
                    tokens.remove(token)
                try:
                    self.request.sendall(text)
                    for _, name, *_more in (entry for entry in entries if entry[0] in "fx"):
                        with open(os.path.join(env, name), "rb") as file:
                            self.request.sendfile(file)
                finally:
                    done.release()

    class Server(socketserver.ThreadingTCPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        daemon_threads = True

        def verify_request(self, *_: Any) -> bool:
            return threading.active_count() < GUESTS

        def handle_error(self, *_: Any) -> None: ...

    server = Server((address, 0), Guest)
    print(json.dumps({**told, "port": server.server_address[1]}), flush=True)
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


def understood(told: str, place: int) -> tuple[int, str, int, str]:
    """Port, digest and length of the list, and the token, from the words of the node that offers."""
    with contextlib.suppress(ValueError, TypeError, KeyError, IndexError, RecursionError):
        said = json.loads(told)
        port, sha256, size, token = said["port"], said["sha256"], said["bytes"], said["tokens"][place]
        if type(port) is int and 0 < port < 65536 and type(size) is int and 0 < size <= LIST_BYTES:
            if re.fullmatch("[0-9a-f]{64}", sha256) and re.fullmatch("[0-9a-f]{48}", token):
                return port, sha256, size, token
    raise Refused("what the other node offers is no offer")


def checked(entries: Any, most_bytes: int = TOTAL_BYTES) -> list[list[Any]]:
    """The list, if nothing in it leads out of the folder that it is made in. Raises Refused."""
    if not isinstance(entries, list) or len(entries) > ENTRIES:
        raise Refused("it is no list of files")
    seen, folders, total = set(), {""}, 0
    for entry in entries:
        if not (isinstance(entry, list) and len(entry) > 1 and all(isinstance(word, str) for word in entry[:2])):
            raise Refused("a line of the list is none")
        kind, name, more = entry[0], entry[1], entry[2:]
        whole = name.split("/")
        odd = {"", ".", ".."} & set(whole) or "\0" in name or name == MARK
        if odd or name in seen or os.path.dirname(name) not in folders:
            raise Refused(f"it has a file named {name[:100]!r}")
        seen.add(name)
        if kind == "d" and not more:
            folders.add(name)
        elif kind == "l" and len(more) == 1 and isinstance(more[0], str):
            if not stays_inside(name, more[0]):
                raise Refused(f"{name[:100]} leads to {more[0][:100]!r}")
        elif kind in ("f", "x") and len(more) == 2 and type(more[0]) is int and more[0] >= 0:
            total += more[0]
        else:
            raise Refused(f"{name[:100]!r} is neither a file nor a folder nor a link")
    if total > most_bytes:
        raise Refused("it is larger than what was to come")
    return entries


def stays_inside(name: str, target: str) -> bool:
    """Whether a link leads to the same environment; the only way out is to the very interpreter that runs this."""
    if target.startswith("/"):
        return os.path.dirname(name) == "bin" and os.path.realpath(target) == os.path.realpath(sys.executable)
    words = target.split("/")
    up = next((place for place, word in enumerate(words) if word != ".."), len(words))
    return target != "" and "\0" not in target and ".." not in words[up:] and up <= name.count("/")


def fetch(part: str, source: BinaryIO, sha256: str, size: int, limit_s: float, most_bytes: int) -> None:
    """The environment in the new folder `part`, from the list and the files that `source` holds. Raises Refused."""
    text = source.read(size)
    if hashlib.sha256(text).hexdigest() != sha256:
        raise Refused("it is not what the controller was told")
    entries = checked(json.loads(text), most_bytes)
    needed = sum(entry[2] for entry in entries if entry[0] in "fx")
    os.mkdir(part, 0o700)
    if needed + SPARE_BYTES > shutil.disk_usage(part).free:
        raise Refused(f"there is no room for {needed >> 20} MiB")
    until = time.monotonic() + limit_s
    for kind, name, *more in entries:
        path = os.path.join(part, name)
        if kind == "d":
            os.mkdir(path, 0o700)
        elif kind == "l":
            os.symlink(more[0], path)
        else:
            mode = 0o700 if kind == "x" else 0o600
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
            with os.fdopen(descriptor, "wb") as file:
                if copied(source, file, more[0], until) != more[1]:
                    raise Refused(f"{name} is not what it was when it was offered")


def copied(source: BinaryIO, file: BinaryIO, size: int, until: float) -> str:
    """SHA-256 of the `size` bytes that went from one to the other."""
    digest = hashlib.sha256()
    while size:
        data = source.read(min(size, CHUNK))
        if not data or time.monotonic() > until:
            raise Refused("it ended early")
        digest.update(data)
        file.write(data)
        size -= len(data)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(env: str) -> Iterator[None]:
    """The lock is the one of a build."""
    with os.fdopen(os.open(env + ".lock", os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def take(
    env: str, address: str, offer: str, place: int, limit_s: float = TAKE_S, most_bytes: int = TOTAL_BYTES
) -> bool:
    """Whether it was fetched; it may be there by now. `address` is where the controller knows the other node to be."""
    part = env + ".taken"
    port, sha256, size, token = understood(offer, place)
    os.makedirs(os.path.dirname(env), mode=0o700, exist_ok=True)
    with locked(env):
        if os.path.exists(os.path.join(env, MARK)):
            return False
        shutil.rmtree(part, ignore_errors=True)
        try:
            with socket.create_connection((address, port), SILENCE_S) as peer:
                peer.sendall(token.encode() + b"\n")
                with peer.makefile("rb") as source:
                    fetch(part, source, sha256, size, limit_s, max(most_bytes, TOTAL_BYTES))
            open(os.path.join(part, MARK), "x").close()
            shutil.rmtree(env, ignore_errors=True)
            os.rename(part, env)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return True


def main(act: str, message: dict[str, Any]) -> None:
    os.umask(0o077)
    if act == "offer":
        offer(**message)
        return
    try:
        print(json.dumps({"changed": take(**message)}))
    except (OSError, ValueError, TypeError, RecursionError, Refused) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1], json.load(sys.stdin))
