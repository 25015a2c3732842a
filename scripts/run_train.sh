#!/usr/bin/env bash
# Trains on this machine in one process, and registers the checkpoint as a version: scripts/run_train.sh TRAIN.yaml [--json]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/_common.sh
help_if_asked "$@"
[ $# -gt 0 ] || die "no TRAIN.yaml is named" "scripts/run_train.sh --help" 2
run_nexa pipeline run "$@"
