"""Host keys of cloud nodes. The first one comes with user_data, so that it is pinned before the first contact; but
user_data can be read by who may describe instances, and on the node itself. So each node makes a key that never leaves
it, tells it over the connection that the first key proved, and from then on the first key opens nothing.
"""

from __future__ import annotations

from dataclasses import replace

from nexa_dist.model import Cluster, Node
from nexa_dist.ops.context import Context
from nexa_dist.plan.told import host_key
from nexa_dist.run.runner import CommandFailed
from nexa_dist.run.ssh import connections, keys
from nexa_dist.run.ssh.keys import Pin
from nexa_dist.run.workspace import ClusterFolder

TRIES = 20
OWN = "/etc/ssh/nexa_host_key"
MAKE = f"[ -s {OWN}.pub ] || ssh-keygen -q -t ed25519 -N '' -C '' -f {OWN} <&- && cat {OWN}.pub"
SWITCH = f"""set -e
echo 'HostKey {OWN}
PasswordAuthentication no
KbdInteractiveAuthentication no' >/etc/ssh/sshd_config.d/10-nexa.conf
sshd -t
if [ -d /run/systemd/system ]; then systemctl reload ssh; else kill -HUP "$(cat /run/sshd.pid)"; fi
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
"""


def rotate(ctx: Context, folder: ClusterFolder, made: Cluster) -> None:
    """Gives every node a host key of its own. Safe to repeat, and to be killed: until the new key has answered, both
    are pinned.
    """
    pins = keys.read_pins(folder.ssh)
    todo = [node for node in made.nodes if not (pins.get(node.instance_id) or Pin("", False)).proven]
    if not todo:
        return
    with connections.session(ctx.runner, made) as ssh:
        told = connections.on_all(todo, lambda node: _root(ssh, node, MAKE, "making a host key"))
        fresh = {n.instance_id: Pin(host_key(n.name, key), False) for n, key in zip(todo, told, strict=True)}
        living = {node.instance_id for node in made.nodes}
        pins = {ident: pin for ident, pin in {**pins, **fresh}.items() if ident in living}
        keys.write_pins(folder.ssh, pins)
        keys.write_ssh_config(folder.ssh, made.nodes)
        connections.on_all(todo, lambda node: _root(ssh, node, SWITCH, "switching to the new host key"))
    proven = {ident: replace(pin, proven=True) for ident, pin in pins.items()}
    keys.write_ssh_config(folder.ssh, made.nodes, proven)
    with connections.session(ctx.runner, made) as ssh:  # new connections, which only the new keys can prove
        connections.on_all(todo, lambda node: _answers(ctx, ssh, node))
    keys.write_pins(folder.ssh, proven)


def _answers(ctx: Context, ssh: connections.Ssh, node: Node) -> None:
    """sshd is away for a moment when it takes new settings."""
    for _ in range(TRIES):
        try:
            ssh.run(node, ("true",))
            return
        except connections.Unreachable as error:
            if "verification failed" in str(error):
                raise
            ctx.sleep(0.5)
    ssh.run(node, ("true",))


def _root(ssh: connections.Ssh, node: Node, script: str, what: str) -> str:
    done = ssh.run(node, ("sudo", "-n", "sh", "-c", script))
    if done.code:
        raise CommandFailed(f"{node.name}: {what}", done, hint="the image's user must have sudo without a password")
    return done.out.decode(errors="replace")
