# What this machine has of EFA, a line key=value each. Changes nothing.
devices=0
for device in /sys/bus/pci/devices/*; do
    { read -r vendor <"$device/vendor" && read -r id <"$device/device"; } 2>/dev/null || continue
    case $vendor$id in 0x1d0f0xefa[0-3]) devices=$((devices + 1)) ;; esac
done
echo "devices=$devices"
[ "$devices" -gt 0 ] || exit 0
echo "version=$(sed -n 's/.*EFA installer version: *\([0-9.]*\).*/\1/p' /opt/amazon/efa_installed_packages 2>/dev/null)"
said=$(timeout 60 /opt/amazon/efa/bin/fi_info -p efa -t FI_EP_RDM 2>&1)
echo "answering=$(echo "$said" | sed -n 's/^ *domain: *//p' | sort -u | wc -l)"
echo "said=$(echo "$said" | tail -n 1)"
echo "ptrace=$(cat /proc/sys/kernel/yama/ptrace_scope 2>/dev/null)"
