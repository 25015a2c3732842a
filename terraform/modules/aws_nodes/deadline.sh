#!/bin/sh
# Powers this machine off when its time is up: nobody has to be there, and no network. Its first boot writes the time
# into the file due_unix; root may extend it by renaming another file to that name. Usage:
#   deadline arm EXPIRES_UNIX MAX_S INSTANCE_ID    at every boot
#   deadline watch                                 until it is due
set -u
umask 022
dir=${NEXA_DEADLINE_DIR:-/var/lib/nexa}
tick_s=${NEXA_DEADLINE_TICK_S:-30}

now_unix() { date +%s; }

# Prints the time in the file, and fails when it is no time.
due_unix() {
    due=$(cat "$dir/due_unix") || return 1
    case $due in '' | 0* | *[!0-9]*) return 1 ;; esac
    echo "$due"
}

decide() { # EXPIRES_UNIX MAX_S INSTANCE_ID
    # An image made of another node may carry that node's files.
    if [ "$(cat "$dir/instance_id" 2>/dev/null)" = "$3" ] && due_unix >/dev/null 2>&1; then return; fi
    due=$(($(now_unix) + $2))
    [ "$due" -le "$1" ] || due=$1
    echo "$due" >"$dir/due_unix.new" && mv "$dir/due_unix.new" "$dir/due_unix" &&
        echo "$3" >"$dir/instance_id.new" && mv "$dir/instance_id.new" "$dir/instance_id"
}

# A service of systemd's own, where there is one: it comes back when it is killed, and waits for nothing at boot.
start() {
    if [ -d /run/systemd/system ]; then
        systemctl is-active --quiet nexa-deadline.service && return
        systemd-run --quiet --no-block --collect --unit=nexa-deadline --property=DefaultDependencies=no \
            --property=Restart=on-failure --property=RestartSec=1 --property=StartLimitIntervalSec=0 \
            --property=OOMScoreAdjust=-1000 "$dir/deadline" watch && return
    fi
    setsid "$dir/deadline" watch </dev/null >/dev/null 2>&1 &
}

# Reads the clock again and again, since it may be set after boot, and the time, since it may be extended. Without a
# time that can be read the machine goes off. Asks again for as long as it is on.
watch() {
    force=
    while :; do
        left_s=0
        if due=$(due_unix); then left_s=$((due - $(now_unix))); fi
        if [ "$left_s" -gt 0 ]; then
            [ "$left_s" -lt "$tick_s" ] || left_s=$tick_s
            sleep "$left_s"
        else
            poweroff $force
            force=-f # the second time without asking the services
            sleep 120
        fi
    done
}

case $1 in
    arm) decide "$2" "$3" "$4" && start ;;
    watch) watch ;;
    *) exit 2 ;;
esac
