#!/usr/bin/env bash
# Makes a bare GPU box ready and opens a shell in an image on it: scripts/nexa-bootstrap.sh [IMAGE [COMMAND…]]
#   IMAGE     a name with tag or digest (ghcr.io/nexacompute/nexacompute:train-light)
#   WORK      folder that the container has as /workspace (./work, made)
#   NVME      an empty disk or partition for scratch: formatted once if it has no file system, and mounted; never one in use
#   SHM_SIZE  /dev/shm of the container (half of the memory)
# Needs docker or podman, and for GPUs NVIDIA's driver and container toolkit: it says which is missing, and installs nothing.
# --dry-run prints each command instead. Again, it starts a new container over the same folders.
set -euo pipefail
say() { printf '%s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit "${3:-1}"
}
have() { command -v "$1" >/dev/null 2>&1; }

dry=
case "${1:-}" in
-h | --help)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit
    ;;
--dry-run) dry=1 && shift ;;
-*) die "there is no option $1" "scripts/nexa-bootstrap.sh --help" 2 ;;
esac
image="${1:-ghcr.io/nexacompute/nexacompute:train-light}"
[ $# -eq 0 ] || shift
case "$image" in
-* | *[!A-Za-z0-9._:/@+-]* | "") die "$image is no name of an image" "NAME:TAG, or NAME@sha256:DIGEST" 2 ;;
esac
root=()
[ "$(id -u)" = 0 ] || root=(sudo -n)
run() { # COMMAND…
    say "+ $*"
    [ -n "$dry" ] || "$@"
}

engine=
for candidate in docker podman; do
    if have "$candidate" && said="$("$candidate" info 2>&1)"; then
        engine="$candidate" && break
    elif have "$candidate"; then
        say "$candidate does not answer: $(tail -n 1 <<<"$said")"
    fi
done
[ -n "$engine" ] || die "neither docker nor podman can be used here" \
    "apt-get install podman; or docker, and its group for this user"

gpus=()
if have nvidia-smi && nvidia-smi -L >/dev/null 2>&1; then
    say "GPUs: $(nvidia-smi -L | wc -l)"
    have nvidia-ctk || die "the NVIDIA container toolkit is missing" \
        "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit; then run this again"
    if [ "$engine" = docker ]; then
        gpus=(--gpus all)
    else
        gpus=(--device nvidia.com/gpu=all)
        compgen -G '/etc/cdi/*nvidia*' >/dev/null || compgen -G '/var/run/cdi/*nvidia*' >/dev/null ||
            run "${root[@]}" nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml
    fi
    gpus+=(--ulimit memlock=-1:-1 --ulimit stack=67108864:67108864)
else
    say "no GPU answers here: the container gets none"
fi
for device in /dev/infiniband/*; do
    if [ -e "$device" ]; then gpus+=(--device "$device"); fi
done

scratch=()
if [ -n "${NVME:-}" ]; then
    mountpoint=/mnt/nexa-scratch
    [ -b "$NVME" ] || die "NVME: $NVME is no disk" "lsblk lists them" 2
    if [ "$(findmnt -rno SOURCE "$mountpoint")" != "$(realpath "$NVME")" ]; then
        mounted="$(lsblk -nro MOUNTPOINT "$NVME" | grep . || true)"
        [ -z "$mounted" ] || die "NVME: $NVME is in use (${mounted//$'\n'/, })" "name an empty one, or leave NVME out" 2
        # Whatever is on it may be somebody's: only a disk with nothing at all on it is formatted.
        found="$("${root[@]}" wipefs --no-act --noheadings "$NVME")" || die "NVME: $NVME cannot be read" "be root" 2
        [ -n "$found" ] || run "${root[@]}" mkfs.ext4 -q "$NVME"
        run "${root[@]}" mkdir -p "$mountpoint"
        run "${root[@]}" mount -o noatime "$NVME" "$mountpoint"
    fi
    run "${root[@]}" chown "$(id -u):$(id -g)" "$mountpoint"
    scratch=(--mount "type=bind,source=$mountpoint,target=/scratch" --env NEXA_SCRATCH=/scratch)
fi

work="$(realpath -m -- "${WORK:-work}")"
case "$work" in *[,\"]*) die "WORK: $work has a sign that no engine mounts" "choose another folder" 2 ;; esac
run mkdir -p "$work" "$work/.home"
shm="${SHM_SIZE:-$(awk '/^MemTotal:/ { print int($2 / 2) "k" }' /proc/meminfo)}"
case "$shm" in
*[!0-9kmgKMG]* | "" | [!0-9]*) die "SHM_SIZE is $shm" "a number with k, m or g: 64g" 2 ;;
esac
user=(--user "$(id -u):$(id -g)")
if [ "$engine" = podman ] && [ "$(id -u)" != 0 ]; then user+=(--userns=keep-id); fi
terminal=()
if [ -t 0 ] && [ -t 1 ]; then terminal=(--interactive --tty); fi
[ $# -gt 0 ] || set -- bash

if ! run "$engine" pull "$image"; then # one that was built here, or a registry that is away
    "$engine" image inspect "$image" >/dev/null 2>&1 || die "$image is not here, and cannot be pulled"
    say "$image is not pulled: the one that is here is taken"
fi
say "+ $engine run … $image $*"
command=("$engine" run --rm "${terminal[@]}" --network host --shm-size "$shm" "${user[@]}" "${gpus[@]}"
    --mount "type=bind,source=$work,target=/workspace" "${scratch[@]}" --workdir /workspace --env HOME=/workspace/.home
    --env HF_HOME=/workspace/.home/.cache/huggingface --env HF_TOKEN --env WANDB_API_KEY "$image" "$@")
if [ -n "$dry" ]; then
    printf '%q ' "${command[@]}"
    echo
else
    exec "${command[@]}"
fi
