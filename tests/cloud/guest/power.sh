#!/bin/sh
# poweroff, reboot, halt, shutdown, and these verbs of systemctl: they tell pid 1, which is not systemd.
set -u
program=${0##*/}

tell() { # VERB [SECONDS]
    case $1 in poweroff) signal=USR2 ;; reboot) signal=TERM ;; halt) signal=USR1 ;; esac
    [ "$(id -u)" = 0 ] || { echo "$program: only root may do this" >&2; exit 1; }
    if [ "${2:-0}" -le 0 ]; then
        exec kill -s "$signal" 1
    fi
    cancel
    setsid sh -c "sleep $2; kill -s $signal 1" >/dev/null 2>&1 </dev/null &
    echo $! >/run/nexa-shutdown.pid
    echo "$1 in $2 seconds"
}

cancel() {
    [ ! -e /run/nexa-shutdown.pid ] || pkill -TERM -s "$(cat /run/nexa-shutdown.pid)"
    rm -f /run/nexa-shutdown.pid
}

seconds_until() { # now, +MINUTES, HH:MM
    case $1 in
        now) echo 0 ;;
        +*) echo $((${1#+} * 60)) ;;
        *:*)
            seconds=$(($(date -d "$1" +%s) - $(date +%s)))
            [ "$seconds" -gt 0 ] || seconds=$((seconds + 86400))
            echo "$seconds"
            ;;
        *) echo "$program: no such time: $1" >&2; return 1 ;;
    esac
}

case $program in
    poweroff | reboot | halt) tell "$program" ;;
    systemctl)
        for word in "$@"; do
            case $word in
                -*) ;;
                poweroff | reboot | halt) tell "$word"; exit ;;
                *) break ;;
            esac
        done
        echo "systemctl: this machine was not booted with systemd" >&2
        exit 1
        ;;
    shutdown)
        verb=poweroff time=+1
        for word in "$@"; do
            case $word in
                -r | --reboot) verb=reboot ;;
                -H | --halt) verb=halt ;;
                -c) cancel; exit ;;
                -*) ;;
                *) time=$word; break ;; # what follows is for the users to read
            esac
        done
        seconds=$(seconds_until "$time") || exit 1
        tell "$verb" "$seconds"
        ;;
esac
