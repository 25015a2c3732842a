# What this machine has of NVIDIA's, a line key=value each. Changes nothing. Arguments: our apt preferences, PCI ids of NVSwitches.
preferences=$1 gpus=0 switches=0
shift
for device in /sys/bus/pci/devices/*; do
    { read -r vendor <"$device/vendor" && read -r class <"$device/class" && read -r id <"$device/device"; } 2>/dev/null || continue
    [ "$vendor" = 0x10de ] || continue
    case $class in 0x03*) gpus=$((gpus + 1)) ;; esac
    case " $* " in *" ${id#0x} "*) switches=$((switches + 1)) ;; esac
done
echo "gpus=$gpus"
echo "switches=$switches"
[ "$gpus" -gt 0 ] || exit 0

# Upstream's version of an installed package; nothing for one that is not, or only half, installed.
version_of() {
    dpkg-query -W -f '${db:Status-Status} ${Version}\n' "$@" 2>/dev/null |
        sed -n 's/^installed \([0-9]*:\)\{0,1\}\([^-]*\).*/\2/p' | head -n 1
}
# What is installed at our version and not held.
unheld() { # VERSION
    apt-mark showhold 2>/dev/null | sed 's/:.*//' >"$held"
    dpkg-query -W -f '${db:Status-Status} ${Version} ${Package}\n' '*nvidia*' 2>/dev/null |
        sed -n "s/^installed \([0-9]*:\)\{0,1\}$1-[^ ]* //p" | sort -u | grep -vxFf "$held"
}
yes_if() { if "$@" 2>/dev/null; then echo yes; else echo no; fi; }

said=$(timeout 60 nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>&1) || failed=yes
echo "answering=$([ -n "${failed:-}" ] || echo "$said" | sort -u | paste -sd,)"
echo "said=$(echo "$said" | head -n 1)"
echo "loaded=$(cat /sys/module/nvidia/version 2>/dev/null)"
echo "nouveau=$(yes_if test -d /sys/module/nouveau)"
packaged=$(version_of nvidia-open)
ours=$(yes_if test -e "$preferences")
echo "packaged=$packaged"
echo "ours=$ours"
held=$(mktemp) && trap 'rm -f "$held"' EXIT
echo "unheld=$([ "$ours$packaged" = "$ours" ] || unheld "$packaged" | paste -sd' ')"
echo "runfile=$(yes_if test -e /usr/bin/nvidia-uninstall)"
echo "manager=$(version_of 'nvidia-fabricmanager*')"
echo "managing=$(systemctl is-active nvidia-fabricmanager.service 2>/dev/null | head -n 1)"
echo "kernel=$(uname -r)"
echo "machine=$(uname -m)"
# shellcheck source=/dev/null
echo "release=$(. /etc/os-release && echo "$ID-$VERSION_ID")"
