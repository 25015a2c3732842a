"""The role base on a machine whose system is ours to set up, and on one where it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.roles.rig import Deb, Host, converges, role

pytestmark = pytest.mark.e2e
FOLDERS = ["/opt/nexa/scratch", "/home/ubuntu/shared", "/home/ubuntu/durable"]
CAP_SYS_RESOURCE = 24
LOCK = """
import fcntl, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(file, fcntl.LOCK_EX)
print(os.getpid(), flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.long("variant of a role")
def test_settings_hold_in_the_next_session(new_host: Callable[[], Host]) -> None:
    host = new_host()
    tasks = role("base", base_folders=FOLDERS, base_system=True, base_nofile=4321)
    assert host.said("ulimit -n") != "4321"
    first = converges(host, tasks)
    assert "Write limits, kernel settings and apt's exceptions" in first.tasks
    host.close()
    assert host.said("ulimit -n") == "4321"
    if int(host.root("sed -n 's/^CapEff:.//p' /proc/self/status"), 16) >> CAP_SYS_RESOURCE & 1:
        assert host.said("ulimit -l") == "unlimited"  # without the capability nobody on the machine may raise a limit
    assert host.said("cat /proc/sys/net/ipv4/tcp_rmem").split() == ["4096", "131072", "67108864"]
    said = host.said("apt-config dump Unattended-Upgrade::Package-Blacklist")
    assert '"nvidia-";' in said and '"libnvidia-";' in said
    # What somebody changes afterwards is set again, and only that.
    host.root("sysctl -q -w net.ipv4.tcp_wmem='4096 16384 4194304'")
    assert host.play(tasks).tasks == ("Set what the kernel runs with",)


@pytest.mark.long("variant of a role")
def test_where_the_system_is_not_ours_only_folders_are_made(new_host: Callable[[], Host]) -> None:
    host = new_host()
    before = host.root("find /etc -newer /run/sshd.pid -type f | sort")
    converges(host, role("base", base_folders=FOLDERS))
    assert host.root("find /etc -newer /run/sshd.pid -type f | sort") == before
    assert host.said("stat -c '%a %U' durable") == "700 ubuntu"


@pytest.mark.long("variant of a role")
def test_a_holder_of_apts_lock_is_named_and_waited_for(new_host: Callable[[], Host]) -> None:
    host = new_host()
    host.repository([Deb("nexa-wanted", "1.0", files={"/usr/bin/nexa-wanted": "#!/bin/sh\n"})])
    host.root("echo 'deb [trusted=yes] file:/srv/debs ./' >/etc/apt/sources.list")
    wanted = [{"package": "nexa-wanted", "check": "command -v nexa-wanted"}]
    more = {"base_folders": FOLDERS, "base_requirements": wanted, "base_apt_poll_s": 1}
    host.put("/srv/hold.py", LOCK.encode())

    def hold(path: str) -> str:
        host.root(f"rm -f /tmp/held; setsid python3 /srv/hold.py {path} 600 >/tmp/held 2>&1 &")
        return host.said("until grep . /tmp/held; do sleep 0.1; done")

    pid = hold("/var/lib/dpkg/lock-frontend")
    done = host.play(role("base", **more, base_apt_wait_s=3), code=2)
    assert f"apt is locked by pid {pid} (python3 /srv/hold.py /var/lib/dpkg/lock-frontend 600)" in done.out
    host.root(f"kill {pid}")

    pid = hold("/var/lib/apt/lists/lock")
    until = "FAILED - RETRYING: [node]: Wait until nobody else holds apt's locks"
    done = host.play(role("base", **more), when={until: lambda: host.root(f"kill {pid}")})
    assert until in done.out
    assert done.tasks == ("Install packages", "Make the missing folders")


@pytest.mark.long("variant of a role")
def test_a_killed_installation_is_finished(new_host: Callable[[], Host]) -> None:
    host = new_host()
    slow = "#!/bin/sh\n[ -e /srv/second ] || { touch /srv/second; echo $PPID >/srv/dpkg; sleep 600; }\n"
    files = {"/usr/bin/nexa-wanted": "#!/bin/sh\n"}
    other = Deb("nexa-other", "1.0", files={"/usr/bin/nexa-other": "#!/bin/sh\n"})
    host.repository([Deb("nexa-slow", "1.0", files=files, postinst=slow), other])
    host.root("echo 'deb [trusted=yes] file:/srv/debs ./' >/etc/apt/sources.list; apt-get update -qq")
    host.root(
        """setsid apt-get install -qq -y nexa-slow >/dev/null 2>&1 &
        n=0; until [ -s /srv/dpkg ] || [ $n -gt 1200 ]; do sleep 0.1; n=$((n + 1)); done
        kill -9 $(cat /srv/dpkg) $!
        wait $! || true
        [ -n "$(dpkg --audit)" ]"""
    )
    wanted = [{"package": "nexa-other", "check": "command -v nexa-other"}]
    done = host.play(role("base", base_folders=FOLDERS, base_requirements=wanted, base_apt_poll_s=1))
    assert "Finish what a killed installation left" in done.tasks
    assert (
        host.said("dpkg --audit; dpkg-query -W -f '${db:Status-Status} ' nexa-slow nexa-other") == "installed installed"
    )
