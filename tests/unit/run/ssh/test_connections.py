"""ssh as the user has set it up, but for what would change a command or lend a node what is ours."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.model import Cluster, Layout, Node
from nexa_dist.run.runner import Result
from nexa_dist.run.ssh import connections
from nexa_dist.run.ssh.connections import Ssh, session

NODE = Node("n0", "front", 1)
HURT = """\
Host front
  ProxyJump jump
  IdentityFile /k
  IdentityAgent /agent
  User ann
Host *
  RequestTTY force
  RemoteCommand tmux
  PermitLocalCommand yes
  LocalForward 9000 x:1
  RemoteForward 9001 x:1
  DynamicForward 9002
  ForwardAgent yes
  ForwardX11 yes
  Tunnel yes
  LogLevel QUIET
  StrictHostKeyChecking no
  SendEnv HF_TOKEN AWS_*
  SendEnv LANG
"""


class Quiet:
    """Takes every command; a master that it is asked to end was none."""

    def __init__(self) -> None:
        self.ran: list[Sequence[str]] = []

    def run(self, argv: Sequence[str], **_: Any) -> Result:
        self.ran.append(argv)
        return Result(tuple(argv), 0)


def cluster(ssh_config: str = "") -> Cluster:
    return Cluster("c", "static", (NODE,), Layout("python3", "/s", "/h", "/d"), ssh_config=ssh_config)


def effective(ssh: Ssh) -> dict[str, str]:
    """What ssh makes of it, by `ssh -G`."""
    told = subprocess.run(ssh.argv(NODE, "-G"), capture_output=True, text=True, check=True).stdout
    return dict(line.partition(" ")[::2] for line in told.splitlines())


def test_what_helps_is_kept_and_what_hurts_is_off(tmp_path: Path) -> None:
    theirs = tmp_path / "it's [mine]"
    theirs.write_text(HURT)
    with session(Quiet(), cluster(str(theirs))) as ssh:  # type: ignore[arg-type]
        found = effective(ssh)
    kept = {"proxyjump": "jump", "identityfile": "/k", "identityagent": "/agent", "user": "ann"}
    off = {
        "requesttty": "false",
        "permitlocalcommand": "no",
        "forwardagent": "no",
        "forwardx11": "no",
        "tunnel": "false",
    }
    assert {name: found.get(name) for name in kept} == kept
    assert {name: found.get(name) for name in off} == off
    assert found["loglevel"] == "ERROR" and found["stricthostkeychecking"] == "true"
    assert found.get("remotecommand", "none") == "none" and found["clearallforwardings"] == "yes"
    assert "sendenv" not in found


def test_the_users_own_files_are_read_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text("Host front\n  ProxyJump jump\n  SendEnv HF_TOKEN\n")
    monkeypatch.setattr(connections, "USER_FILES", (str(tmp_path / "config"), "/nowhere"))
    with session(Quiet(), cluster()) as ssh:  # type: ignore[arg-type]
        found = effective(ssh)
    assert found["proxyjump"] == "jump" and "sendenv" not in found


def test_a_folder_of_connections_that_vanished_is_made_anew() -> None:
    runner = Quiet()
    with session(runner, cluster()) as ssh:  # type: ignore[arg-type]
        shutil.rmtree(ssh.sockets)
        assert ssh.run(NODE, ("true",)).code == 0
        told = os.stat(ssh.sockets)
        assert told.st_mode & 0o777 == 0o700 and Path(ssh.sockets, "config").exists()
        shutil.rmtree(ssh.sockets)
    assert not os.path.exists(ssh.sockets) and len(runner.ran) == 1


def test_open_connections_are_closed_at_the_end() -> None:
    runner = Quiet()
    with session(runner, cluster()) as ssh:  # type: ignore[arg-type]
        Path(ssh.sockets, "0123456789abcdef" * 2 + "01234567").touch()
    assert ["-Oexit" in argv for argv in runner.ran] == [True]


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("/tmp"), lambda p: p.touch(), lambda p: p.mkdir(mode=0o755)])
def test_a_folder_that_somebody_else_made_meanwhile_is_refused(make: Any) -> None:
    with session(Quiet(), cluster()) as ssh:  # type: ignore[arg-type]
        shutil.rmtree(ssh.sockets)
        path = Path(ssh.sockets)
        make(path)
        with pytest.raises(NexaError, match="taken by somebody else"):
            ssh.run(NODE, ("true",))
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.mark.parametrize("path", ['/x"\nProxyCommand touch pwned\n"', "/x%d", "/$HOME/x", "/x\\y"])
def test_a_path_that_would_be_read_as_more_is_refused(path: str) -> None:
    with pytest.raises(UsageError), session(Quiet(), cluster(path)) as ssh:  # type: ignore[arg-type]
        ssh.run(NODE, ("true",))
