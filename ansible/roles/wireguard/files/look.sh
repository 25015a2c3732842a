# What this host has of WireGuard, a line each, an empty one for nothing: packages that it lacks, its public key, the sums of
# the configuration in its file and of the one that was applied. Changes nothing: look.sh INTERFACE FOLDER
name=$1 folder=$2
tools=
for tool in wg wg-quick; do command -v "$tool" >/dev/null || tools=wireguard-tools; done
# Asked of the kernel itself, in a network of its own that ends with the question.
unshare --net ip link add nexa type wireguard 2>/dev/null || command -v wireguard-go >/dev/null || tools="$tools wireguard-go"
key='' file='' up=''
[ ! -s "$folder/$name.key" ] || [ -n "$tools" ] || key=$(wg pubkey <"$folder/$name.key")
[ ! -e "$folder/$name.conf" ] || file=$(sha256sum <"$folder/$name.conf")
[ ! -e "/sys/class/net/$name" ] || up=$(cat "/run/$name.applied" 2>/dev/null)
printf '%s\n' "$tools" "$key" "${file%% *}" "${up%% *}" end
