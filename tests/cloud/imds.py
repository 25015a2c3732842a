"""The instance metadata service of one machine, version 2 only: it answers those who first fetched a token."""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.cloud.types import HostSpec

Tree = dict[str, Any]
"""Folders and leaves; a leaf is text or bytes."""
TOKEN_TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"
MAX_TTL_S = 21600
KEYS_TTL_S = 6 * 3600


def utc(at_unix: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_unix))


def tree(spec: HostSpec, mac: str, notice_at_unix: float | None) -> Tree:
    """Everything that the service tells of a machine."""
    name = f"ip-{spec.private_ip.replace('.', '-')}"
    meta: Tree = {
        "ami-id": "ami-emulated",
        "hostname": name,
        "iam": _iam(spec),
        "instance-action": "none",
        "instance-id": spec.instance_id,
        "instance-life-cycle": "spot" if spec.spot else "on-demand",
        "instance-type": spec.type,
        "local-hostname": name,
        "local-ipv4": spec.private_ip,
        "mac": mac,
        "network": {"interfaces": {"macs": {mac: _interface(spec, mac)}}},
        "placement": {"availability-zone": spec.zone, "region": spec.region},
        "security-groups": spec.vpc_id,
        "tags": {"instance": dict(sorted(spec.tags.items()))},
    }
    if spec.public_ip:
        meta |= {"public-ipv4": spec.public_ip, "public-hostname": f"ec2-{spec.public_ip.replace('.', '-')}"}
    if spec.public_key:
        meta["public-keys"] = {"0": {"openssh-key": spec.public_key}}
    if notice_at_unix is not None:
        action = {"action": "terminate", "time": utc(notice_at_unix)}
        meta["spot"] = {"instance-action": json.dumps(action), "termination-time": utc(notice_at_unix)}
    identity = {
        "accountId": "123456789012",
        "availabilityZone": spec.zone,
        "imageId": "ami-emulated",
        "instanceId": spec.instance_id,
        "instanceType": spec.type,
        "privateIp": spec.private_ip,
        "region": spec.region,
        "version": "2017-09-30",
    }
    found: Tree = {
        "meta-data": meta,
        "dynamic": {"instance-identity": {"document": json.dumps(identity, indent=2)}},
    }
    if spec.user_data:
        found["user-data"] = spec.user_data
    return found


def _iam(spec: HostSpec) -> Tree:
    """What an instance profile gives: keys of its role. The emulated API asks nobody who he is."""
    role = spec.tags.get("Name", "nexa-node")
    now = time.time()
    keys = {
        "Code": "Success",
        "LastUpdated": utc(now),
        "Type": "AWS-HMAC",
        "AccessKeyId": "ASIAEMULATEDEMULATED",
        "SecretAccessKey": "of-no-use-elsewhere",
        "Token": "emulated",
        "Expiration": utc(now + KEYS_TTL_S),
    }
    profile = {
        "Code": "Success",
        "LastUpdated": utc(now),
        "InstanceProfileArn": f"arn:aws:iam::123456789012:instance-profile/nexa/{role}",
        "InstanceProfileId": "AIPAEMULATEDEMULATED",
    }
    return {"info": json.dumps(profile), "security-credentials": {role: json.dumps(keys)}}


def _interface(spec: HostSpec, mac: str) -> Tree:
    found: Tree = {
        "device-number": "0",
        "local-ipv4s": spec.private_ip,
        "mac": mac,
        "subnet-ipv4-cidr-block": spec.subnet_cidr,
        "vpc-id": spec.vpc_id,
    }
    return found | ({"public-ipv4s": spec.public_ip} if spec.public_ip else {})


def look_up(root: Tree, path: str) -> bytes | None:
    """What is at `path`, below the version: a leaf, or the list of a folder; None where nothing is."""
    node: Any = root
    for part in filter(None, path.split("/")):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    if not isinstance(node, dict):
        return node if isinstance(node, bytes) else str(node).encode()
    if path.strip("/").endswith("public-keys"):
        return b"\n".join(f"{number}=key".encode() for number in node)
    return b"\n".join(f"{name}/".encode() if isinstance(below, dict) else name.encode() for name, below in node.items())


class Imds:
    """Serves a listening socket of the machine's namespace until `close`."""

    def __init__(self, door: socket.socket, spec: HostSpec, mac: str, notice: Callable[[], float | None]) -> None:
        """`notice` tells when the machine is to be interrupted (Unix seconds), if it is."""
        self._spec, self._mac, self._notice = spec, mac, notice
        self._tokens: dict[str, float] = {}
        self._web = ThreadingHTTPServer(("", 0), self._handler(), bind_and_activate=False)
        self._web.daemon_threads = True
        self._web.socket.close()
        self._web.socket = door
        self._thread = threading.Thread(target=self._web.serve_forever, kwargs={"poll_interval": 0.5}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._web.shutdown()
        self._web.server_close()
        self._thread.join(timeout=5)

    def answer(self, token: str | None, path: str) -> tuple[int, bytes]:
        if token is None or self._tokens.get(token, 0.0) < time.monotonic():
            return 401, b"Unauthorized: a token of PUT /latest/api/token is needed\n"
        _, version, below = (*path.split("?")[0].split("/", 2), "", "")[:3]
        if not version:
            return 200, b"2021-03-23\nlatest"
        found = look_up(tree(self._spec, self._mac, self._notice()), below)
        return (404, b"Not Found\n") if found is None else (200, found)

    def token(self, ttl: str | None) -> tuple[int, bytes]:
        if ttl is None or not ttl.isdecimal() or not 1 <= int(ttl) <= MAX_TTL_S:
            return 400, b"Bad Request\n"
        made = secrets.token_urlsafe(32)
        self._tokens[made] = time.monotonic() + int(ttl)
        return 200, made.encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 300

            def do_GET(self) -> None:
                self.reply(*service.answer(self.headers.get(TOKEN), self.path))

            def do_PUT(self) -> None:
                forwarded = "X-Forwarded-For" in self.headers
                if forwarded or self.path != "/latest/api/token":
                    self.reply(403 if forwarded else 404, b"")
                else:
                    self.reply(*service.token(self.headers.get(TOKEN_TTL)))

            def reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002

        return Handler
