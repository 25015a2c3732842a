"""What one node says and another is given: of its shape, or that node's fault."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.plan import told
from nexa_dist.plan.inventory import inventory

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ/AezfhpVr7vwAd2wQjOU/WVxD4sIo5qrO0iTwsfuzS"


def test_what_is_true_is_taken() -> None:
    assert (told.mtu("n0", "1500"), told.mtu("n0", 9001), told.port("n0", 29500)) == (1500, 9001, 29500)
    assert told.path("n0", "home", "/home/Zoë Müller's") == "/home/Zoë Müller's"
    assert told.python("n0", "3.11") == "3.11"
    assert told.host_key("n0", KEY + " comment\nmore") == KEY
    assert told.tailnet({"n0": "100.64.0.7", "n1": "100.127.0.1"}) == {"n0": "100.64.0.7", "n1": "100.127.0.1"}
    row = {"step": 40, "path": "/s/r/checkpoints/step_00000040"}
    assert told.checkpoints("n0", [row], ["/d", "/s/r/checkpoints"]) == [row]


@pytest.mark.parametrize(
    ("check", "said"),
    [
        *((told.mtu, said) for said in ("1", "65536", "1500\nPostUp = x", "10" * 4000, None, 1500.0, True, [1500])),
        *((told.port, said) for said in (0, -1, 65536, 10**30, "80 --x", 1.5, None)),
        *((told.python, said) for said in ("3", "3.11\n", "2.7", "3.11 --x", "")),
        *((told.host_key, said) for said in ("", "ssh-rsa AAAA", "* " + KEY, KEY.replace("AAAA", "A{{}"))),
    ],
)
def test_what_cannot_be_is_refused_with_the_nodes_name(check: Callable[[str, Any], Any], said: Any) -> None:
    with pytest.raises(NexaError, match=r"^n7 says") as caught:
        check("n7", said)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


@pytest.mark.parametrize("said", ["home", "", "/a\n/b", "/{{ lookup('pipe', 'id') }}", "/$HOME", "/x" * 4096, None, 5])
def test_a_path_is_one(said: Any) -> None:
    with pytest.raises(NexaError, match=r"^n7 says that its home"):
        told.path("n7", "home", said)


@pytest.mark.parametrize("said", ["10.0.0.1", "100.64.0.7", "-oProxyCommand=x", "100.64.0.9 x", "::1", ""])
def test_an_address_is_of_the_tailnet_and_of_one_node(said: str) -> None:
    with pytest.raises(NexaError, match=r"^n1 says that its address in the tailnet"):
        told.tailnet({"n0": "100.64.0.7", "n1": said})


@pytest.mark.parametrize(
    "rows",
    [
        None, {}, [5], [None], [{}], [{"step": 40}],
        [{"step": 40, "path": "/s/.."}], [{"step": 40, "path": "/s/step_00000041"}], [{"step": 40, "path": ["/s"]}],
        [{"step": -1, "path": "/s/step_-0000001"}], [{"step": 10**9, "path": "/s/step_1000000000"}],
        [{"step": "40", "path": "/etc/step_00000040"}], [{"step": True, "path": "/s/step_00000001"}],
    ],
)  # fmt: skip
def test_a_checkpoint_is_where_its_step_is(rows: Any) -> None:
    with pytest.raises(NexaError, match=r"^n3 says"):
        told.checkpoints("n3", rows, ["/s"])


@pytest.mark.parametrize("mark", ["{{ 1 }}", "{% x %}", "{# x #}"])
def test_an_inventory_holds_no_template(mark: str) -> None:
    made = Cluster("c", "local", (Node("n0", "127.0.0.11", 1),), Layout("p", "~/s", "/h", "/d"))
    for homes, each in (({"n0": f"/{mark}"}, {}), ({"n0": "/h"}, {"n0": {"nexa_python": mark}})):
        with pytest.raises(NexaError, match=r"^n0\.nexa_.* is a template"):
            inventory(made, homes, {}, each)
    with pytest.raises(NexaError, match="a template"):
        inventory(made, {"n0": "/h"}, {"nexa_images": ["a", mark]})


def test_docs_name_every_role_that_reads_what_another_host_said() -> None:
    root = Path(__file__).parents[3]
    found = {
        path.relative_to(root).parts[2]
        for folder in ("ansible/roles", "playbooks")
        for path in (root / folder).rglob("*")
        if path.suffix in (".yml", ".j2") and re.search(r"hostvars|delegate_|run_once", path.read_text())
    }
    assert found == {"wireguard", "uv_env"}, (
        "what they pass on belongs into the table of docs/SECURITY.md, and is checked"
    )
    assert "inject_facts_as_vars = False" in (root / "ansible" / "ansible.cfg").read_text()


def test_every_test_that_the_security_table_names_is_there() -> None:
    root = Path(__file__).parents[3]
    text = (root / "docs" / "SECURITY.md").read_text()
    file = ""
    for path, name in re.findall(r"`(tests/[\w/.]+\.py|…)::(\w+)`", text):
        file = file if path == "…" else path
        assert re.search(rf"^def {name}\(", (root / file).read_text(), re.MULTILINE), f"{file}::{name}"
    for path in re.findall(r"`((?:tests|terraform)/[\w/.]+\.(?:hcl|py))`", text):
        assert (root / path).exists(), path
