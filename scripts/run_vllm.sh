#!/usr/bin/env bash
# Serves the checkpoint of a run with an OpenAI-compatible API: scripts/run_vllm.sh RUN [--node NAME] …
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/_common.sh
help_if_asked "$@"
use_checkout
cd "$OLDPWD" # where the paths that are named begin
exec nexa serve "$@"
