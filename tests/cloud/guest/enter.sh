#!/bin/sh
# Makes the root of one machine and becomes its pid 1: enter.sh FOLDER LAYER HOSTNAME COMMAND…
# Runs in mount, pid and uts namespaces of its own; every mount made here ends with them.
# With an empty LAYER the machine is the one that bakes: what it writes becomes the layer FOLDER/layer.
# NEXA_BINDS: lines "SOURCE TARGET", folders of the real machine that this one may use.
set -eu
folder=$1 layer=$2 name=$3
shift 3
root=$folder/root

mkdir -p "$root"
for part in bin sbin lib lib32 lib64 libx32; do
    [ ! -L "/$part" ] || ln -sfn "usr/$part" "$root/$part"
done
for part in dev etc home mnt old opt proc root run/lock srv sys tmp usr var; do mkdir -p "$root/$part"; done
chmod 0700 "$root/root"
chmod 1777 "$root/tmp"
mount --bind "$root" "$root"

for part in usr etc var opt; do
    case $part in usr | etc) base=/$part ;; *) base= ;; esac
    if [ -n "$layer" ]; then
        upper=$folder/upper/$part lower=$layer/$part${base:+:$base}
    elif [ -n "$base" ]; then
        upper=$folder/layer/$part lower=$base
    else
        mount --bind "$folder/layer/$part" "$root/$part"
        continue
    fi
    mkdir -p "$upper" "$folder/work/$part"
    mount -t overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$folder/work/$part" overlay "$root/$part"
done

mount -t tmpfs -o mode=0755,size=1m,nosuid tmpfs "$root/dev"
for device in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 0666 "$root/dev/${device%:*}" c 1 "${device#*:}"
done
mknod -m 0666 "$root/dev/tty" c 5 0
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/net"
mknod -m 0666 "$root/dev/net/tun" c 10 200 # a tunnel is of the network namespace that it is made in
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for name_of in stdin:0 stdout:1 stderr:2; do ln -s "/proc/self/fd/${name_of#*:}" "$root/dev/${name_of%:*}"; done
mount -t devpts -o newinstance,gid=5,mode=0620,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"

# What of /proc and /sys belongs to the real machine is read-only here; /proc/sys/net is of the namespace.
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount --bind "$root/proc/sys/net" "$root/mnt"
for part in sys sysrq-trigger; do
    [ -e "$root/proc/$part" ] || continue
    mount --bind "$root/proc/$part" "$root/proc/$part"
    mount -o remount,bind,ro,nosuid,nodev,noexec "$root/proc/$part"
done
mount --move "$root/mnt" "$root/proc/sys/net"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
if [ -d "$root/sys/class/dmi/id" ]; then
    mount -t tmpfs -o size=64k tmpfs "$root/sys/class/dmi/id" # the real machine's name; the image has its own dmidecode
fi
hostname "$name"

printf '%s\n' "${NEXA_BINDS:-}" | while read -r source target; do
    [ -n "$source" ] || continue
    mkdir -p "$root$target"
    mount --bind "$source" "$root$target"
done

cd "$root"
pivot_root . old
umount -l old
rmdir old
: >run/entered # from here on it is the machine's own doing
exec setpriv --bounding-set=-sys_time,-sys_module,-sys_rawio,-syslog,-wake_alarm -- "$@"
