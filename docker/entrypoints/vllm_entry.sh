#!/usr/bin/env bash
# The image infer: a command, a shell, or vLLM's OpenAI server.
#   docker run IMAGE COMMAND…              that command
#   docker run -it IMAGE                   a shell
#   docker run -e MODEL=org/name IMAGE     the server
# MODEL: a name on the Hub, or a folder that is mounted · PORT: 8000 · TP: GPUs that share the model, 1
# VLLM_EXTRA_ARGS: more arguments of `vllm serve`, quoted as a shell takes them · VLLM_API_KEY: asked of who calls
set -euo pipefail
case "${1:-}" in
-h | --help)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit
    ;;
esac
if [ $# -gt 0 ]; then exec "$@"; fi
if [ -z "${MODEL:-}" ]; then exec bash; fi

number() { # NAME VALUE MOST
    case "$2" in
    "" | *[!0-9]* | ??????*) ;;
    *) if [ "$2" -ge 1 ] && [ "$2" -le "$3" ]; then return; fi ;;
    esac
    printf 'error: %s is %s: a number from 1 to %s is needed\n' "$1" "$2" "$3" >&2
    exit 2
}
number PORT "${PORT:=8000}" 65535
number TP "${TP:=1}" 1024
: "${VLLM_EXTRA_ARGS:=}"
more=()
if [ -n "${VLLM_EXTRA_ARGS//[[:space:]]/}" ]; then # no eval: quotes are read, nothing is expanded
    words="$(xargs printf '%s\n' <<<"$VLLM_EXTRA_ARGS")" || {
        echo "error: VLLM_EXTRA_ARGS: a quote is not closed" >&2
        exit 2
    }
    mapfile -t more <<<"$words"
fi
exec vllm serve "$MODEL" --host 0.0.0.0 --port "$PORT" --tensor-parallel-size "$TP" "${more[@]}"
