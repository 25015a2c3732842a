"""Data of runs on one node: what is there, what is lacking, and its way there, whole or not at all.

    <folder>/<id>/          whole: content.json names every file of files/ with its SHA-256; `.complete` was made last
    <folder>/<id>.part/     what has come so far: under its own name a file is whole, before that it is <sha256>.partial
    <folder>/<id>.lock      held by whoever brings it

The controller runs `main` over ssh (run/ssh/program.py). All files of whole data have one time of change, so that one
look finds which were written to. Data that no agent of a run has touched for a while goes when the disk is needed, the
oldest first. Standard library only, Python 3.9+.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, Callable

MARK, ABOUT, FILES = ".complete", "content.json", "files"
SETTLED = 946_684_800
"""Time of change of every file of whole data, in unix seconds."""
CHUNK = 1 << 20
SPARE_BYTES = 1 << 30
IN_USE_S = 600.0
"""The agent of a run touches its data every 10 s, and a launch what it is about to use."""
ENDED_S = 30.0
"""Seconds after which an agent that did not touch its data is no longer alive."""
LOCK_S = 30.0
PROGRESS_S = 2.0
PR_SET_PDEATHSIG = 1

Entry = list[Any]
"""Name, bytes, SHA-256; in a listing of S3 the ETag in place of that."""
Say = Callable[..., None]


class Refused(Exception):
    """Why it cannot be done, in words for the user."""


class Progress:
    """Tells of bytes as they come, now and then."""

    def __init__(self, say: Say, what: str) -> None:
        self.say, self.what, self.bytes, self.last = say, what, 0, time.monotonic()

    def add(self, count: int) -> None:
        self.bytes += count
        if time.monotonic() - self.last > PROGRESS_S:
            self.last = time.monotonic()
            self.say(say={"what": self.what, "bytes": self.bytes})


def main(message: dict[str, Any], say: Say, source: BinaryIO | None = None) -> dict[str, Any]:
    """Do one of the acts below. `source` is what the controller feeds."""
    store = Store(message["folder"], say, message["keep"])
    if message["act"] == "look":
        return store.look(message["ids"])
    if message["act"] == "settle":
        return store.settle(message["id"])
    if message["act"] == "room":
        return store.room(message["id"], message["bytes"])
    if message["act"] == "take":
        assert source is not None
        return store.take(message, source)
    bucket = Bucket(message["url"], message["env"])
    return bucket.told(message["region"]) if message["act"] == "list" else store.fetch(message, bucket)


class Store:
    """The folder that holds all data of a node. What is to be kept is of the run that is launched."""

    def __init__(self, folder: str, say: Say, keep: list[str]) -> None:
        self.folder, self.say, self.keep = folder, say, keep

    def place(self, ident: str) -> str:
        return os.path.join(self.folder, ident)

    def look(self, ids: list[str]) -> dict[str, Any]:
        """{"whole": {id: what is known of it}, "part": {id: bytes that have come}}. What is whole is in use now. What
        somebody wrote to is taken apart, so that only that comes again."""
        whole, part = {}, {}
        for ident in ids:
            if self.check(ident):
                whole[ident] = known_of(read_about(self.place(ident)))
                os.utime(self.place(ident))
            elif os.path.isdir(self.place(ident) + ".part"):
                part[ident] = size_of(self.place(ident) + ".part")
        return {"whole": whole, "part": part}

    def check(self, ident: str) -> bool:
        """Check that data is there as it was brought. A file whose time of change is another one is read through."""
        place = self.place(ident)
        about = self.there(ident)
        if not about:
            return False
        damaged = []
        progress = Progress(self.say, "checked")
        for name, size, sha256 in about["files"]:
            path = seen_in(place, name)
            if settled(path, size):
                continue
            if plain_size(path) == size and digest_of(path, progress) == sha256:
                settle(path)
            else:
                damaged.append(path)
        if damaged:
            until = time.monotonic() + ENDED_S
            while ident in named() or self.touched(ident, ENDED_S):
                if ident in named() or time.monotonic() > until:
                    raise Refused("%s was written to, and a run uses it: stop that run first" % damaged[0])
                time.sleep(1)
            with self.locked(ident):
                if not self.there(ident):  # another command was here, on a disk that nodes share
                    return False
                os.unlink(os.path.join(place, MARK))
                for path in damaged:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
                shutil.rmtree(place + ".part", ignore_errors=True)
                os.rename(place, place + ".part")
        return not damaged

    def settle(self, ident: str) -> dict[str, Any]:
        """Data that another node has handed on is as it was verified on its way."""
        for left in (".part", ".taken"):
            shutil.rmtree(self.place(ident) + left, ignore_errors=True)
        for name, *_ in read_about(self.place(ident))["files"]:
            settle(seen_in(self.place(ident), name))
        return {}

    @contextlib.contextmanager
    def locked(self, ident: str) -> Iterator[None]:
        """Lock the data: one command at a time brings it, of whichever nexa."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        until = time.monotonic() + LOCK_S
        with os.fdopen(os.open(self.place(ident) + ".lock", os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise Refused("another command is bringing the same data: wait for it to end") from None
                    time.sleep(0.2)
            yield

    def room(self, ident: str, needed: int) -> dict[str, Any]:
        """Makes room for so many bytes: what no run has used for longest goes first."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        gone = []
        while shutil.disk_usage(self.folder).free < needed + SPARE_BYTES:
            oldest = min(self.unused(ident), key=lambda name: os.lstat(self.place(name)).st_mtime, default="")
            if not oldest:
                free, used = shutil.disk_usage(self.folder).free, size_of(self.folder)
                raise Refused(
                    "there is no room for %s on the disk of %s: %s are free, of which %s stay so; data that is in use "
                    "or has come in part holds %s there"
                    % (human(needed), self.folder, human(free), human(SPARE_BYTES), human(used))
                )
            going = self.place(oldest) + ".%d.gone" % time.time_ns()
            os.rename(self.place(oldest), going)
            shutil.rmtree(going, ignore_errors=True)
            gone.append(oldest)
            self.say(say={"removed": oldest})
        return {"removed": gone}

    def unused(self, but: str) -> list[str]:
        """Names of folders that may go: of data, whole or in part, that nobody uses or brings."""
        found = []
        for name in os.listdir(self.folder):
            ident = name.split(".")[0]
            ours = re.fullmatch("[0-9a-f]{64}", ident)  # others have folders here too
            if ours and ident != but and os.path.isdir(self.place(name)) and not self.in_use(ident):
                found.append(name)
        return found

    def in_use(self, ident: str) -> bool:
        """Tell whether an agent of a run has touched it of late, or a command brings it."""
        if ident in self.keep or self.touched(ident, IN_USE_S):
            return True
        with contextlib.suppress(FileNotFoundError), open(self.place(ident) + ".lock", "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return ident in named()

    def touched(self, ident: str, seconds: float) -> bool:
        with contextlib.suppress(OSError):
            return os.lstat(self.place(ident)).st_mtime > time.time() - seconds
        return False

    def take(self, message: dict[str, Any], source: BinaryIO) -> dict[str, Any]:
        """Data that the controller sends: it is told which files are lacking, and feeds these, one after the other."""
        ident, files = message["id"], message["files"]
        place, part = self.place(ident), self.place(ident) + ".part"
        with self.locked(ident):
            about = self.there(ident)  # by somebody else, while we waited for the lock
            if about:
                return known_of(about)
            lacking = [n for n, (name, size, _) in enumerate(files) if plain_size(seen_in(part, name)) != size]
            self.room(ident, sum(files[n][1] for n in lacking))
            os.makedirs(os.path.join(part, FILES), mode=0o700, exist_ok=True)
            progress = Progress(self.say, "taken from other data there")
            known = self.known({(files[n][1], files[n][2]) for n in lacking})
            lacking = [
                n for n in lacking if not copied(known.get((files[n][1], files[n][2])), part, files[n], progress)
            ]
            at = max(0, plain_size(partial(part, files[lacking[0]][2]))) if lacking else 0
            self.say(say={"lacks": bits(lacking, len(files)), "at": at})
            progress = Progress(self.say, "got")
            for number in lacking:
                receive(source, part, files[number], progress)
            self.finish(place, files, ident)
            return known_of(read_about(place))

    def there(self, ident: str) -> dict[str, Any]:
        """Contents of whole data by its content.json, else nothing."""
        marked = os.path.exists(os.path.join(self.place(ident), MARK))
        return read_about(self.place(ident)) if marked else {}

    def known(self, wanted: set[tuple[int, str]]) -> dict[tuple[int, str], str]:
        """Files of other data here, by bytes and SHA-256."""
        found: dict[tuple[int, str], str] = {}
        for ident in os.listdir(self.folder) if wanted else []:
            for name, size, sha256 in self.there(ident).get("files", []):
                path = seen_in(self.place(ident), name)
                if (size, sha256) in wanted and settled(path, size):
                    found[size, sha256] = path
        return found

    def fetch(self, message: dict[str, Any], bucket: Bucket) -> dict[str, Any]:
        """Data of a bucket, as it was listed. Answers what is now known of it."""
        ident = message["id"]
        place, part = self.place(ident), self.place(ident) + ".part"
        with self.locked(ident):
            if not self.there(ident):
                files = os.path.join(part, FILES)
                os.makedirs(files, mode=0o700, exist_ok=True)
                self.room(ident, message["bytes"] - size_of(files))
                bucket.download(files, message["single"], self.say)
                rows, _ = bucket.listed()
                if digest(rows) != ident:
                    shutil.rmtree(part, ignore_errors=True)
                    raise Refused(
                        "%s changed while it was fetched: run the command again when it is at rest" % bucket.url
                    )
                entries = self.verified(files, rows, bucket)
                self.finish(place, entries, digest(entries))
            return known_of(read_about(place))

    def verified(self, folder: str, rows: list[Entry], bucket: Bucket) -> list[Entry]:
        """The SHA-256 of each file that came. What is not of the listing is removed."""
        wanted = {name: size for name, size, _ in rows}
        for base, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(base, name)
                if os.path.relpath(path, folder) not in wanted:
                    os.unlink(path)
        progress, entries = Progress(self.say, "checked"), []
        for name, size in wanted.items():
            path = os.path.join(folder, name)
            if plain_size(path) != size:
                raise Refused("%s/%s did not come whole: run the command again" % (bucket.url, name))
            entries.append([name, size, digest_of(path, progress)])
        return entries

    def finish(self, place: str, files: list[Entry], sha256: str) -> None:
        """Puts what has come under its own name."""
        part = place + ".part"
        for name, *_ in files:
            settle(seen_in(part, name))
        about = {"sha256": sha256, "bytes": sum(size for _, size, _ in files), "files": files}
        with open(os.path.join(part, ABOUT), "w", encoding="utf-8") as file:
            json.dump(about, file)
        for name in os.listdir(part):
            if name.endswith(".partial"):
                os.unlink(os.path.join(part, name))
        with open(os.path.join(part, MARK), "w"):
            pass
        os.sync()
        for gone in (place, place + ".taken"):
            shutil.rmtree(gone, ignore_errors=True)
        os.rename(part, place)


def read_about(place: str) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError), open(os.path.join(place, ABOUT), encoding="utf-8") as file:
        return dict(json.load(file))
    return {}


def known_of(about: dict[str, Any]) -> dict[str, Any]:
    return {"sha256": about["sha256"], "bytes": about["bytes"], "files": len(about["files"])}


def digest(rows: list[Entry]) -> str:
    """The name of such a list. run/code/content.py has the same."""
    whole = hashlib.sha256()
    for row in sorted(rows):
        whole.update(json.dumps(row).encode() + b"\n")
    return whole.hexdigest()


def plain_size(path: str) -> int:
    """Bytes of a plain file; -1 where there is none."""
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        return found.st_size if found.st_mode & 0o170000 == 0o100000 else -1
    return -1


def size_of(folder: str) -> int:
    return sum(max(0, plain_size(os.path.join(base, name))) for base, _, names in os.walk(folder) for name in names)


def settled(path: str, size: int) -> bool:
    with contextlib.suppress(OSError):
        return plain_size(path) == size and int(os.lstat(path).st_mtime) == SETTLED
    return False


def settle(path: str) -> None:
    """Make a file read-only and set the time of all data; who writes to it all the same moves that time."""
    os.chmod(path, 0o400)
    os.utime(path, (SETTLED, SETTLED))


def digest_of(path: str, progress: Progress) -> str:
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        for data in iter(lambda: file.read(CHUNK), b""):
            whole.update(data)
            progress.add(len(data))
    return whole.hexdigest()


def partial(part: str, sha256: str) -> str:
    return os.path.join(part, sha256 + ".partial")


def bits(numbers: list[int], count: int) -> list[str]:
    """Encode which of `count` files are meant, a bit each, as hexadecimal digits in lines that are not too long."""
    flags = bytearray((count + 7) // 8)
    for number in numbers:
        flags[number // 8] |= 1 << number % 8
    text = flags.hex()
    return [text[at : at + 4096] for at in range(0, len(text), 4096)]


def receive(source: BinaryIO, part: str, entry: Entry, progress: Progress) -> None:
    """Receive one file, behind what has come of it."""
    name, size, sha256 = entry
    path, whole = partial(part, sha256), hashlib.sha256()
    with open(path, "a+b") as file:
        file.seek(0)
        for data in iter(lambda: file.read(CHUNK), b""):
            whole.update(data)
        left = size - file.tell()
        while left > 0:
            data = source.read(min(left, CHUNK))
            if not data:
                file.flush()
                raise Refused("the sending of %s ended early" % name)
            whole.update(data)
            file.write(data)
            left -= len(data)
            progress.add(len(data))
        file.flush()
        os.fsync(file.fileno())
    if left or whole.hexdigest() != sha256:
        os.unlink(path)
        raise Refused("%s is not what it was when it was listed: run the command again" % name)
    put(path, part, name)


def seen_in(place: str, name: str) -> str:
    return os.path.join(place, FILES, name)


def put(path: str, part: str, name: str) -> None:
    target = seen_in(part, name)
    os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
    os.rename(path, target)


def copied(known: str | None, part: str, entry: Entry, progress: Progress) -> bool:
    """Tell whether a file of other data could be taken, after all of it was read."""
    if known is None:
        return False
    name, _, sha256 = entry
    path, whole = partial(part, sha256) + ".copy", hashlib.sha256()
    with open(known, "rb") as old, open(path, "wb") as file:
        for data in iter(lambda: old.read(CHUNK), b""):
            whole.update(data)
            file.write(data)
            progress.add(len(data))
    if whole.hexdigest() != sha256:
        os.unlink(path)
        return False
    put(path, part, name)
    return True


def named() -> set[str]:
    """Data that the processes of this machine are told of (NEXA_DATA is a folder of links to it)."""
    found: set[str] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open("/proc/%s/environ" % pid, "rb") as file:
            for word in file.read().split(b"\0"):
                if word.startswith(b"NEXA_DATA="):
                    links = word.partition(b"=")[2]
                    for name in os.listdir(links):
                        found |= set(os.fsdecode(os.path.realpath(os.path.join(links, name))).split("/"))
    return found


def human(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return "%.3g %s" % (count, unit)
        count /= 1024
    return "%.1f GiB" % count


class Bucket:
    """A place in S3, through the aws command with the credentials that it finds on this node."""

    def __init__(self, url: str, env: dict[str, str]) -> None:
        self.url = url.rstrip("/")
        self.bucket, _, self.key = self.url[len("s3://") :].partition("/")
        self.env = {**os.environ, "AWS_PAGER": "", "AWS_EC2_METADATA_SERVICE_NUM_ATTEMPTS": "3"}
        self.env.update({"AWS_RETRY_MODE": "standard", "AWS_MAX_ATTEMPTS": "4", **env})
        beside = os.path.join(os.path.dirname(sys.executable), "aws")
        found = beside if os.access(beside, os.X_OK) else shutil.which("aws")
        if not found:
            raise Refused("the aws command is not on this node, and it is what fetches %s" % self.url)
        self.aws: str = found

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start the aws command, which ends when we do."""
        prctl = ctypes.CDLL(None).prctl
        options = ("--cli-connect-timeout", "10", "--cli-read-timeout", "60")
        return subprocess.Popen(
            [self.aws, *options, *words], env=self.env, text=True, errors="replace", stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )  # fmt: skip

    def run(self, *words: str) -> str:
        child = self.start(*words)
        out, err = child.communicate()
        if child.returncode:
            raise Refused("%s: %s" % (self.url, sentence(err or out)))
        return out

    def objects(self, prefix: str) -> list[Entry]:
        """Key, bytes and ETag of all that begins so; what ends in a slash is a folder that somebody made by hand."""
        out = self.run(
            *("s3api", "list-objects-v2", "--bucket", self.bucket, "--prefix", prefix, "--output", "json"),
            *("--query", "Contents[].[Key,Size,ETag]"),
        )
        return [row for row in json.loads(out or "null") or [] if not row[0].endswith("/")]

    def listed(self) -> tuple[list[Entry], str]:
        """Every object below the place, by its name there, or the one that it is, with that one's name."""
        below = self.key + "/" if self.key else ""
        rows, single = [[row[0][len(below) :], *row[1:]] for row in self.objects(below)], ""
        if not rows and self.key:
            single = self.key.rpartition("/")[2]
            rows = [[single, *row[1:]] for row in self.objects(self.key) if row[0] == self.key]
        if not rows:
            raise Refused("%s: nothing is there" % self.url)
        folders = set()
        for name, *_ in rows:
            words = name.split("/")
            if {"", ".", ".."} & set(words) or "\0" in name or len(name.encode()) > 1000:
                raise Refused("%s: %r can be no name of a file" % (self.url, name[:100]))
            folders |= {"/".join(words[:count]) for count in range(1, len(words))}
        if both := sorted(folders & {name for name, *_ in rows}):
            raise Refused("%s: %r is an object and a folder" % (self.url, both[0][:100]))
        return rows, single

    def told(self, where: bool) -> dict[str, Any]:
        """Ask S3 what is there now, and in which region if `where`."""
        rows, single = self.listed()
        region, words = "", ("s3api", "head-bucket", "--bucket", self.bucket)
        if where:
            with contextlib.suppress(Refused):
                region = self.run(*words, "--query", "BucketRegion", "--output", "text").strip()
        size = sum(row[1] for row in rows)
        return {"id": digest(rows), "files": len(rows), "bytes": size, "single": single, "region": region}

    def download(self, folder: str, single: str, say: Say) -> None:
        """Fetch what is not there yet: aws compares size and time, and names a file when it is whole."""
        if single:
            child = self.start("s3", "cp", "--only-show-errors", self.url, os.path.join(folder, single))
        else:
            child = self.start("s3", "sync", "--only-show-errors", self.url + "/", folder)
        over = threading.Event()

        def tell() -> None:
            rest_s = PROGRESS_S
            while not over.wait(rest_s):
                began = time.monotonic()
                say(say={"what": "fetched", "bytes": size_of(folder)})
                rest_s = max(PROGRESS_S, 20 * (time.monotonic() - began))

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        _, err = child.communicate()
        over.set()
        teller.join()
        if child.returncode:
            raise Refused("%s: %s" % (self.url, sentence(err)))


def sentence(text: str) -> str:
    """Last words of the aws command, without what is of this program."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[-3:])[-1000:] or "aws failed without a word"
