"""What capture.py makes: one entry per folder beside this file."""

from __future__ import annotations

import subprocess
import time

from tests.cases.why.capture import ADDRESS, ALL, RUN, Case, Nodes, sh, spec_of

OFFLINE = {"HF_HUB_OFFLINE": "1"}
HUB = {"HF_ENDPOINT": "http://hub.internal", "HF_HUB_DISABLE_TELEMETRY": "1"}
IMDS = (
    "ip addr add 169.254.169.254/32 dev lo; setsid /opt/venv/bin/python /srv/code/imds.py </dev/null >/dev/null 2>&1 &"
)
TAILSCALE = "ip link add tailscale0 type veth peer name x0; ip link set x0 up; ip link set tailscale0 up; "


def user_stops(nodes: Nodes) -> None:
    for name in nodes.pids:
        nodes.agent(name, "stop", RUN, message={"grace_s": 5, "reason": "stopped by the user"})


def controller_leaves(nodes: Nodes) -> None:
    """Follows both nodes for a moment, then drops the connections."""
    for name in nodes.pids:
        enter = ["nsenter", "-t", str(nodes.pids[name]), *ALL, "/opt/venv/bin/python", "-S", "-E"]
        follower = subprocess.Popen(
            [*enter, "/srv/nexa/agent.pyz", "follow", RUN], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert follower.stdin
        follower.stdin.write(b'{"offsets": {}}\n\n')
        follower.stdin.flush()
        time.sleep(3)
        follower.kill()
        follower.wait()


def node_dies(nodes: Nodes) -> None:
    sh("kill -9 -1", nodes.pids["n1"])


def first_node_dies(nodes: Nodes) -> None:
    sh("kill -9 -1", nodes.pids["n0"])


def next_attempt(nodes: Nodes) -> None:
    for name in nodes.pids:
        spec = spec_of(Case("", env={"NEXA_ATTEMPT": "2"}, spec={"attempt": 2}), name)
        nodes.agent(name, "start", RUN, message={"spec": spec, "secrets": {}})


def torchrun_dies(nodes: Nodes) -> None:
    started = next(event for event in nodes.events("n1") if event["event"] == "torchrun")
    sh(f"kill -9 {started['pid']}", nodes.pids["n1"])


CASES = {
    "python_exception": Case("key_error"),
    "python_exception_chained": Case("chained", nproc=2, env={"CULPRIT": "2"}),
    "python_exception_worker": Case("worker_raises", env={"CULPRIT": "0"}),
    "python_exception_syntax": Case("", program=("-u", "broken.py")),
    "python_exception_prepare": Case("", prepare=("-u", "/srv/code/train.py", "file_not_found"), env={"CULPRIT": "0"}),
    "import_error": Case("module_not_found"),
    "import_error_name": Case("cannot_import"),
    "missing_script": Case("", program=("-u", "trian.py")),
    "usage": Case("usage"),
    "config_error": Case(
        "", program=("-u", "-m", "nexa_dist.train.launcher", "--backend", "hf", "--config", "/srv/code/none.json")
    ),
    "wrong_world": Case("", env={"NEXA_WORLD_SIZE": "4"}),
    "file_missing": Case("file_not_found"),
    "permission_denied": Case("permission"),
    "disk_full": Case("disk_full"),
    "disk_full_save": Case("disk_full_save"),
    "too_many_files": Case("too_many_files"),
    "host_oom": Case("host_memory", memory_bytes=900 << 20),
    "memory_error": Case("memory_error"),
    "memory_error_torch": Case("torch_memory"),
    "segfault": Case("segfault"),
    "bus_error": Case("bus_error"),
    "aborted": Case("aborted"),
    "killed": Case("killed"),
    "terminated": Case("terminated"),
    "shared_memory_full": Case("shared_memory"),
    "dataloader_worker": Case("worker_killed"),
    "ddp_unused_parameters": Case("unused_parameters"),
    "state_dict_mismatch": Case("state_dict"),
    "checkpoint_damaged": Case("torn_own_checkpoint"),
    "checkpoint_damaged_torch": Case("torn_checkpoint"),
    "checkpoint_damaged_safetensors": Case("torn_safetensors"),
    "cuda_not_available": Case("no_cuda"),
    "gloo_timeout": Case("waits_with_timeout", env={"GROUP_TIMEOUT_S": "5"}),
    "gloo_closed": Case("", env={"STEP_S": "3"}, after=first_node_dies, kept=("n1",), limit_s=60),
    "rendezvous_lost": Case("store_only", after=first_node_dies, kept=("n1",), limit_s=60),
    "left_early": Case("leaves_early"),
    "superseded": Case("", env={"STEP_S": "30"}, after=next_attempt),
    "sizes_differ": Case("sizes_differ"),
    "collectives_differ": Case("collectives_differ", env={"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}),
    "wrong_interface": Case("", node_env={"n1": {"GLOO_SOCKET_IFNAME": "eth7"}}),
    "gloo_refused": Case(
        "",
        shell=dict.fromkeys(
            ("n0", "n1"),
            "ip link add docker0 type veth peer name x1; ip link set x1 up; ip link set docker0 up;"
            " ip addr add 172.17.0.1/16 dev docker0",
        ),
        env={"GLOO_SOCKET_IFNAME": "docker0", "GROUP_TIMEOUT_S": "10"},
    ),
    "wrong_interface_tailscale": Case(
        "",
        shell={
            "n1": TAILSCALE + "ip addr add 100.71.3.9/32 dev tailscale0; ip route add 100.64.0.0/10 dev tailscale0",
            "n0": TAILSCALE + "ip addr add 100.64.8.2/32 dev tailscale0; ip route add 100.64.0.0/10 dev tailscale0",
        },
        env={"GLOO_SOCKET_IFNAME": "tailscale0", "GROUP_TIMEOUT_S": "10"},
    ),
    "rendezvous_timeout": Case(
        "",
        nodes=("n1",),
        rdzv=(
            "--rdzv_backend=static",
            "--node_rank=1",
            f"--master_addr={ADDRESS['n0']}",
            "--master_port=29500",
            "--rdzv_conf=timeout=8",
        ),
    ),
    "rendezvous_timeout_c10d": Case(
        "",
        nodes=("n0",),
        rdzv=(
            "--rdzv_backend=c10d",
            f"--rdzv_endpoint={ADDRESS['n0']}:29500",
            "--rdzv_id=demo-1",
            "--local_addr={address}",
            "--rdzv_conf=join_timeout=8",
        ),
    ),
    "port_taken": Case(
        "",
        nodes=("n0",),
        shell={
            "n0": "/opt/venv/bin/python -c 'import socket,time; s=socket.create_server((\"\",29500)); time.sleep(60)' &"
            " sleep 1"
        },
    ),
    "name_not_resolvable": Case(
        "",
        nodes=("n1",),
        rdzv=(
            "--rdzv_backend=static",
            "--node_rank=1",
            "--master_addr=head.cluster.internal",
            "--master_port=29500",
            "--rdzv_conf=timeout=8",
        ),
    ),
    "hub_offline": Case("hub", env={**OFFLINE, "MODEL": "acme/small"}),
    "hub_unreachable": Case("hub", env={"MODEL": "acme/small", "HF_ENDPOINT": "http://hub.example.org"}),
    "hub_not_found": Case("hub", env={**HUB, "MODEL": "acme/missing"}),
    "hub_gated": Case("hub", env={**HUB, "MODEL": "acme/gated"}),
    "hub_unauthorized": Case("hub", env={**HUB, "MODEL": "acme/private", "HF_TOKEN": "hf_wrong"}),
    "wandb_login": Case("no_wandb_login"),
    "model_missing": Case("no_model"),
    "model_missing_tokenizer": Case("no_tokenizer"),
    "dataset_missing": Case("no_dataset"),
    "data_differs": Case("data_differs"),
    "port_of_program": Case("own_port"),
    "no_dns": Case("no_dns"),
    "nccl_without_gpu": Case("nccl"),
    "weights_only": Case("more_than_weights"),
    "lfs_pointer": Case("pointer"),
    "no_compiler": Case("no_compiler"),
    "library_missing": Case("no_library"),
    "cloud_credentials": Case("no_credentials"),
    "child_killed": Case("child_killed"),
    "child_lost": Case("child_lost"),
    "no_main_guard": Case("", program=("-u", "unguarded.py")),
    "distributed_checkpoint": Case("sharded_save"),
    "illegal_instruction": Case("illegal_instruction"),
    "disk_quota": Case("quota"),
    "storage_failed": Case("stale"),
    "peer_lost": Case("ring_broken"),
    "peer_late": Case("ring_late"),
    "hub_busy": Case("hub", env={**HUB, "MODEL": "acme/busy"}),
    "unknown": Case("exit_three"),
    "completed_nan": Case("nan_loss"),
    "deadline": Case("", env={"STEP_S": "5"}, spec={"deadline_in_s": 30}),
    "stopped_by_user": Case("", env={"STEP_S": "5"}, after=user_stops),
    **{
        name: Case("gpu", env={"TEXT": f"/srv/code/texts/{name}.text"})
        for name in (
            "cuda_oom",
            "cuda_driver_old",
            "cuda_not_available_driver",
            "cuda_no_kernel_image",
            "cuda_device_assert",
            "cuda_error",
            "driver_mismatch",
            "fabric_manager",
            "extension_not_built",
            "built_for_another",
            "certificate_refused",
            "gpu_hardware",
            "gpu_missing",
            "gpu_shared",
            "nccl_timeout",
            "nccl_error",
            "nccl_remote",
            "wrong_interface_nccl",
            "shared_memory_full_nccl",
        )
    },
    "hang": Case("stuck", spec={"hang_timeout_s": 6.0}),
    "hang_frozen": Case("frozen", spec={"hang_timeout_s": 6.0}),
    "torchrun_killed": Case("", env={"STEP_S": "3"}, after=torchrun_dies),
    "spot_notice": Case("", env={"STEP_S": "4"}, shell={"n1": IMDS}, spec={"spot": True}),
    "disconnected": Case("", env={"STEP_S": "60"}, spec={"on_disconnect": "kill"}, after=controller_leaves, limit_s=60),
    "node_gone": Case("", env={"STEP_S": "3"}, after=node_dies, limit_s=40, cause="node n1: no word for 62 s"),
}
