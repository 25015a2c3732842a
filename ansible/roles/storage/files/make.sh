# Makes one file system of the disks, and prints nothing but errors: make.sh LABEL ARRAY DEVICE…, ARRAY "" or one that is
# there already. The caller has looked that nothing is on them; both tools look again, and refuse what has something.
set -eu
label=$1 device=$2
shift 2
if [ -z "$device" ] && [ $# -gt 1 ]; then
    device=/dev/md/$label
    mdadm --create "$device" --quiet --run --level=0 --name="$label" --raid-devices=$# "$@"
fi
device=${device:-$1}
[ -z "$(wipefs --no-act --parsable "$device")" ] || { echo "$device is not empty" >&2; exit 1; }
if command -v mkfs.xfs >/dev/null; then
    mkfs.xfs -q -K -L "$label" "$device"
else
    mkfs.ext4 -q -m 0 -E nodiscard -L "$label" "$device"
fi
