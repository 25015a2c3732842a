# Makes a private key where there is none, and prints the public one: make_key.sh FILE
set -eu
umask 077
mkdir -p "${1%/*}"
[ -s "$1" ] || { wg genkey >"$1.new"; mv "$1.new" "$1"; } # renamed into place: a key that is there is whole
wg pubkey <"$1"
