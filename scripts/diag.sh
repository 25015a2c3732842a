#!/usr/bin/env bash
# What is wrong with this machine, or with a cluster's nodes. Needs nothing but Python 3.9 for the former.
#   scripts/diag.sh [--deep]                 this machine: JSON on stdout, a summary on stderr
#   scripts/diag.sh CLUSTER|FILE [OPTION…]   nexa diag of that cluster
set -euo pipefail
caller=$PWD
cd "$(dirname "$0")/.."
# shellcheck source=scripts/_common.sh
. scripts/_common.sh
use_checkout

case "${1:-}" in
-h | --help)
    sed -n '2,4s/^# *//p' scripts/diag.sh
    exit
    ;;
"" | --deep) deep="${1:+true}" ;;
*)
    root=$PWD
    cd "$caller"
    have nexa || nexa() { PYTHONPATH="$root" "${NEXA_PYTHON:-python3}" -m nexa_dist "$@"; }
    nexa diag "$@"
    exit
    ;;
esac

scratch="${NEXA_SCRATCH:-${TMPDIR:-/tmp}}"
python="${NEXA_PYTHON:-python3}"
message="$("$python" -c 'import json, sys; print(json.dumps({"scratch": sys.argv[1], "python": sys.argv[2],
"deep": bool(sys.argv[3]), "peers": sys.argv[4:]}))' "$scratch" "$python" "${deep:-}")"
code='import sys; sys.path.insert(0, sys.argv.pop(1)); from nexa_dist.node.main import main; sys.exit(main(sys.argv[1:]))'
facts="$(printf '%s' "$message" | "$python" -S -E -c "$code" "$PWD" diag)"
printf '%s\n' "$facts"
printf '%s' "$facts" | "$python" -c '
import json, sys
said = json.load(sys.stdin)
gpus, environment, disk = said["gpus"], said["environment"], said["disk"]
rows = {
    "machine": "%(hostname)s, kernel %(kernel)s, %(cpus)s CPUs" % said,
    "memory": "%d GiB, %d GiB available; /dev/shm %d MiB" % (
        said["memory"]["total"] >> 30, said["memory"]["available"] >> 30, (said["shm_bytes"] or 0) >> 20),
    "disk": disk.get("error") or "%d GiB free, %.0f MiB/s" % (disk["free_bytes"] >> 30, disk["mib"] / disk["seconds"]),
    "torch": environment.get("error") or "python %(python)s, torch %(torch)s, CUDA %(cuda)s, NCCL %(nccl)s" % environment,
    "GPUs": "%d; driver %s, kernel module %s" % (len(gpus), gpus[0]["driver"] if gpus else None, said["module"]),
    "EFA": "%(devices)s devices, libfabric finds %(domains)s" % said["efa"],
    "Xid": "unknown" if said["xid"] is None else said["xid"][-1] if said["xid"] else "none",
}
for name, text in rows.items():
    print("%-8s %s" % (name, text), file=sys.stderr)
for gpu in gpus:
    print("GPU %(index)s    %(name)s, %(celsius)s C, %(ecc_uncorrected)s ECC errors" % gpu, file=sys.stderr)
if said["smi_code"] not in (0, 127):
    print("driver   %s" % said["smi_error"], file=sys.stderr)
'
