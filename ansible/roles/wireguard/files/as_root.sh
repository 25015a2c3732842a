# Prints how this user becomes root, empty for root, and runs a script so: as_root.sh SCRIPT ARGUMENT…
script=$1
shift
if [ "$(id -u)" = 0 ]; then sudo=; else sudo='sudo -n'; fi
$sudo true || { echo 'WireGuard needs root, or sudo without a password' >&2; exit 1; }
echo "$sudo"
exec $sudo sh -c "$script" sh "$@"
