#!/usr/bin/env bash
# Runs the stage data on this machine and registers what it makes as a version: scripts/run_data.sh [STAGE.yaml] [--json]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/_common.sh
help_if_asked "$@"
use_checkout
config="$PWD/configs/stages/science_data.yaml"
case "${1:-}" in *.yaml | *.yml) config="$1" && shift ;; esac
cd "$OLDPWD" # where the paths that are named begin
exec nexa pipeline run "$config" "$@"
