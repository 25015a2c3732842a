"""A client of the emulated region's control API, for tests and for scripts/region."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class Region:
    """`url` is the region's endpoint, for instance http://198.51.100.10. Errors are RuntimeErrors in its own words."""

    def __init__(self, url: str, timeout_s: float = 120.0) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s

    def state(self) -> dict[str, Any]:
        """instances, machines (that are on), resources (tags by kind and id), calls and errors (counts), faults."""
        found: dict[str, Any] = self._ask("GET", "state")
        return found

    def bill(self) -> dict[str, Any]:
        found: dict[str, Any] = self._ask("GET", "bill")
        return found

    def fault(self, kind: str, **how: Any) -> dict[str, Any]:
        """Adds a fault: see tests/cloud/faults.py for kinds and keys."""
        found: dict[str, Any] = self._ask("POST", "faults", {"kind": kind, **how})
        return found

    def clear(self) -> None:
        self._ask("DELETE", "faults")

    def rights(self, allow: Iterable[str] | None = None, deny: Iterable[str] = (), silent: bool = False) -> None:
        """What callers may from now on, in IAM's words: `allow` alone (None: everything), and of that not `deny`."""
        self._ask(
            "POST",
            "rights",
            {"allow": None if allow is None else sorted(allow), "deny": sorted(deny), "silent": silent},
        )

    def used(self) -> set[str]:
        """The rights that were used since they were given."""
        return set(self._ask("GET", "rights")["used"])

    def refused(self) -> set[str]:
        """Those that lacked since then."""
        return set(self._ask("GET", "rights")["refused"])

    def price(self, type: str, zone: str, usd: float, market: str = "spot") -> None:  # noqa: A002
        """USD per instance-hour from now on."""
        self._ask("POST", "prices", {"type": type, "zone": zone, "usd": usd, "market": market})

    def new_ami(self) -> None:
        """The 'latest' Deep Learning image gets another id."""
        self._ask("POST", "ami")

    def notice(self, instance_id: str, seconds: float = 120.0, reclaim: bool = True) -> None:
        """Shows a spot notice; the instance is reclaimed when it runs out, unless `reclaim` is False."""
        self._ask("POST", f"instances/{instance_id}/notice", {"seconds": seconds, "reclaim": reclaim})

    def reclaim(self, instance_id: str) -> None:
        self._ask("POST", f"instances/{instance_id}/reclaim")

    def partition(self, instance_id: str) -> None:
        self._ask("POST", f"instances/{instance_id}/partition")

    def heal(self, instance_id: str) -> None:
        self._ask("POST", f"instances/{instance_id}/heal")

    def fail(self, instance_id: str) -> None:
        """The machine dies; the cloud still calls it running."""
        self._ask("POST", f"instances/{instance_id}/fail")

    def wait(self, holds: Callable[[dict[str, Any]], T], timeout_s: float = 60.0) -> T:
        """Asks for the state until `holds(state)` is true, and returns what it returned."""
        deadline = time.monotonic() + timeout_s
        while True:
            state = self.state()
            found = holds(state)
            if found:
                return found
            if time.monotonic() >= deadline:
                rows = [(i["id"], i["state"], i["host"]) for i in state["instances"]]
                raise TimeoutError(f"the region did not come to the wanted state in {timeout_s:g} s: {rows}")
            time.sleep(0.05)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}/_region/{path}",
            data=None if method == "GET" else json.dumps(body or {}).encode(),
            method=method,
            headers={"Content-Type": "application/json"},
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=self.timeout_s) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode(errors="replace")) from error
