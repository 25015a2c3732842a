"""What the nodes are asked and given around a mesh, with nodes that are answers in a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import IO, Any

import pytest

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.ops.cluster import mesh, mesh_end
from nexa_dist.ops.context import Context
from nexa_dist.ops.workspace_tag import our_tag
from nexa_dist.plan.mesh import hostname
from nexa_dist.plan.static.cluster import static_cluster
from nexa_dist.run import files
from nexa_dist.run.runner import Result, Runner
from nexa_dist.run.workspace import ClusterFolder
from tests.unit.cloud_server import Desk
from tests.unit.cloud_server import config as cloud_config
from tests.unit.tailnet import Api, serve

NETWORKS = b"network 10.1.2.3/16\nmtu 1460\n"
RUNNING = json.dumps({"BackendState": "Running"}).encode()


@dataclass
class Nodes(Runner):
    """Hosts that answer by a part of the command; anything unplanned fails the test."""

    answers: dict[str, dict[str, tuple[int, bytes]]]
    """By address or name of the node, then by a word of the command: exit code and output."""
    local: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    given: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Node, command, standard input."""

    def run(self, argv: Sequence[str], *, stdin: bytes | IO[bytes] = b"", **_: Any) -> Result:
        words = tuple(argv)
        if words[0] != "ssh":
            code, out = self.local[words[0]]
            return Result(words, code, out)
        place = words.index("--") + 1
        node, command = words[place], words[place + 1] if len(words) > place + 1 else "-G"
        assert isinstance(stdin, bytes)
        self.given.append((node, command, stdin))
        for word, (code, out) in self.answers[node].items():
            if word in command:
                return Result(words, code, out)
        raise AssertionError(f"unplanned on {node}: {command}")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.delenv("TS_AUTHKEY", raising=False)
    monkeypatch.delenv("NEXA_TAILSCALE_TAG", raising=False)
    with serve() as made:
        for name, value in made.environ.items():
            monkeypatch.setenv(name, value)
        yield made


def own(*hosts: str, **keys: Any) -> ClusterConfig:
    return ClusterConfig.model_validate({"name": "c", "cluster": [{"host": h, "gpus": 1} for h in hosts], **keys})


def rented(*private: str) -> Cluster:
    nodes = tuple(Node(f"n{i}", f"203.0.113.{i}", 1, private_address=p) for i, p in enumerate(private))
    return Cluster("c", "aws", nodes, Layout("python3", "/s", "/h", "/d"), ssh_config="/x")


def at(desk: Desk, nodes: Nodes) -> tuple[Context, ClusterFolder]:
    folder = desk.ctx.workspace.cluster("c")
    folder.path.mkdir(parents=True, exist_ok=True)
    return replace(desk.ctx, runner=nodes), folder


def test_a_jump_host_and_an_alias_of_ssh_are_looked_through(desk: Desk) -> None:
    config = own("gpu-a", "gpu-b", mesh="wireguard")
    answers = {
        "gpu-a": {"ip -4": (0, NETWORKS), "-G": (0, b"user u\nhostname 8.8.8.8\nport 22\n")},
        "gpu-b": {"ip -4": (0, b"mtu 9001\n"), "-G": (0, b"hostname 10.9.9.9\nproxyjump gate\n")},
    }
    ctx, folder = at(desk, Nodes(answers))
    with mesh.joining(ctx, folder, config, static_cluster(config, PurePath("/"))) as told:
        assert told["nexa_mesh"] == "wireguard" and told["nexa_mesh_mtu"] == 1380
        ends = {name: link["peers"][0]["endpoint"] for name, link in told["nexa_mesh_links"].items()}
        assert ends == {"n0": "", "n1": "8.8.8.8:51820"}


def test_nodes_of_a_vpc_meet_at_their_private_addresses(desk: Desk) -> None:
    made = rented("10.77.0.4", "10.77.0.5")
    ctx, folder = at(desk, Nodes({name: {"ip -4": (0, b"network 10.77.0.4/20\nmtu 9001\n")} for name in ("n0", "n1")}))
    config = cloud_config(mesh="wireguard")
    with mesh.joining(ctx, folder, config, made) as told:
        assert told["nexa_mesh_links"]["n0"]["peers"][0]["endpoint"] == "10.77.0.5:51820"
    assert mesh.with_mesh(config, made) == made, "their own network is faster"
    assert list(mesh.meshes(folder)) == ["wireguard"], "whatever the file will say, this is there to be left"
    assert mesh_end.leave(ctx, folder, made) == mesh_end.Left(), "rented nodes take it along"


def test_every_stranger_gets_a_key_of_its_own_and_keeps_it_for_the_bootstrap_only(desk: Desk, api: Api) -> None:
    answers = {
        "n0": {"BackendState": (1, b""), "status": (1, b""), "cat >": (0, b""), "rm -f": (0, b"")},
        "n1": {"status": (0, RUNNING), "rm -f": (0, b"")},
        "n2": {"status": (0, b"{"), "cat >": (0, b""), "rm -f": (0, b"")},
    }
    nodes = Nodes(answers)
    ctx, folder = at(desk, nodes)
    with (
        pytest.raises(RuntimeError),
        mesh.joining(ctx, folder, cloud_config(mesh="tailscale"), rented("a", "b", "c")) as told,
    ):
        assert told["nexa_mesh_names"]["n0"] == hostname("c", "n0", our_tag(ctx))
        keys = {node: stdin.decode().strip() for node, _, stdin in nodes.given if stdin}
        assert sorted(keys) == ["n0", "n2"] and sorted(keys.values()) == [key for key, _ in api.keys]
        assert not any("rm -f" in command for _, command, _ in nodes.given)
        raise RuntimeError("the play failed")
    assert sorted(node for node, command, _ in nodes.given if "rm -f" in command) == ["n0", "n1", "n2"]
    words = " ".join(command for _, command, _ in nodes.given) + json.dumps(told) + "\n".join(desk.said)
    words += (folder.path / "journal.jsonl").read_text()
    assert not any(key in words for key, _ in api.keys)


def test_without_any_credentials_nothing_is_begun(desk: Desk, monkeypatch: pytest.MonkeyPatch, api: Api) -> None:
    for name in api.environ:
        monkeypatch.delenv(name)
    nodes = Nodes({"n0": {"status": (1, b""), "cat >": (0, b""), "rm -f": (0, b"")}})
    ctx, folder = at(desk, nodes)
    config = cloud_config(mesh="tailscale")
    with pytest.raises(UsageError, match="key for each node") as caught, mesh.joining(ctx, folder, config, rented("a")):
        pass
    assert "TS_AUTHKEY" in caught.value.hint
    monkeypatch.setenv("TS_AUTHKEY", "tskey-auth-given")
    with mesh.joining(ctx, folder, config, rented("a")):
        assert [stdin for _, _, stdin in nodes.given if stdin] == [b"tskey-auth-given\n"]


def test_ranks_of_own_hosts_meet_at_their_tailnet_addresses(desk: Desk) -> None:
    config = own("8.8.8.8", "8.8.4.4", mesh="tailscale", rdzv_port=29400)
    answers = {"8.8.8.8": {"tailscale ip": (0, b"100.64.0.7\n")}, "8.8.4.4": {"tailscale ip": (0, b"100.64.0.8\n")}}
    ctx, folder = at(desk, Nodes(answers))
    made = static_cluster(config, PurePath("/"))
    assert mesh.with_mesh(config, made) == made, "nobody knows the addresses yet"
    joined = mesh.joined(ctx, folder, config, made)
    assert [node.peer_address for node in joined.nodes] == ["100.64.0.7", "100.64.0.8"]
    assert joined.rdzv == "100.64.0.7:29400"


@pytest.mark.parametrize(
    ("status", "address"),
    [
        ({"BackendState": "Running", "Peer": {"a": {"TailscaleIPs": ["100.64.0.7", "fd7a::7"]}}}, "100.64.0.7"),
        ({"BackendState": "Running", "Peer": None}, "203.0.113.0"),
        ({"BackendState": "Stopped", "Peer": {"a": {"TailscaleIPs": ["100.64.0.7"]}}}, "203.0.113.0"),
        (None, "203.0.113.0"),
    ],
)
def test_rented_nodes_are_reached_over_the_tailnet_where_we_are_in_it(
    desk: Desk, status: dict[str, Any] | None, address: str
) -> None:
    local = {"tailscale": (127, b"") if status is None else (0, json.dumps(status).encode())}
    ctx, folder = at(desk, Nodes({"n0": {"tailscale ip": (0, b"100.64.0.7\n")}}, local))
    (folder.ssh / "host_keys").mkdir(parents=True)
    (folder.ssh / "host_keys" / "n0.pub").write_text("ssh-ed25519 AAAA n0\n")
    joined = mesh.joined(ctx, folder, cloud_config(mesh="tailscale"), rented("10.77.0.4"))
    assert (joined.nodes[0].address, joined.nodes[0].peer_address) == (address, "10.77.0.4")
    assert not folder.ssh_config.exists() or f"HostName {address}" in folder.ssh_config.read_text()


def test_a_node_that_does_not_answer_is_deleted_by_tag_and_name(desk: Desk, api: Api) -> None:
    nodes = Nodes({"n0": {"logout": (0, b"")}, "n1": {"logout": (255, b"")}, "n3": {"logout": (0, b"theirs\n")}})
    ctx, folder = at(desk, nodes)
    names = {f"n{index}": hostname("c", f"n{index}", our_tag(ctx)) for index in range(3)}
    files.write_json(mesh.meshes_file(folder), {"tailscale": names})
    for index, name in enumerate(names.values()):  # n2 joined, and provision was killed before cluster.json had it
        api.devices[str(index)] = {"hostname": name, "tags": ["tag:nexa"]}
    api.devices["9"] = {"hostname": hostname("c", "n1", "somebody else"), "tags": ["tag:nexa"]}
    del api.devices["0"]
    made = rented("a", "b")
    left = mesh_end.leave(ctx, folder, replace(made, nodes=(*made.nodes, replace(made.nodes[0], name="n3"))))
    assert left.told == {"logged_out": ["n0"], "deleted": ["n1", "n2"], "left_to_expire": []} and not left.undone
    assert set(api.devices) == {"9"}


@pytest.mark.parametrize("fault", ["no credentials", "the API fails"])
def test_the_end_of_a_cluster_never_waits_for_the_tailnet(
    desk: Desk, api: Api, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "no credentials":
        for name in api.environ:
            monkeypatch.delenv(name)
    api.fails["GET /api/v2/tailnet/-/devices"] = 500
    ctx, folder = at(desk, Nodes({"n0": {"logout": (1, b"")}}))
    files.write_json(mesh.meshes_file(folder), {"tailscale": {"n0": "nexa-c-0-n0"}})
    left = mesh_end.leave(ctx, folder, rented("a"))
    assert left.told == {"logged_out": [], "deleted": [], "left_to_expire": ["n0"]}
    assert any("not taken out of the tailnet: n0" in line for line in desk.said)


def test_a_cluster_without_a_mesh_has_nothing_to_leave(desk: Desk) -> None:
    ctx, folder = at(desk, Nodes({}))
    with mesh.joining(ctx, folder, cloud_config(), rented("a")) as told:
        assert told == {}
    assert mesh_end.leave(ctx, folder, rented("a")) == mesh_end.Left()


def test_a_node_without_root_is_named(desk: Desk, api: Api) -> None:
    answers = {"status": (1, b""), "cat >": (1, b"sudo: a password is required"), "rm -f": (1, b"")}
    ctx, folder = at(desk, Nodes({"n0": answers}))
    config = cloud_config(mesh="tailscale")
    said = pytest.raises(NexaError, match=r"n0: as root .*password is required")
    with said as caught, mesh.joining(ctx, folder, config, rented("a")):
        pass
    assert "sudo" in caught.value.hint
