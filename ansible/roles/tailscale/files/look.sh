# What this host has of tailscale, a line each, an empty one for what it lacks: how to become root, its version, whether the
# mark says that it is ours, systemd, the distribution; then its status. Changes nothing. Argument: the mark.
if [ "$(id -u)" = 0 ]; then sudo=; else sudo='sudo -n'; fi
$sudo true || { echo 'tailscale needs root, or sudo without a password' >&2; exit 1; }
echo "$sudo"
tailscale version 2>/dev/null | sed -n 1p | grep . || echo
if [ -e "$1" ]; then echo ours; else echo; fi
if [ -d /run/systemd/system ]; then echo systemd; else echo; fi
# shellcheck source=/dev/null
. /etc/os-release
echo "$ID $VERSION_CODENAME"
status=$(tailscale status --json --peers=false 2>/dev/null) || status='{}'
printf '%s\n' "$status"
