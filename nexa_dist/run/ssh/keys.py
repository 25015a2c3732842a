"""ssh keys and config of one cluster: made before first contact, pinned, never in the user's ~/.ssh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nexa_dist.errors import NexaError
from nexa_dist.model import Node
from nexa_dist.run import files
from nexa_dist.run.runner import CommandFailed, Runner


def ensure_key(runner: Runner, path: Path, comment: str) -> None:
    """An ed25519 key pair at `path`, 0600; one that is there is kept."""
    if path.exists() and path.with_name(path.name + ".pub").exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    made = runner.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)))
    if made.code:
        raise CommandFailed("ssh-keygen", made, hint="install openssh-client")


def ensure_cluster_keys(runner: Runner, folder: Path, cluster: str, nodes: Sequence[str]) -> None:
    """`client` for us and `host_keys/<node>` for each node."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ensure_key(runner, folder / "client", f"nexa-{cluster}")
    for node in nodes:
        ensure_key(runner, folder / "host_keys" / node, f"nexa-{cluster}-{node}")


def forget_host_key(folder: Path, node: str) -> None:
    """The node gets another key the next time that keys are made."""
    for name in (node, f"{node}.pub"):
        (folder / "host_keys" / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Pin:
    """The host key that an instance made for itself, `type base64`. Until it is proven, the first one counts too."""

    key: str
    proven: bool


def read_pins(folder: Path) -> dict[str, Pin]:
    """Pins by instance id: a new machine under an old name starts with no pin."""
    path = folder / "pins.json"
    try:
        return {ident: Pin(**pin) for ident, pin in files.read_object(path).items()} if path.exists() else {}
    except TypeError as error:
        raise NexaError(f"{path} is damaged: {error}", hint="nexa teardown does without it") from None


def write_pins(folder: Path, pins: Mapping[str, Pin]) -> None:
    files.write_json(folder / "pins.json", {ident: asdict(pin) for ident, pin in pins.items()}, 0o600)


def write_ssh_config(folder: Path, nodes: Sequence[Node], pins: Mapping[str, Pin] | None = None) -> Path:
    """ssh_config and known_hosts (by `pins`, else by the file's). A node is known by its name, so a reused address is
    still checked."""
    known = folder / "known_hosts"
    pins = read_pins(folder) if pins is None else pins
    lines, pinned = [], []
    for node in nodes:
        pin = pins.get(node.instance_id)
        first = (folder / "host_keys" / f"{node.name}.pub").read_text().split()[:2]
        keys = ([pin.key] if pin else []) + ([] if pin and pin.proven else [" ".join(first)])
        pinned += [f"{node.name} {key}" for key in keys]
        user = [f"    User {node.user}"] if node.user else []
        lines += [
            f"Host {node.name}",
            f"    HostName {node.address}",
            f"    Port {node.port}",
            *user,
            f"    HostKeyAlias {node.name}",
        ]
    lines += [
        "Host *",
        f'    IdentityFile "{folder / "client"}"',
        "    IdentitiesOnly yes",
        f'    UserKnownHostsFile "{known}"',
        "    GlobalKnownHostsFile none",
        "    StrictHostKeyChecking yes",
        "    PasswordAuthentication no",
        "    # 14 ms of CPU a connection instead of 97 with the default key exchange",
        "    KexAlgorithms ^curve25519-sha256",
        "    LogLevel ERROR",
    ]
    files.write_text(known, "\n".join(pinned) + "\n", 0o600)
    files.write_text(folder / "ssh_config", "\n".join(lines) + "\n", 0o600)
    return folder / "ssh_config"
