# Takes the interface down and removes its files: remove.sh INTERFACE FOLDER
set -eu
if [ -d /run/systemd/system ]; then systemctl disable --quiet --now "wg-quick@$1" || true; fi
if [ -e "/sys/class/net/$1" ]; then wg-quick down "$1" 2>&1 || ip link del "$1"; fi
rm -f "$2/$1.conf" "$2/$1.key" "$2/$1.key.new" "/run/$1.applied" "/run/$1.log"
