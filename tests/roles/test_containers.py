"""The roles container_toolkit and docker_images with stub packages and a stub of docker."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.roles.rig import FOLDER, Deb, Host, bootstrap_variables, converges, role

pytestmark = pytest.mark.e2e
TOOLKIT = (
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
)
CTK = """#!/bin/sh
[ "$*" = "runtime configure --runtime=docker" ] || exit 2
mkdir -p /etc/docker
echo '{"log-driver": "local", "runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}}' >/etc/docker/daemon.json
"""
DOCKER = """#!/bin/sh
case $1 in
    image) grep -qxF "$3" /srv/images 2>/dev/null ;;
    pull) echo "$3" >>/srv/images && echo "$3" ;;
    *) exit 2 ;;
esac
"""
IMAGE = f"docker.io/library/debian@sha256:{'ab' * 32}"


def stage(host: Host, version: str, docker: str) -> dict[str, Any]:
    host.sysfs({"bus/pci/devices/0000:00:01.0/vendor": "0x10de", "bus/pci/devices/0000:00:01.0/class": "0x030200"})
    host.systemd()
    _, release, codename = host.said(". /etc/os-release && echo x $ID.$VERSION_ID $VERSION_CODENAME").split()
    end = f"-1~{release}~{codename}"
    debs = [Deb(name, v) for name in TOOLKIT[1:] for v in (version, "9.0-1")]
    debs += [Deb(TOOLKIT[0], v, files={"/usr/bin/nvidia-ctk": CTK}) for v in (version, "9.0-1")]
    unit = {"/lib/systemd/system/docker.service": "[Unit]\n", "/usr/bin/dockerd": "#!/bin/sh\n"}
    debs += [Deb("docker-ce", f"5:{docker}{end}", files=unit), Deb("docker-ce-cli", f"5:{docker}{end}")]
    host.repository([*debs, Deb("containerd.io", f"2.3.5{end}")])
    host.put("/srv/key", b"a key", "0644")
    # Docker's repository has suites and components: the same packages, where apt looks for them.
    host.root(
        f"""d={FOLDER}/dists/{codename}/stable/binary-$(dpkg --print-architecture)
        mkdir -p $d && sed 's|^Filename: ./|Filename: |' {FOLDER}/Packages >$d/Packages
        printf 'Suite: x\\nComponents: stable\\nSHA256:\\n %s %s stable/binary-%s/Packages\\n' \
            $(sha256sum <$d/Packages | cut -d' ' -f1) $(stat -c %s $d/Packages) $(dpkg --print-architecture) \
            >{FOLDER}/dists/{codename}/Release"""
    )
    key = {"key": "file:///srv/key", "key_sha256": hashlib.sha256(b"a key").hexdigest()}
    own = {f"container_toolkit_{name}": text for name, text in key.items()}
    own |= {f"container_toolkit_docker_{name}": text for name, text in key.items()}
    places = {"repository": f"file:{FOLDER}/", "docker_repository": f"file:{FOLDER}/"}
    own |= {f"container_toolkit_{name}": text for name, text in places.items()}
    return bootstrap_variables("container_toolkit") | own | {"container_toolkit_releases": [release]}


@pytest.mark.long("a role with stubs of its packages; no test cluster needs it")
def test_docker_gets_the_pinned_toolkit_and_its_runtime(new_host: Callable[[], Host]) -> None:
    host = new_host()
    variables = stage(host, "1.20.1-1", "29.8.0")
    first = converges(host, role("container_toolkit", **variables))
    assert first.tasks[-2:] == ("Give Docker the runtime", "Restart Docker")
    said = host.said("dpkg-query -W -f '${Version} ' " + " ".join(TOOLKIT))
    assert said.split() == ["1.20.1-1"] * 4, "and not the newest of the repository"
    assert host.said("dpkg-query -W -f '${Version}' docker-ce").startswith("5:29.8.0-1~")
    assert host.said("systemctl is-active docker") == "active"
    # What is there stays as it is.
    host.root("rm /etc/docker/daemon.json")
    assert host.play(role("container_toolkit", **variables)).tasks == ("Give Docker the runtime", "Restart Docker")


@pytest.mark.long("a role with stubs of its packages; no test cluster needs it")
def test_images_are_pulled_once_and_only_by_digest(new_host: Callable[[], Host]) -> None:
    host = new_host()
    host.put("/usr/local/bin/docker", DOCKER.encode())
    first = converges(host, role("docker_images", docker_images_list=[IMAGE]))
    assert first.tasks == ("Pull what is missing",)
    assert host.said("cat /srv/images") == IMAGE
    done = host.play(role("docker_images", docker_images_list=["debian:12"]), code=2)
    assert "debian:12" in done.out and "NAME@sha256:" in done.out
