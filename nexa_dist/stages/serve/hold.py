"""A served model as a run: `python -m nexa_dist.stages.serve.hold --model DIR`, which lasts until SIGTERM.

It keeps `serve.json` in the folder of the run: state, address, smoke request, figures. Exit codes: 1 when
the server ended or no longer answers (the next attempt starts it again), 2 bad usage, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.run import files
from nexa_dist.stages.serve.engines import ENGINES, choose
from nexa_dist.stages.serve.server import LOOPBACK, Server, serving
from nexa_dist.train import progress

NAME = "serve.json"
EVERY_S = 5.0
"""Seconds between two looks at the server."""
SILENT = 12
"""So many looks without an answer mean that it hangs."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopped.append(number))
    state = State(Path(os.environ.get("NEXA_RUN_DIR", ".")) / NAME)
    try:
        return hold(options, state, stopped)
    except NexaError as error:
        state.write(state="failed", cause=str(error))
        print(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr, flush=True)
        return error.code


def hold(options: argparse.Namespace, state: State, stopped: list[int]) -> int:
    engine = choose(options.engine)
    print(f"engine: {engine.why}", flush=True)
    key = os.environ.get(options.key_env, "") if options.key_env else ""
    state.write(state="loading", engine=engine.name, why=engine.why, run=os.environ.get("NEXA_RUN_ID", ""),
                attempt=int(os.environ.get("NEXA_ATTEMPT", "1")))  # fmt: skip
    with serving(
        engine, options.model, name=options.name, host=options.host, port=options.port, key=key,
        max_model_len=options.max_model_len, startup_s=options.startup_s, stop=lambda: bool(stopped),
        told=lambda line: print(line, flush=True),
    ) as server:  # fmt: skip
        if server is None:
            return 128 + signal.SIGTERM
        smoke = server.smoke()
        state.write(state="ready", host=server.host, port=server.port, model=server.name, api=server.api, smoke=smoke,
                    has_key=bool(key))  # fmt: skip
        print(f"ready on {server.host}:{server.port}, {server.api}; a first answer in {smoke['seconds']} s", flush=True)
        return _watched(server, state, stopped)


def _watched(server: Server, state: State, stopped: list[int]) -> int:
    """Look at the server until SIGTERM. Raises NexaError when it is no longer there."""
    before, at, silent = server.figures(), time.monotonic(), 0
    while not stopped:
        for _ in range(int(EVERY_S / 0.1)):
            if stopped or server.process.poll() is not None:
                break
            time.sleep(0.1)
        if (code := server.process.poll()) is not None and not stopped:
            raise NexaError(f"the server ended with {code}", hint="its last lines say why")
        silent = 0 if server.is_healthy() else silent + 1
        if silent >= SILENT:
            raise NexaError(f"the server hangs: {SILENT} looks in a row had no answer")
        now, seconds = server.figures(), time.monotonic() - at
        tokens = now.get("completion_tokens", 0) - before.get("completion_tokens", 0)
        rate = tokens / seconds if "completion_tokens" in now and seconds > 0 else None
        state.write(**now, tokens_per_s=rate and round(rate, 1))
        progress.report(now.get("requests", 0), tokens_per_s=rate)
        before, at = now, time.monotonic()
    state.write(state="stopped")
    return 128 + signal.SIGTERM


class State:
    """serve.json: what is known of the server, whole at any moment."""

    def __init__(self, path: Path) -> None:
        self._path, self._known = path, dict[str, Any]()

    def write(self, **facts: Any) -> None:
        self._known |= {**facts, "at": round(time.time(), 3)}
        files.write_json(self._path, self._known)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nexa_dist.stages.serve.hold", description="Serve a model until SIGTERM.")
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="config.json, weights, tokenizer")
    parser.add_argument("--name", default="model", help="what requests call it (default: model)")
    parser.add_argument("--engine", default="auto", choices=ENGINES)
    parser.add_argument("--host", default=LOOPBACK, help=f"address to listen on (default: {LOOPBACK})")
    parser.add_argument("--port", default=0, type=int, help="default: a free one")
    parser.add_argument("--key-env", default="", metavar="NAME", help="variable with the key that requests need")
    parser.add_argument("--max-model-len", type=int, metavar="N", help="longest context, in tokens (vLLM)")
    parser.add_argument("--startup-s", default=900.0, type=float, help="most seconds until it answers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
