#!/bin/sh
# What cloud-init asks to know that it runs on EC2: an id that begins with ec2, the same in both fields.
case "$*" in
    *system-uuid* | *system-serial-number*) echo ec2e1916-9099-7caf-fd21-0123456789ab ;;
    *system-manufacturer*) echo Amazon EC2 ;;
    *) exit 1 ;;
esac
