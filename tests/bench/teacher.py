"""How long asking a teacher takes, beside one request after the other: python -m tests.bench.teacher [ROWS [SECONDS]].

The server is real and answers each question after so many seconds, so this tells of the client alone. Both ways ask the
same questions, in turns, and the medians of three rounds are compared.
"""

from __future__ import annotations

import statistics
import sys
import time

import httpx

from nexa_dist.stages.endpoint import Endpoint, EndpointConfig, Question
from nexa_dist.stages.endpoint_reply import Reply
from tests.teacher import completion, serving

AT_ONCE = (4, 16)


def one_by_one(url: str, rows: int) -> float:
    begun = time.monotonic()
    with httpx.Client(timeout=60, trust_env=False) as client:
        for number in range(rows):
            body = {"model": "m", "messages": [{"role": "user", "content": str(number)}], "max_tokens": 16}
            assert client.post(f"{url}/chat/completions", json=body).json()["choices"]
    return time.monotonic() - begun


def many_at_once(url: str, rows: int, concurrency: int) -> float:
    begun = time.monotonic()
    with Endpoint(EndpointConfig(url=url, model="m", concurrency=concurrency)) as endpoint:
        asked = ((number, Question([{"role": "user", "content": str(number)}])) for number in range(rows))
        found = list(endpoint.ask_all(asked))
    assert len(found) == rows
    assert all(isinstance(outcome, Reply) for _, outcome in found)
    return time.monotonic() - begun


def main(rows: int = 64, latency_s: float = 0.1) -> None:
    with serving(lambda *_: time.sleep(latency_s) or completion("x")) as server:
        took: dict[int, list[float]] = {1: [], **{n: [] for n in AT_ONCE}}
        for _ in range(3):
            took[1].append(one_by_one(server.url, rows))
            for concurrency in AT_ONCE:
                took[concurrency].append(many_at_once(server.url, rows, concurrency))
    alone = statistics.median(took[1])
    print(f"{rows} questions, {latency_s:g} s each: one by one {alone:.2f} s")
    for concurrency in AT_ONCE:
        seconds = statistics.median(took[concurrency])
        print(f"{concurrency} at a time: {seconds:.2f} s, {alone / seconds:.1f} times as fast")


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((int, float), sys.argv[1:], strict=False)))
