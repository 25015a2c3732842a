"""cluster.yaml and train.yaml as a user writes them: what is accepted, and what every mistake says."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from nexa_dist.config.load import changed_train, kind_of, load_cluster, load_train, resolved
from nexa_dist.config.train import TrainConfig
from nexa_dist.errors import ConfigError

LOCAL = "name: x\nprovider: local\nnodes: 2\ngpus_per_node: 2\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.yaml"


def said(path: Path, text: str, *overrides: str, load: Any = load_cluster) -> list[str]:
    path.write_text(dedent(text), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return [str(problem).removeprefix(f"{path.parent}/") for problem in caught.value.problems]


def test_own_hosts_keep_their_gpus_ports_and_names(path: Path) -> None:
    path.write_text("cluster:\n- {host: B.example, gpus: 4}\n- {host: '::1', gpus: 2, name: last, port: 2222}\n")
    config = load_cluster(path)
    assert (config.name, config.provider, config.gpus, config.node_names) == ("c", "static", (4, 2), ("n0", "last"))
    assert (config.cluster[1].port, config.backend, config.rdzv_backend) == (2222, "torch.distributed", "static")


def test_hosts_to_be_made(path: Path) -> None:
    path.write_text(
        "name: 8gpu\nprovider: aws\nnodes: 2\ngpus_per_node: 4\nmarket: spot_then_on_demand\nmax_hours: 6\n"
        "offers: [{type: p4d.24xlarge, zone: us-east-1a}, {type: g6e.12xlarge}]\nbudget_usd: 50\nmesh: tailscale\n"
    )
    config = load_cluster(path)
    assert (config.gpus, config.node_names, config.budget_usd) == ((4, 4), ("n0", "n1"), 50.0)
    assert [offer.type for offer in config.offers if not isinstance(offer, str)] == ["p4d.24xlarge", "g6e.12xlarge"]


def test_ssh_config_starts_at_the_file(path: Path) -> None:
    path.write_text("cluster: [{host: a, gpus: 1}]\nssh_config: ssh/config\n")
    assert load_cluster(path).ssh_config == str(path.parent / "ssh" / "config")
    assert load_cluster(path, ["ssh_config=/etc/cfg"]).ssh_config == "/etc/cfg"


def test_every_fault_at_once(path: Path) -> None:
    text = """\
        name: x
        provder: local
        nodes: "2"
        gpus_per_node: 0
        mesh: tailscail
        market: no
        """
    assert said(path, text) == [
        "c.yaml:1: neither `cluster` (your own hosts) nor `provider` is given "
        "(hint: `nexa init` writes an example of both forms)",
        "c.yaml:2: provder: unknown key (hint: did you mean provider?)",
        "c.yaml:3: nodes: expected a whole number, found '2' (hint: write it without quotes)",
        "c.yaml:4: gpus_per_node: expected at least 1, found 0",
        "c.yaml:5: mesh: expected 'tailscale', 'wireguard' or 'none', found 'tailscail' "
        "(hint: did you mean tailscale?)",
        "c.yaml:6: market: no is true or false to some YAML readers and a word to others "
        '(hint: write true or false, or quote the word: "no")',
    ]


def test_each_fault_of_a_host_is_told_with_its_line(path: Path) -> None:
    text = """\
        cluster:
          - {host: -oProxyCommand=x, gpu: 4}
          - {host: Gpu-1, gpus: 1, port: [1]}
          - {host: gpu-1, gpus: 1}
          - host: GPU-1
            gpus: true
            name: n1
        nodes: 2
        """
    assert said(path, text) == [
        "c.yaml:2: cluster[0].host: expected an IPv4 or IPv6 address, or a host name "
        "(letters, digits, '-', '_' and '.'), found '-oProxyCommand=x'",
        "c.yaml:2: cluster[0].gpus: this key is missing (hint: Ranks (processes) on this host, one a GPU; 1 to 64.)",
        "c.yaml:2: cluster[0].gpu: unknown key (hint: did you mean gpus?)",
        "c.yaml:3: cluster[1].port: expected a whole number, found a list of 1",
        "c.yaml:5: cluster[3].host: the same host and port as cluster[2] (hint: remove one)",
        "c.yaml:5: cluster[3]: the same name as cluster[1]: 'n1' (hint: rename one)",
        "c.yaml:6: cluster[3].gpus: expected a whole number, found true",
        "c.yaml:8: nodes: means nothing for your own hosts (provider static) (hint: remove it)",
    ]


def test_a_word_in_the_place_of_a_section_is_shown_as_one(path: Path) -> None:
    assert [
        line.partition("(hint: ")[2] for line in said(path, "cluster: [ubuntu@10.0.0.5, 10.0.0.6:22, gpu_1, -o]\n")
    ] == [
        "write {host: 10.0.0.5, user: ubuntu, gpus: …})",
        "write {host: 10.0.0.6, port: 22, gpus: …})",
        "write {host: gpu_1, gpus: …})",
        "",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: x\nprovider: local\n",
         "c.yaml:1: nodes: this key is missing (hint: Number of nodes to make, 1 to 64.)"),
        ("provider: static\nname: x\n", "c.yaml:1: cluster: this key is missing "
         "(hint: Your own hosts, in rank order: rank 0 is on the first.)"),
        (LOCAL + "market: spot\n", "c.yaml:5: market: means nothing for provider local (hint: remove it)"),
        (LOCAL + "budget_usd:\n", "c.yaml:5: budget_usd: the value is empty (hint: give a value, or remove the key)"),
        (LOCAL + "rdzv: a:1\n", "c.yaml:5: rdzv: means nothing for provider local "
         "(hint: use rdzv_port: the address is not known before the nodes are made)"),
        ("cluster: [{host: a, gpus: 1}]\nprovider: aws\n", "c.yaml:2: provider: aws makes its own hosts, "
         "but `cluster` lists yours (hint: remove provider (or say static), or remove cluster)"),
        ("cluster: [{host: a, gpus: 1}]\nprice_usd_per_hour: 1\n", "c.yaml:2: price_usd_per_hour: means nothing for "
         "your own hosts (provider static) (hint: give price_usd_per_hour to each host of `cluster`)"),
        ("cluster: [{host: a, gpus: 1}]\nrdzv: a:1\nrdzv_port: 2\n",
         "c.yaml:3: rdzv_port: `rdzv` already gives the port (hint: remove one of the two)"),
        ("cluster: [{host: a, gpus: 1, user: }]\n",
         "c.yaml:1: cluster[0].user: the value is empty (hint: give a value, or remove the key)"),
        ("script: x.py\nname: x\n", "c.yaml:1: this is a train.yaml (`script`), and a cluster.yaml is needed here"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(path: Path, text: str, problem: str) -> None:
    assert problem in said(path, text)


def test_an_override_sets_the_key_it_names(path: Path) -> None:
    path.write_text("cluster:\n- {host: a, gpus: 1}\n- {host: b, gpus: 1}\n")
    config = load_cluster(path, ["cluster.0.gpus=2", "cluster[1].gpus=3", "name=other", "max_hours=1.5"])
    assert (config.gpus, config.name, config.max_hours) == ((2, 3), "other", 1.5)


def test_overrides_that_fail_name_themselves(path: Path) -> None:
    assert said(path, LOCAL, "nodez=3", "nodes=x", "nodes.0=1", "name=*a", "boot_timeout_s=") == [
        "--set nodes.0=1: nodes is a single value; it has no 0",
        "--set name=*a: alias '*a' stands for nothing before it (hint: quote it if it is text)",
        "--set boot_timeout_s=: boot_timeout_s: the value is empty (hint: give a value, or remove the key)",
        "--set nodes=x: nodes: expected a whole number, found 'x'",
        "--set nodez=3: nodez: unknown key (hint: did you mean nodes?)",
    ]


def test_messages_hold_no_secret(path: Path) -> None:
    text = "name: x\nscript: a.py\nenv: {API_KEY: 12345678}\nexperiment: hf_abcdefghijklmnop!\n"
    found = said(path, text, "env.HF_TOKEN=5550199", "env.B=tskey-auth-abc=", "wandb_api_key=hunter2", load=load_train)
    assert "12345678" not in str(found) and "5550199" not in str(found) and "hunter2" not in str(found)
    assert "c.yaml:3: env.API_KEY: expected text, found ***" in str(found)
    assert "hf_abc" not in str(found) and "tskey-auth" not in str(found)


def test_overrides_of_a_train_file_change_what_they_name(path: Path) -> None:
    path.write_text("name: x\nscript: a.py\nargs: [--lr, '5e-4']\nwandb: off\n")
    config = load_train(path, ["wandb=offline", 'env.A="1"', "args.1=x"])
    assert (config.wandb, config.env, config.args) == ("offline", {"A": "1"}, ("--lr", "x"))
    assert load_train(path).wandb == "off"


def test_a_word_for_a_program_needs_no_quotes(path: Path) -> None:
    path.write_text("script: a.py\nargs: [--lr, '5e-4']\n")
    odd = ("3e-4", "60", "0x10", "1_000", "null", "yes", "2026-01-01", "1:30", "*.txt", "{a}", "--flag", "a: b", "nan")
    for word in odd:
        config = load_train(path, [f"args.1={word}", f"env.A={word}", f"args+={word}"])
        assert (config.args, config.env) == (("--lr", word, word), {"A": word})
    assert load_train(path, ['args.1="60"', "experiment=5"]).args == ("--lr", "60")
    assert load_train(path, ["experiment=5"]).experiment == "5"
    assert load_train(path, ["max_hours=2", "wandb=offline"]).max_hours == 2.0


def test_a_list_is_replaced_and_added_to(path: Path) -> None:
    path.write_text("script: a.py\nargs: [--lr, '5e-4']\ntags: [x]\n")
    config = load_train(path, ["args=[--steps, 60, '--a b']", "args+=--more", "tags+=y", "tags.2=z", "files+=data"])
    assert config.args == ("--steps", "60", "--a b", "--more")
    assert (config.tags, config.files) == (("x", "y", "z"), ("data",))
    assert load_train(path, ["args=[]"]).args == ()
    assert load_train(path, ["args.0=x"], ["--lr", "3e-4"]).args == ("x", "5e-4", "--lr", "3e-4")
    path.write_text("script: a.py\n")
    assert load_train(path, ["args.0=x"], ["y"]).args == ("x", "y")
    assert load_train(path, ["args+=x", "env.A=1"]).args == ("x",)
    for wrong in ("args.4=x", "name+=x", "args=x", "args=[[a]]", "args=[a", "max_hours=[1]"):
        assert "--set" in str(said(path, path.read_text(), wrong, load=load_train))


def test_a_training_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "My Run_2.yaml"
    path.write_text("script: a.py\n")
    assert load_train(path).name == "my-run-2"
    assert load_train(path, ["name=x"]).name == "x"
    assert TrainConfig.model_validate({"script": "src/Fine_Tune.py"}).name == "fine-tune"
    assert TrainConfig.model_validate({"module": "a.b.sft"}).name == "a-b-sft"


def test_a_recorded_training_is_changed_as_it_is_asked(path: Path) -> None:
    path.write_text("script: a.py\nargs: [--steps, '30']\nenv: {A: '1'}\n")
    data = load_train(path).model_dump(mode="json") | {"hang_timeout_s": None}
    config = changed_train(data, "r", ["args.1=60", "max_hours=2"], ["--x"])
    assert (config.args, config.env, config.max_hours) == (("--steps", "60", "--x"), {"A": "1"}, 2.0)
    assert data["args"] == ["--steps", "30"] and config.hang_timeout_s is None
    with pytest.raises(ConfigError, match="unknown key"):
        changed_train(data, "r", ["arg.1=60"])


def test_secrets_are_names_and_never_values(path: Path) -> None:
    assert load_train(path_with(path, "secrets: [MY_API_KEY]")).secrets == ("MY_API_KEY",)
    for line in ("secrets: [hunter2-value]", "secrets: [AWS_SECRET_ACCESS_KEY]", "secrets: [NEXA_X, PATH]",
                 "secrets: [A]\nenv: {A: b}"):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            load_train(path_with(path, line))
        assert "hunter2" not in str(caught.value)
    assert resolved(load_train(path_with(path, "secrets: [MY_API_KEY]")))["secrets"] == ["MY_API_KEY"]


def path_with(path: Path, line: str) -> Path:
    path.write_text(f"script: a.py\n{line}\n")
    return path


def test_train_faults(path: Path) -> None:
    text = """\
        name: x
        backend: hf
        trainer: {step: 5, batch_size: "8", precision: bf61, save_every: true}
        env: {A: 1, B: on}
        """
    assert said(path, text, load=load_train) == [
        "c.yaml:3: trainer.steps: this key is missing (hint: Length of the training, in optimizer steps.)",
        "c.yaml:3: trainer.batch_size: expected a whole number, found '8' (hint: write it without quotes)",
        "c.yaml:3: trainer.precision: expected 'fp32' or 'bf16', found 'bf61' (hint: did you mean bf16?)",
        "c.yaml:3: trainer.save_every: expected a whole number, found true",
        "c.yaml:3: trainer.step: unknown key (hint: did you mean steps?)",
        "c.yaml:4: env.B: on is true or false to some YAML readers and a word to others "
        '(hint: write true or false, or quote the word: "on")',
        'c.yaml:4: env.A: expected text, found 1 (hint: quote it: "1")',
    ]


def test_train_json_as_the_controller_writes_it(path: Path) -> None:
    path.write_text("name: x\nscript: 'dir \U0001f600/a.py'\nargs: ['no', \"a\\nb\"]\nmax_hours: 2\n")
    config = load_train(path)
    again = path.with_name("train.json")
    again.write_text(json.dumps(config.model_dump(mode="json")))
    assert load_train(again) == config


def test_many_faults_are_counted(path: Path) -> None:
    found = said(path, LOCAL + "".join(f"k{i}: 1\n" for i in range(500)))
    assert len(found) == 51 and found[-1] == "c.yaml: and 450 more problems"


def test_resolved_loads_again(path: Path) -> None:
    for text in (
        LOCAL,
        "cluster: [{host: a, gpus: 1}]\nssh_config: x\n",
        LOCAL.replace("local", "aws") + "max_hours: 6\n",
    ):
        path.write_text(text)
        config = load_cluster(path)
        again = path.with_name("again.json")
        again.write_text(json.dumps(resolved(config)))
        assert load_cluster(again) == config


def test_a_files_keys_tell_cluster_from_train(path: Path) -> None:
    for text, kind in (
        (LOCAL, "cluster"),
        ("backend: hf\nname: x\nargs: []\n", "train"),
        ("cluster: 1\nbackend: x\n", "cluster"),
    ):
        path.write_text(text)
        assert kind_of(path) == kind
