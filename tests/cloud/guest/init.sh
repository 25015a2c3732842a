#!/bin/sh
# pid 1 of a machine: runs the stages of cloud-init, starts sshd between them, and reaps what others leave.
# It is told by signals: USR2 power off (exit 0), TERM reboot (exit 3), USR1 halt: dead, but never off.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root

boot() {
    cloud-init init --local
    cloud-init init
    mkdir -p /run/sshd
    /usr/sbin/sshd
    cloud-init modules --mode=config
    cloud-init modules --mode=final
}

# kill -TERM -1 is everything but this process; the kernel ends what is left when it exits.
stop_all() {
    trap '' USR1 USR2 TERM
    kill -TERM -1 2>/dev/null
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        kill -0 -1 2>/dev/null || break
        sleep 0.1
    done
}
trap 'stop_all; exit 0' USR2
trap 'stop_all; exit 3' TERM
trap 'stop_all; kill -KILL -1' USR1

boot &
while :; do
    sleep infinity &
    wait $!
done
