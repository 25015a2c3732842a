#!/usr/bin/env bash
# Frees disk of runs that are over, on this machine; without --delete it only says what would go.
#   scripts/cleanup.sh [--scratch DIR] [--durable DIR] [--days 14] [--keep 2] [--archive DIR] [--delete]
# DIRs are those of NEXA_SCRATCH and NEXA_DURABLE if left out. Never a run that lives, nor any run's newest whole
# checkpoint. Shards of a step go together or not at all: --scratch and --durable again name those of other nodes that are
# mounted here. What told of a run (events, logs, result) is in the archive before its scratch goes.
# NEXA_PYTHON is the interpreter, that of .venv if left out.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/_common.sh
help_if_asked "$@"
run_module nexa_dist.ops.work.cleanup "$@"
