# Stops apt's own timers, and prints those that ran.
[ -d /run/systemd/system ] || exit 0
for timer in apt-daily.timer apt-daily-upgrade.timer; do
    ! systemctl is-active --quiet "$timer" || { systemctl stop "$timer" && echo "$timer"; }
done
