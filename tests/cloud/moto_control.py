"""The control API of the emulated region: faults, prices, spot notices, and what is really there."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from tests.cloud.moto_life import BY_SPOT, Machine
from tests.cloud.moto_prices import bill
from tests.cloud.moto_region import World, holdings
from tests.cloud.types import Hosts

JSON = {"Content-Type": "application/json"}


class Control:
    """Answers /_region/…; no fault strikes here. Bad input is a 400 with an `error`."""

    def __init__(self, world: World, hosts: Hosts, calls: Counter[str], errors: Counter[str]) -> None:
        self.world = world
        self.hosts = hosts
        self.calls = calls
        self.errors = errors

    def reply(self, environ: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        path = environ["PATH_INFO"].removeprefix("/_region/").strip("/").split("/")
        try:
            asked = json.loads(environ["wsgi.input"].read(size) or b"{}")
            with self.world.life.lock:
                self.world.life.settle()
                answer = self._obey(environ["REQUEST_METHOD"], path, asked)
        except (ValueError, TypeError, KeyError) as error:
            told = {"error": f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}: {error}"}
            return 400, JSON, json.dumps(told).encode()
        return 200, JSON, json.dumps(answer).encode()

    def _obey(self, method: str, path: list[str], asked: dict[str, Any]) -> Any:
        match (method, *path):
            case ("GET", "state"):
                return self._state()
            case ("GET", "bill"):
                return bill(self.world.prices, self.world.life.lines)
            case ("POST", "faults"):
                return asdict(self.world.faults.add(asked))
            case ("DELETE", "faults"):
                self.world.faults.clear()
                self.world.rights.give()
            case ("POST", "rights"):
                self.world.rights.give(**asked)
            case ("GET", "rights"):
                rights = self.world.rights
                return {"used": sorted(rights.used), "refused": sorted(rights.refused)}
            case ("POST", "prices"):
                market = asked.get("market", "spot")
                self.world.prices.move(asked["type"], asked["zone"], market, float(asked["usd"]))
            case ("POST", "ami"):
                self.world.images.generation += 1
            case ("POST", "instances", instance_id, verb):
                self._act(instance_id, verb, asked)
            case _:
                raise ValueError("there is no such control call")
        return {}

    def _act(self, instance_id: str, verb: str, asked: dict[str, Any]) -> None:
        life = self.world.life
        if instance_id not in life.machines:
            raise ValueError(f"there is no instance {instance_id}")
        machine = life.machines[instance_id]
        if verb == "notice":
            life.notice(machine, asked.get("seconds"), bool(asked.get("reclaim", True)))
        elif verb == "reclaim":
            life.terminate(machine.instance, BY_SPOT)
        elif verb in ("partition", "heal"):
            self.hosts.partition(instance_id, verb == "partition")
        elif verb == "fail":
            life.fail(machine)
        else:
            raise ValueError(f"{verb} is none of notice, reclaim, partition, heal, fail")

    def _state(self) -> dict[str, Any]:
        hosts = self.hosts.states()
        machines = self.world.life.machines.values()
        return {
            "instances": [self._row(machine, hosts.get(machine.instance.id)) for machine in machines],
            "machines": self.hosts.facts(),
            "resources": holdings(),
            "calls": dict(self.calls),
            "errors": dict(self.errors),
            "faults": [asdict(fault) for fault in self.world.faults.faults],
        }

    def _row(self, machine: Machine, host: str | None) -> dict[str, Any]:
        return {
            "id": machine.instance.id,
            "state": machine.instance.state,
            "host": host,
            "reason": machine.instance.state_reason.code,
            "region": machine.spec.region,
            "zone": machine.spec.zone,
            "type": machine.spec.type,
            "market": machine.line.market,
            "private_ip": machine.spec.private_ip,
            "public_ip": machine.spec.public_ip,
            "tags": {tag["key"]: tag["value"] for tag in machine.instance.get_tags()},
            "spot_request": machine.spot.id if machine.spot else None,
        }
