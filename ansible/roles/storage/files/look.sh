# What disks this machine has for scratch, a line key=value each. Changes nothing. Root, since it reads the disks.
# Arguments: where scratch is, label of our file system, the image's own mount, model of the disks.
scratch=$1 label=$2 own=$3 model=$4
array=/dev/md/$label

# Anything on a disk, or anybody at it, makes it somebody else's.
is_free() { # DEVICE
    name=${1#/dev/}
    [ -b "$1" ] && [ -z "$(ls -d "/sys/block/$name/$name"p* "/sys/block/$name"/holders/* 2>/dev/null)" ] &&
        ! grep -q "^$1[p ]" /proc/mounts /proc/swaps && [ -z "$(wipefs --no-act --parsable "$1")" ] &&
        { blkid -p "$1" >/dev/null; [ $? -eq 2 ]; } # 2: it has read the disk, and there is nothing
}

# A file system of ours, and not a member of an array of that name.
is_ours() { # DEVICE
    [ "$(blkid -p -o value -s LABEL "$1")" = "$label" ] && [ "$(blkid -p -o value -s USAGE "$1")" = filesystem ]
}

free='' labelled=''
if [ -b "$array" ] && is_ours "$array"; then labelled=$array; fi
for disk in /sys/block/nvme*; do
    { read -r name <"$disk/device/model"; } 2>/dev/null || continue
    case $name in "$model"*) ;; *) continue ;; esac
    disk=/dev/${disk##*/}
    if is_free "$disk"; then free="$free $disk"; elif is_ours "$disk"; then labelled=${labelled:-$disk}; fi
done
echo "mounted=$(mountpoint -q "$scratch" && echo yes || echo no)"
echo "empty=$([ -z "$(ls -A "$scratch" 2>/dev/null)" ] && echo yes || echo no)"
echo "own=$(! mountpoint -q "$own" || echo "$own")"
echo "labelled=$labelled"
echo "array=$([ ! -b "$array" ] || echo "$array")"
echo "free=${free# }"
