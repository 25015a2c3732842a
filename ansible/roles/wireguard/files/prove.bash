# Waits for a handshake with every peer, and says which have none: prove.bash INTERFACE LIMIT_S ADDRESS…
name=$1 limit=$((SECONDS + $2)); shift 2
while :; do
    silent=
    for peer do
        echo >"/dev/udp/$peer/9" # one packet: without any there is no handshake
        told=$(wg show "$name" dump | awk -v ip="$peer/32" '$4 == ip { print $5 }')
        [ "${told:-0}" -gt $(($(date +%s) - 180)) ] || silent="$silent $peer"
    done 2>/dev/null
    [ -n "$silent" ] || exit 0
    [ "$SECONDS" -lt "$limit" ] || break
    sleep 0.2
done
wg show "$name" endpoints >&2
echo "no handshake with$silent: is UDP port $(wg show "$name" listen-port) open between the hosts?" >&2
exit 1
