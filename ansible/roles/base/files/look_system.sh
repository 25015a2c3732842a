# What this node's system lacks, and what it has, a line each. Changes nothing. Arguments: the offset that its clock may have,
# and the kernel's settings, "KEY VALUE" each.
most=$1
shift

# In a container much of /proc/sys cannot be set by anybody: such a value is as good as it gets.
settable() {
    [ -e "$1" ] && [ $((0$(stat -c %a "$1") & 0200)) != 0 ] &&
        awk -v path="$1" 'index(path, $2) == 1 && length($2) >= best { best = length($2); ro = $4 ~ /^ro(,|$)/ }
            END { exit ro }' /proc/mounts
}
for setting do
    key=${setting%% *}
    path=/proc/sys/$(echo "$key" | tr . /)
    [ "$(tr -s '\t ' ' ' 2>/dev/null <"$path")" = "${setting#* }" ] || ! settable "$path" || echo "sysctl $key"
done

if [ -d /run/cloud-init ] && [ ! -e /run/cloud-init/result.json ]; then echo cloud-init; fi
if [ -d /run/systemd/system ]; then
    for timer in apt-daily.timer apt-daily-upgrade.timer; do
        systemctl is-enabled --quiet "$timer" 2>/dev/null && ! systemctl is-active --quiet "$timer" && echo "timer $timer"
    done
    [ "$(timedatectl show --property=NTPSynchronized --value)" = yes ] || echo clock
    chronyc -n -c tracking 2>/dev/null | awk -F, -v most="$most" '$5 > most || -$5 > most { print "clock" }'
fi

# For the playbook: roles for what is not there are not even begun.
for device in /sys/bus/pci/devices/*; do
    { read -r vendor <"$device/vendor" && read -r class <"$device/class" && read -r id <"$device/device"; } 2>/dev/null || continue
    case $vendor$class in 0x10de0x03*) echo has gpu ;; esac
    case $vendor$id in 0x1d0f0xefa*) echo has efa ;; esac
done
for model in /sys/block/nvme*/device/model; do
    { read -r name <"$model"; } 2>/dev/null || continue
    case $name in 'Amazon EC2 NVMe Instance Storage'*) echo has instance store ;; esac
done
