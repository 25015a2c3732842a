# Makes the interface what its file says: apply.sh INTERFACE FOLDER ADDRESS MTU
set -eu
name=$1 folder=$2 address=$3 mtu=$4
if [ -d /run/systemd/system ]; then unit=wg-quick@$name; systemctl enable --quiet "$unit"; else unit=; fi
up() {
    if [ -n "$unit" ]; then
        systemctl restart "$unit" || { journalctl -n 20 --no-pager -u "$unit"; exit 1; }
    else
        wg-quick up "$name" >"/run/$name.log" 2>&1 || { cat "/run/$name.log"; exit 1; }
    fi
}
if [ ! -e "/sys/class/net/$name" ]; then
    up
elif [ "$(cat "/sys/class/net/$name/mtu")" = "$mtu" ] && ip -4 -o addr show dev "$name" | grep -qF " $address "; then
    # Without the key in its input wg would take the interface's key away.
    { printf '[Interface]\nPrivateKey = %s\n' "$(cat "$folder/$name.key")"; wg-quick strip "$name"; } |
        wg syncconf "$name" /dev/stdin
    sha256sum <"$folder/$name.conf" >"/run/$name.applied"
else
    [ -z "$unit" ] || systemctl stop "$unit"
    [ ! -e "/sys/class/net/$name" ] || wg-quick down "$name" 2>&1
    up
fi
