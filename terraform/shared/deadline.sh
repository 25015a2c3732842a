#!/bin/sh
# Powers this machine off when its time is up: nobody has to be there, and no network. Usage:
#   deadline arm EXPIRES_UNIX MAX_S INSTANCE_ID [LEASE_S IDLE_S]    at every boot
#   deadline watch                                                  until it goes off
#   deadline extend DUE_UNIX [MAX_S]                                root: another time, MAX_S from first boot at most
# Whichever comes first counts:
#   due      the time in the file due_unix, which the first boot writes; never more than MAX_S of being on
#   lease    LEASE_S after the file lease was touched, as the controller does while it lives; 0 for none
#   idle     IDLE_S after the file busy was touched, as the agent of a run does while it lives; 0 for none
# What it writes for others: acts_unix, when it goes off as things stand; runs_until "STOP END WHY": a run should save
# and end from STOP on, since the power goes at END, both in seconds of /proc/uptime. What a run renews is not in it.
set -u
umask 022
dir=${NEXA_DEADLINE_DIR:-/var/lib/nexa}
tick_s=${NEXA_DEADLINE_TICK_S:-30}
notice_s=120 # as long as a spot notice
forever=99999999999

number() { # WORD…: whole numbers that the shell can add
    for word; do
        case $word in '' | *[!0-9]* | 0?* | ????????????*) return 1 ;; esac
    done
}

# Sets due, and fails when the file holds no time.
due_unix() {
    due='' more=''
    { read -r due more <"$dir/due_unix"; } 2>/dev/null
    [ -z "$more" ] && number "$due" && [ "$due" -gt 0 ]
}

# Sets max_s, lease_s, idle_s and first_unix.
limits() {
    max_s='' lease_s='' idle_s='' first_unix=''
    { read -r max_s lease_s idle_s first_unix <"$dir/limits"; } 2>/dev/null
    number "$max_s" "$lease_s" "$idle_s" "$first_unix"
}

put() { echo "$2" >"$dir/$1.new" && mv -f "$dir/$1.new" "$dir/$1"; } # FILE LINE: whole or not at all

decide() { # EXPIRES_UNIX MAX_S INSTANCE_ID LEASE_S IDLE_S
    # An image made of another node may carry that node's files. A further boot neither extends nor renews anything.
    if [ "$(cat "$dir/instance_id" 2>/dev/null)" = "$3" ] && due_unix && limits; then return; fi
    now=$(date +%s)
    due=$((now + $2))
    [ "$due" -le "$1" ] || due=$1
    rm -rf "$dir/lease" "$dir/busy" "$dir/state" && : >"$dir/lease" && : >"$dir/busy" &&
        put limits "$2 $4 $5 $now" && put due_unix "$due" && put instance_id "$3"
}

# A service of systemd's own, where there is one: it comes back when it is killed, and waits for nothing at boot.
start() {
    if [ -d /run/systemd/system ]; then
        systemctl is-active --quiet nexa-deadline.service && return
        systemd-run --quiet --no-block --collect --unit=nexa-deadline --property=DefaultDependencies=no \
            --property=Restart=always --property=RestartSec=1 --property=StartLimitIntervalSec=0 \
            --property=OOMScoreAdjust=-1000 "$dir/deadline" watch && return
    fi
    setsid "$dir/deadline" watch </dev/null >/dev/null 2>&1 &
}

extend() { # DUE_UNIX [MAX_S]
    limits && number "$1" "${2:-$max_s}" || return
    max_s=${2:-$max_s} due=$1
    [ "$due" -le $((first_unix + max_s)) ] || due=$((first_unix + max_s))
    put limits "$max_s $lease_s $idle_s $first_unix" && put due_unix "$due" && echo "$due"
}

# What an earlier watch knew, if this machine's watch was killed or the machine booted again.
recall() {
    spent='' up='' due_seen='' due_at='' lease_seen='' lease_at='' busy_seen='' busy_at=''
    { read -r spent up due_seen due_at lease_seen lease_at busy_seen busy_at <"$dir/state"; } 2>/dev/null
    number "$spent" "$up" "$due_seen" "$due_at" "$lease_seen" "$lease_at" "$busy_seen" "$busy_at" && return
    up='' due_seen='' due_at=0 lease_seen='' lease_at=0 busy_seen='' busy_at=0
}

# When FILE was touched, in seconds of being on: `at`. Its own time counts only between the last look and now, so that
# a clock that is set, or a time in the future, neither ends nor renews anything.
touched() { # FILE SEEN AT
    seen=$2 at=$3 mtime=''
    [ -f "$dir/$1" ] && [ ! -L "$dir/$1" ] && mtime=$(stat -c %Y "$dir/$1" 2>/dev/null)
    [ "$mtime" != "$seen" ] && number "$mtime" || return 0
    age=$((now - mtime)) seen=$mtime
    [ "$age" -le "$passed" ] || age=$passed
    [ "$age" -ge 0 ] || age=0
    at=$((spent - age))
    [ "$at" -ge 0 ] || at=0
}

least() { [ "$left_s" -le "$1" ] || left_s=$1; }

# Sets left_s. Seconds of being on are counted beside the clock, which may be set back: it then ends nothing later.
# Without a time that can be read it goes off.
look() {
    left_s=0 now=$(date +%s) was=$up up=''
    { read -r up _ </proc/uptime; } 2>/dev/null
    up=${up%%.*}
    due_unix && limits && number "$now" "$up" || return 0
    if [ -n "$was" ]; then
        passed=$((up - was))
        [ "$passed" -ge 0 ] || passed=$up # it has booted in between
        spent=$((spent + passed))
    else
        passed=$forever spent=$((now - first_unix))
        [ "$spent" -ge 0 ] || spent=0
    fi
    [ "$due" = "$due_seen" ] || due_at=$((spent + due - now)) due_seen=$due
    left_s=$((due - now)) why=due
    least $((due_at - spent + 2)) # the two clocks count whole seconds, and not the same ones
    least $((max_s - spent + 2))
    stop_s=$((left_s - notice_s))
    touched lease "$lease_seen" "$lease_at" && lease_seen=$seen lease_at=$at
    if [ "$lease_s" -gt 0 ]; then
        lease_left_s=$((lease_at + lease_s - spent))
        [ "$lease_left_s" -ge "$left_s" ] || why=lease
        least "$lease_left_s"
        early_s=$((lease_s / 4)) # a short lease must not end a run that is being renewed
        [ "$early_s" -le "$notice_s" ] || early_s=$notice_s
        [ "$stop_s" -le $((lease_left_s - early_s)) ] || stop_s=$((lease_left_s - early_s))
    fi
    put runs_until "$((up + stop_s)) $((up + left_s)) $why"
    touched busy "$busy_seen" "$busy_at" && busy_seen=$seen busy_at=$at
    [ "$idle_s" -eq 0 ] || least $((busy_at + idle_s - spent))
    put acts_unix "$((now + left_s))"
    put state "$spent $up $due_seen $due_at ${lease_seen:-0} $lease_at ${busy_seen:-0} $busy_at"
}

# Asks again for as long as it is on.
watch() {
    force=
    recall
    while :; do
        look 2>/dev/null # a full disk is no reason to stay on, or to go off
        if [ "$left_s" -gt 0 ]; then
            least "$tick_s"
            [ "$lease_s" -lt 60 ] || least $((lease_s / 8)) # a renewal is to be seen soon
            sleep "$left_s"
        else
            poweroff $force
            force=-f # the second time without asking the services
            sleep 120
        fi
    done
}

case ${1:-} in
    arm) decide "$2" "$3" "$4" "${5:-0}" "${6:-0}" && start ;;
    watch) watch ;;
    extend) extend "$2" "${3:-}" ;;
    *) exit 2 ;;
esac
