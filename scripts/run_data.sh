#!/usr/bin/env bash
# Runs the stage data on this machine and registers what it makes as a version: scripts/run_data.sh [STAGE.yaml] [--json]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/_common.sh
help_if_asked "$@"
config="$PWD/configs/stages/science_data.yaml"
case "${1:-}" in *.yaml | *.yml) config="$1" && shift ;; esac
run_nexa pipeline run "$config" "$@"
