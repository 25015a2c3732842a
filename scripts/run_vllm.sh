#!/usr/bin/env bash
# Serves the checkpoint of a run with an OpenAI-compatible API: scripts/run_vllm.sh RUN [--node NAME] …
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/_common.sh
help_if_asked "$@"
run_nexa serve "$@"
