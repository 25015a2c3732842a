"""Hands an environment that one node has to others over their own network, so that wheels come into a cluster once.

    offer     stdin {"env", "address", "takers", "limit_s"}       stdout {"port", "sha256", "bytes", "tokens"}; goes on
                                                                  unseen until every token was used
    take      stdin {"env", "address", "offer", "place"}          stdout {"changed": bool}. What is larger than an
              "limit_s", "most_bytes", "go_on"                    environment has limits of its own, and goes on where
                                                                  an earlier try was cut off

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
SILENCE_S, CONNECT_S = 60.0, 10.0
FIRST_S = 120.0
"""An offer that nobody has come for by then ends: a firewall is between the nodes."""
ABOUT = ".list"
"""In what has come in part: the digest of the list that it is of."""
TAKE_S = 900.0
GUESTS = 128
CHUNK = 1 << 20
LIST_BYTES = 256 << 20
ENTRIES = 1_000_000
TOTAL_BYTES = 64 << 30
SPARE_BYTES = 1 << 30


class Refused(Exception):
    """What was told or sent is not what a node of ours tells or sends."""


class CutOff(Refused):
    """What was sent is right as far as it came."""


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
            with contextlib.suppress(OSError, ValueError):
                said = self.request.makefile("rb")
                token = said.readline(100).decode(errors="replace").strip()
                with lock:
                    if token not in tokens:
                        return
                    tokens.remove(token)
                try:
                    self.request.sendall(text)
                    skip = int(said.readline(30) or 0)
                    for _, name, size, _sha256 in (entry for entry in entries if entry[0] in "fx"):
                        with open(os.path.join(env, name), "rb") as file:
                            if size > skip:
                                self.request.sendfile(file, skip)
                        skip = max(0, skip - size)
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
    if over.wait(min(limit_s, FIRST_S)) or len(tokens) < takers:
        over.wait(max(0.0, limit_s - FIRST_S))
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
        odd = {"", ".", ".."} & set(whole) or "\0" in name or name in (MARK, ABOUT)
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


def fetch(part: str, peer: socket.socket, sha256: str, size: int, limit_s: float, most_bytes: int) -> None:
    """The environment in the folder `part`, from the list and the files that `peer` sends; what an earlier try has left
    there is gone on with. Raises Refused."""
    with peer.makefile("rb") as source:
        text = source.read(size)
        if hashlib.sha256(text).hexdigest() != sha256:
            raise Refused("it is not what the controller was told")
        entries = checked(json.loads(text), most_bytes)
        have = begun(part, sha256, [entry for entry in entries if entry[0] in "fx"])
        needed = sum(entry[2] for entry in entries if entry[0] in "fx") - have
        if needed + SPARE_BYTES > shutil.disk_usage(part).free:
            raise Refused(f"there is no room for {needed >> 20} MiB")
        peer.sendall(b"%d\n" % have)
        until = time.monotonic() + limit_s
        for kind, name, *more in entries:
            path = os.path.join(part, name)
            if kind == "d":
                os.makedirs(path, 0o700, exist_ok=True)
            elif kind == "l":
                if not os.path.islink(path):
                    os.symlink(more[0], path)
            elif not have or have < more[0] or not os.path.exists(path):
                digest = receive(source, path, 0o700 if kind == "x" else 0o600, more[0], min(have, more[0]), until)
                if digest != more[1]:
                    raise Refused(f"{name} is not what it was when it was offered")
                have = max(0, have - more[0])
            else:
                have -= more[0]
    os.unlink(os.path.join(part, ABOUT))


def begun(part: str, sha256: str, files: list[list[Any]]) -> int:
    """Bytes of the files, one after the other, that an earlier try has brought: whole ones as the list names them, then
    a part of the next. What is of another list goes."""
    about = os.path.join(part, ABOUT)
    with contextlib.suppress(OSError), open(about, encoding="ascii") as file:
        if file.read() == sha256:
            return sum(come(part, files))
    shutil.rmtree(part, ignore_errors=True)
    os.mkdir(part, 0o700)
    with open(about, "x", encoding="ascii") as made:
        made.write(sha256)
    return 0


def come(part: str, files: list[list[Any]]) -> Iterator[int]:
    for _, name, size, sha256 in files:
        path = os.path.join(part, name)
        there = os.path.getsize(path) if os.path.isfile(path) and not os.path.islink(path) else -1
        if there == size:
            with open(path, "rb") as file:
                digest = hashlib.sha256()
                for data in iter(lambda: file.read(CHUNK), b""):
                    digest.update(data)
            if digest.hexdigest() == sha256:
                yield size
                continue
        if 0 < there < size:
            yield there
        elif there >= size:
            os.unlink(path)
        return


def receive(source: BinaryIO, path: str, mode: int, size: int, have: int, until: float) -> str:
    """SHA-256 of a file of this size, of which `have` bytes are there and the rest comes. Raises Refused."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | (0 if have else os.O_TRUNC) | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "r+b") as into:
        digest = hashlib.sha256()
        for data in iter(lambda: into.read(CHUNK), b""):
            digest.update(data)
        while have < size:
            data = source.read1(min(size - have, CHUNK))  # type: ignore[attr-defined]
            if not data or time.monotonic() > until:
                raise CutOff("it ended early")
            digest.update(data)
            into.write(data)
            have += len(data)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(env: str) -> Iterator[None]:
    """The lock is the one of a build."""
    with os.fdopen(os.open(env + ".lock", os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def take(
    env: str, address: str, offer: str, place: int, limit_s: float = TAKE_S, most_bytes: int = TOTAL_BYTES,
    go_on: bool = False,
) -> bool:  # fmt: skip
    """Whether it was fetched; it may be there by now. `address` is where the controller knows the other node to be.
    With `go_on` what an earlier try left is gone on with, and what is cut off stays for the next."""
    part, keep = env + ".taken", False
    port, sha256, size, token = understood(offer, place)
    os.makedirs(os.path.dirname(env), mode=0o700, exist_ok=True)
    with locked(env):
        if os.path.exists(os.path.join(env, MARK)):
            return False
        if not go_on:
            shutil.rmtree(part, ignore_errors=True)
        try:
            with socket.create_connection((address, port), CONNECT_S) as peer:
                peer.settimeout(SILENCE_S)
                peer.sendall(token.encode() + b"\n")
                fetch(part, peer, sha256, size, limit_s, max(most_bytes, TOTAL_BYTES))
            open(os.path.join(part, MARK), "x").close()
            shutil.rmtree(env, ignore_errors=True)
            os.rename(part, env)
        except (CutOff, OSError):
            keep = go_on
            raise
        finally:
            if not keep:
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
