from __future__ import annotations

from nexa_dist.config.cluster import ClusterConfig
from nexa_dist.ops.light import environment_hash
from nexa_dist.plan import local
from nexa_dist.plan.inventory import inventory

CONFIG = ClusterConfig(name="lab", provider="local", nodes=11, gpus_per_node=2, price_usd_per_hour=1.5, rdzv_port=29500)
PORTS = {f"n{i}": 4000 + i for i in range(11)}


def made() -> dict[str, object]:
    return local.tfvars(CONFIG, PORTS, "/w/nodes", "/w/ssh", "/usr/bin/python3")


def test_tfvars_give_each_node_an_address_of_its_own() -> None:
    nodes = made()["nodes"]
    assert isinstance(nodes, dict)
    assert nodes["n10"] == {"address": "127.0.0.21", "port": 4010, "gpus": 2}
    assert len({(n["address"], n["port"]) for n in nodes.values()}) == 11


def test_tfvars_have_the_limits_of_a_node_in_seconds() -> None:
    assert [made()[name] for name in ("max_s", "lease_s", "idle_s")] == [0, 0, 0]
    config = CONFIG.model_copy(update={"max_hours": 0.001, "lease_minutes": 2.5, "idle_minutes": 10.0})
    told = local.tfvars(config, PORTS, "/w/nodes", "/w/ssh", "python3")
    assert [told[name] for name in ("max_s", "lease_s", "idle_s")] == [4, 150, 600]


def test_cluster_and_inventory_from_terraforms_outputs() -> None:
    rows = [
        {"name": n, "address": local.address_of(i), "port": 4000 + i, "user": "u", "gpus": 2}
        for i, n in enumerate(PORTS)
    ]
    cluster = local.cluster(
        CONFIG,
        {"nodes": rows},
        ssh_config="/it's/ssh_config",
        shared="/sh",
        durable="~/d",
        env_hash="e",
        created_unix=0,
    )
    assert (cluster.world_size, cluster.usd_per_hour, cluster.rdzv) == (22, 16.5, "127.0.0.11:29500")
    assert cluster.layout.python == "/sh/envs/e/bin/python"
    listed = inventory(cluster, {n: f"/w/nodes/{n}/home" for n in PORTS}, {"nexa_python": "p"})["all"]
    assert list(listed["hosts"]) == list(PORTS)
    assert listed["hosts"]["n2"] == {
        "nexa_scratch": "/w/nodes/n2/home/scratch", "nexa_shared": "/sh", "nexa_durable": "/w/nodes/n2/home/d",
    }  # fmt: skip
    assert listed["vars"] == {"ansible_ssh_common_args": "-F '/it'\"'\"'s/ssh_config'", "nexa_python": "p"}


def test_an_environment_is_named_by_what_it_is_made_of() -> None:
    base = environment_hash(b"lock", b"torch", "3.11", "auto")
    changed = [
        (b"lock2", b"torch", "3.11", "auto"),
        (b"lock", b"t", "3.11", "auto"),
        (b"lock", b"torch", "3.12", "auto"),
    ]
    assert len({base, *(environment_hash(*parts) for parts in changed)}) == 4
