# What this machine has for containers with GPUs, a line key=value each. Changes nothing.
gpus=0
for device in /sys/bus/pci/devices/*; do
    { read -r vendor <"$device/vendor" && read -r class <"$device/class"; } 2>/dev/null || continue
    case $vendor$class in 0x10de0x03*) gpus=$((gpus + 1)) ;; esac
done
version_of() { dpkg-query -W -f '${db:Status-Status} ${Version}\n' "$1" 2>/dev/null | sed -n 's/^installed //p'; }
# shellcheck source=/dev/null
. /etc/os-release
echo "gpus=$gpus"
echo "docker=$(command -v dockerd || true)"
echo "toolkit=$(version_of nvidia-container-toolkit)"
echo "runtime=$(grep -q '"nvidia"' /etc/docker/daemon.json 2>/dev/null && echo nvidia)"
echo "release=$ID.$VERSION_ID"
echo "codename=$VERSION_CODENAME"
