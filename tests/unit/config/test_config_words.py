"""Words that people write: names of users and hosts, parts that belong elsewhere, slips of the finger."""

from __future__ import annotations

import pytest

from nexa_dist.config.cluster import ClusterConfig, Host
from nexa_dist.config.fields import Misplaced, check_endpoint, check_host, check_host_key, check_user
from nexa_dist.config.problems import meant
from nexa_dist.config.train import TrainConfig

CLUSTER, TRAIN = [*ClusterConfig.model_fields], [*TrainConfig.model_fields]


@pytest.mark.parametrize(
    "user", ["ubuntu", "john.doe", "John.Doe", "ec2-user", "_svc", "ada@lab.example.org", "u" * 64]
)
def test_a_login_name_is_taken_as_it_is(user: str) -> None:
    assert check_user(user) == user


@pytest.mark.parametrize("user", ["", ".x", "-x", "@x", "a b", "a:b", "a/b", "a$", "$(id)", "a\n", "ä", "u" * 65, "9a"])
def test_what_is_no_login_name_is_refused(user: str) -> None:
    with pytest.raises(ValueError, match="expected a login name"):
        check_user(user)


@pytest.mark.parametrize("host", ["gpu_box", "my_lab.gpu-1", "_x", "a_", "GPU_1.lan", "10.0.0.5", "fe80::1", "h" * 63])
def test_hosts_and_names_of_ssh_config(host: str) -> None:
    assert check_host(host) == host


@pytest.mark.parametrize(
    ("host", "hint"),
    [
        ("ubuntu@10.0.0.5", "write host: 10.0.0.5, user: ubuntu"),
        ("10.0.0.6:2222", "write host: 10.0.0.6, port: 2222"),
        ("john.doe@gpu_box:22", "write host: gpu_box, user: john.doe, port: 22"),
        ("ssh://ada@gpu-1.example.org:2222/", "write host: gpu-1.example.org, user: ada, port: 2222"),
        ("ssh://gpu-1:22", "write host: gpu-1, port: 22"),
        ("ada@[fe80::1]:22", "write host: fe80::1, user: ada, port: 22"),
        ("ada@fe80::1", "write host: fe80::1, user: ada"),
    ],
)
def test_a_login_or_a_port_beside_the_host_is_told_where_it_belongs(host: str, hint: str) -> None:
    with pytest.raises(Misplaced, match="expected an IPv4 or IPv6 address") as caught:
        check_host(host)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    "host", ["-oX@a", "a@-oX", "a@b@c", "a b@c", "$(id)@h", "@h", "h:", "h:x", "127.1:22", "x@127.1"]
)
def test_no_hint_names_what_is_refused_too(host: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        check_host(host)
    assert not hasattr(caught.value, "hint")


def test_an_endpoint_has_no_login() -> None:
    with pytest.raises(ValueError, match="expected an IPv4") as caught:
        check_endpoint("ubuntu@10.0.0.5:29500")
    assert not hasattr(caught.value, "hint"), "user: belongs to hosts"


@pytest.mark.parametrize(
    ("word", "words", "wanted"),
    [
        ("agrs", TRAIN, "args"),
        ("arg", TRAIN, "args"),
        ("scirpt", TRAIN, "script"),
        ("max_hous", TRAIN, "max_hours"),
        ("maxHours", TRAIN, "max_hours"),
        ("max-hours", TRAIN, "max_hours"),
        ("nodez", CLUSTER, "nodes"),
        ("regoin", CLUSTER, "region"),
        ("buget_usd", CLUSTER, "budget_usd"),
        ("budget", CLUSTER, "budget_usd"),
        ("gpu_per_node", CLUSTER, "gpus_per_node"),
        ("max_price", CLUSTER, "max_price_usd_per_hour"),
        ("subnet", CLUSTER, "subnets"),
        ("gpu", [*Host.model_fields], "gpus"),
        ("on-demand", ["spot", "on_demand", "spot_then_on_demand"], "on_demand"),
        *(
            (far, CLUSTER, "")
            for far in ("zones", "instance_type", "key_name", "sg", "x", "", "_", "disk", "cost", "to")
        ),
        *((far, TRAIN, "") for far in ("zones", "lr", "seed", "text")),
        *(("tags", [key for key in keys if key != "tags"], "") for keys in (CLUSTER, TRAIN)),
    ],
)
def test_did_you_mean_a_slip_and_never_another_meaning(word: str, words: list[str], wanted: str) -> None:
    assert meant(word, words) == wanted


def test_a_fingerprint_as_ssh_keygen_shows_it() -> None:
    print_ = "SHA256:" + "x" * 43
    for text in (print_, f"256 {print_} root@gpu-1 (ED25519)", f"3072 {print_} no comment (RSA)", f" {print_}\n"):
        assert check_host_key(text) == print_
    for text in (f"256 {print_}", f"{print_}x", f"256 {print_} a\nb (RSA)", "256 MD5:aa:bb root@gpu-1 (ED25519)"):
        with pytest.raises(ValueError, match="expected a fingerprint"):
            check_host_key(text)
