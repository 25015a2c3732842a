#!/usr/bin/env bash
# A bare machine (a GPU box of any vendor) to a virtual environment that trains: uv, what docker/lock/train.txt has with
# its hashes, the build of torch for the driver that is there, and this checkout's nexa_dist. Again: nothing to do.
#   scripts/bootstrap_env.sh [DIR]     default: .venv of this checkout
# Nothing is installed outside of DIR and the cache, but python3-venv by apt as root where neither it nor uv is there.
# NEXA_PYTHON: interpreter · UV_FIND_LINKS: folder of wheels, torch among them · NEXA_CACHE: default ~/.cache/nexa.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/_common.sh
help_if_asked "$@"
case "$#${1:-}" in [01]- | [01]-* | [2-9]*) die "one folder, or none" "scripts/bootstrap_env.sh --help" 2 ;; esac
root=$PWD
cd "$OLDPWD" # where a path begins
env=$(realpath -m "${1:-$root/.venv}")
cd "$root"
python="$(find_python)"
use_package_settings
cache="${NEXA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nexa}"
stamp="$({
    "$python" -c 'import sys; print(sys.version)'
    echo "$root"
    cat docker/lock/train.txt docker/cuda_torch.txt ansible/roles/uv_env/files/uv.txt pyproject.toml
} | sha256sum | cut -d' ' -f1)"
if [ -e "$env" ] && [ ! -e "$env/nexa-env.json" ] && [ ! -e "$env/.begun" ] && [ -n "$(ls -A "$env")" ]; then
    die "$env is there, and this script did not make it" "name another folder, or move it away"
fi
if [ "$(cat "$env/.stamp" 2>/dev/null)" != "$stamp" ]; then
    if ! have uv && ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        if [ "$(id -u)" != 0 ] || ! have apt-get; then die "$python has no venv" "apt-get install -y python3-venv"; fi
        say "installing with apt-get: python3-venv"
        apt-get update -qq >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >&2
    fi
    say "making $env: a few minutes and gigabytes the first time"
    inputs="$(mktemp -d)"
    trap 'rm -rf "$inputs"' EXIT
    cp docker/lock/train.txt "$inputs/lock.txt"
    cp docker/cuda_torch.txt "$inputs/torch.txt"
    cp ansible/roles/uv_env/files/uv.txt "$inputs/uv.txt"
    mkdir -p "$(dirname "$env")" "$cache"
    rm -f "$env/.complete" # of another lock
    "$python" -c 'import json, sys
print(json.dumps(dict(zip(("env", "inputs", "tools", "cache", "find_links"), sys.argv[1:]), backend="auto")))' \
        "$env" "$inputs" "$cache" "$cache/uv-cache" "${UV_FIND_LINKS:-}" |
        "$python" ansible/roles/uv_env/files/make_env.py >/dev/null
    rm -f "$(dirname "$env")/$(basename "$env").lock"
    site="$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    printf '%s\n' "$root" >"$site/nexa_dist.pth"
    printf '%s\n' "$stamp" >"$env/.stamp"
fi
"$env/bin/python" -c 'import platform, torch, nexa_dist
gpus = torch.cuda.device_count()
print("python %s, torch %s, CUDA %s, %d GPUs" % (platform.python_version(), torch.__version__, torch.version.cuda, gpus))'
say "next: . $env/bin/activate"
