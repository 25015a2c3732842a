#!/bin/sh
# Stands for Tailscale's program on a test machine: writes down how it was called and with which key, in /var/lib/stub.
set -u
umask 0
cd /var/lib/stub || exit 9
link() { # the address is real, and the other machine answers for its own
    ip tuntap add tailscale0 mode tun && ip addr add "$(cat ip)/32" dev tailscale0 && ip link set tailscale0 up &&
        ip route replace 100.64.0.0/24 dev eth0 src "$(cat ip)" && : >joined
}
echo "$(id -un) $*" >>calls
case $1 in
    version) cat version; echo "  long version: $(cat version)-stub" ;;
    ip) cat ip ;;
    status)
        state=NeedsLogin online=false
        [ ! -e joined ] || { state=Running; online=true; }
        echo "{\"BackendState\": \"$state\", \"Self\": {\"Online\": $online, \"HostName\": \"stub\"}}"
        ;;
    up)
        for word in "$@"; do
            case $word in --auth-key=file:*) file=${word#--auth-key=file:} ;; esac
        done
        stat -c '%a %U' "$file" >>modes
        cat "$file" >>keys || exit 8
        sleep 1 # for who looks at the command line
        [ ! -e refuses ] || { echo 'backend error: invalid key' >&2; exit 1; }
        link
        ;;
    logout)
        rm -f joined
        ip link del tailscale0
        ;;
    link) link ;; # of the tests: a machine that is in a tailnet already
    *) exit 7 ;;
esac
