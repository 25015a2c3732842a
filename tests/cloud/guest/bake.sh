#!/bin/sh
# Makes the image, from inside: bake.sh REQUEST PACKAGE…; /mnt has this folder and the inputs of make_env.py.
# REQUEST is what make_env.py reads, but for the environment's own folder.
set -eu
export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root
say() { echo "bake: $*"; }
# It removes users and replaces init: on a machine's own root it would ruin that machine.
for file in bake.sh make_env.py lock.txt torch.txt; do
    [ -f "/mnt/$file" ] || { say "this runs only inside the image (scripts/region up), and /mnt/$file is not there"; exit 2; }
done
request=$1
shift

awk -F: '$3 >= 1000 && $3 < 65534 { print $1 }' /etc/passwd | while read -r user; do
    userdel "$user" 2>/dev/null # this machine's people
done
usermod -p '*' root

printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d # nothing is started while packages are set up
chmod 0755 /usr/sbin/policy-rc.d
missing=
for package in "$@"; do
    dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q '^install ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
    say "packages:$missing"
    get() {
        # shellcheck disable=SC2086 # a list of words
        apt-get install -qq -y --no-install-recommends --no-upgrade -o APT::Sandbox::User=root \
            -o Dpkg::Options::=--force-unsafe-io -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 $missing >/var/log/apt.out 2>&1
    }
    if ! get; then
        apt-get update -qq -o APT::Sandbox::User=root >/dev/null || true # one of many sources may be out of reach
        get || { tail -n 20 /var/log/apt.out >&2; exit 1; }
    fi
fi

say "settings"
for name in poweroff reboot halt shutdown; do install -m 0755 /mnt/power.sh "/usr/sbin/$name"; done
rm -f /usr/sbin/dhclient /usr/sbin/dhcpcd # the network is configured before boot, and nobody would answer it
install -m 0755 /mnt/power.sh /usr/bin/systemctl
rm -f /usr/sbin/init
install -m 0755 /mnt/init.sh /usr/sbin/init
install -m 0755 /mnt/dmidecode.sh /usr/sbin/dmidecode
install -m 0644 /mnt/cloud.cfg /etc/cloud/cloud.cfg
sed -i "s/distro: debian/distro: $(. /etc/os-release && echo "$ID")/" /etc/cloud/cloud.cfg
echo 'PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"' >/etc/environment # as Ubuntu has it
install -m 0644 /mnt/sshd_config /etc/ssh/sshd_config
find /etc/cloud/cloud.cfg.d -type f ! -name 05_logging.cfg -delete
rm -rf /etc/ssh/sshd_config.d/* /etc/ssh/ssh_host_* /etc/sudoers.d/*

say "training environment"
mkdir -p /opt/nexa/shared/envs
# As the bootstrap does: the same interpreter, the same name, the same script.
python3 -I - "$request" <<'PYTHON'
import hashlib, json, pathlib, subprocess, sys
request = json.loads(sys.argv[1])
version = "%d.%d" % sys.version_info[:2]
texts = [pathlib.Path("/mnt", name).read_text() for name in ("lock.txt", "torch.txt")]
name = hashlib.sha256("\0".join([*texts, version, request["backend"]]).encode()).hexdigest()[:16]
request["env"] = f"{request['tools']}/envs/{name}"
subprocess.run([sys.executable, "-I", "/mnt/make_env.py"], input=json.dumps(request), text=True, check=True)
pathlib.Path("/opt/python-version").write_text(version)
PYTHON
chown -R 1000:1000 /opt/nexa/shared

rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* /var/tmp/* /tmp/* "$HOME/.cache"
: >/etc/resolv.conf
: >/etc/machine-id
