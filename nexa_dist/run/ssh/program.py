"""A one-file program that works for long on a node, over ssh: it tells what it does, and ends when we end.

The program is Python of the standard library with a function `main(message, say)`: `message` is ours, `say(**words)`
tells us something while it works, and what it returns is its answer, a dict. What it raises ends it with those words.
One that is fed has a third argument, the stream of what we send it, and ends by itself when that ends early.
"""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable, Iterable
from typing import Any

from nexa_dist import wire
from nexa_dist.errors import NexaError
from nexa_dist.run.ssh.connections import Link
from nexa_dist.shape import Check, Strange, anything, parsed, record

SILENCE_S = 60.0
"""A node that says nothing for so long is given up; the program says every 10 s that it lives."""
START = """
import json, os, signal, sys, threading, time
os.umask(0o077); os.getpgrp() == os.getpid() or os.setpgrp()
source = sys.stdin.buffer.read(int(sys.argv[1])); message = json.loads(sys.stdin.buffer.readline())
door = threading.Lock()
def say(**words):
    with door: print(json.dumps(words), flush=True)
def watch():
    while sys.stdin.buffer.read(1): pass
    os.killpg(0, signal.SIGTERM)
def live():
    while True: time.sleep(10); say()
fed = sys.argv[2:] == ["fed"]
for act in (live,) if fed else (watch, live): threading.Thread(target=act, daemon=True).start()
room = {"__name__": "program"}
exec(compile(source, "program", "exec"), room)
try: end = {"answer": room["main"](message, say, *[sys.stdin.buffer] * fed)}
except (Exception, SystemExit) as error: end = {"error": str(error) or type(error).__name__}
say(**end); os._exit("error" in end)
"""
"""Starter on the node: reads the program, then a line with the message, from standard input, which stays open until we
end."""
SAID = record({}, {"answer": anything(8, 100_000, 65536), "error": wire.WORDS, "say": anything(4, 1000)})


class Refused(NexaError):
    """The program says that it cannot do what it was asked."""


def run_program(
    link: Link,
    source: bytes,
    message: dict[str, Any],
    check: Check,
    on_say: Callable[[dict[str, Any]], object] = dict,
    feed: Callable[[dict[str, Any]], Iterable[bytes] | None] | None = None,
    *,
    reads: bool = False,
) -> dict[str, Any]:
    """The program's answer, as `check` shapes it. `on_say` gets what `say(say={…})` tells. With `feed` the program is
    fed: once, what that answers to something that it says. One that only `reads` is started by a dry run too. Raises
    Refused with the program's words, NexaError when the node falls silent, and what `feed` raises."""
    name, runner = link.node.name, link.ssh.runner
    words = ["fed"] * bool(feed) + ["reads"] * reads
    argv = shlex.join((link.python, "-I", "-c", START, str(len(source)), *words))
    stream = runner.stream((*link.ssh.argv(link.node), argv), stdin=source + json.dumps(message).encode() + b"\n")
    silent, over, feeding = threading.Event(), threading.Event(), list[threading.Thread]()
    failed: list[NexaError] = []

    def give_up() -> None:
        silent.set()
        stream.end()

    def pour(chunks: Iterable[bytes]) -> None:
        try:
            for chunk in chunks:
                if over.is_set():
                    return
                stream.send(chunk)
        except NexaError as error:
            failed.append(error)
            stream.end()

    timer = threading.Timer(SILENCE_S, give_up)
    try:
        timer.start()
        for line in iter(lambda: stream.out.readline(wire.ANSWER_BYTES), b""):
            timer.cancel()
            timer = threading.Timer(SILENCE_S, give_up)
            timer.start()
            try:
                said = parsed(line, SAID, wire.ANSWER_BYTES)
                if "answer" in said:
                    return dict(check(said["answer"]))
            except Strange as error:
                raise wire.Faulty(name, "what a program of nexa's says there", error) from None
            if "error" in said:
                raise Refused(f"{name}: {said['error']}")
            if "say" in said:
                chunks = feed(said["say"]) if feed and not feeding else None
                if chunks is None:
                    on_say(said["say"])
                else:
                    feeding.append(threading.Thread(target=pour, args=(chunks,), daemon=True))
                    feeding[0].start()
    except OSError as error:
        raise NexaError(f"ssh could not be started: {error}") from error
    finally:
        timer.cancel()
        over.set()
        stream.end()
        for thread in feeding:
            thread.join()
        if failed:
            raise failed[0]
    why = f"said nothing for {SILENCE_S:.0f} s" if silent.is_set() else "fell silent"
    raise NexaError(f"{name}: {why} while a program of nexa's was at work there", hint=f"nexa diag looks at {name}")
