#!/usr/bin/env bash
# Trains on every node of a cluster and follows it: scripts/run_train_ddp.sh TRAIN.yaml [--cluster NAME] [--set a.b=c] …
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/_common.sh
help_if_asked "$@"
run_nexa run "$@"
