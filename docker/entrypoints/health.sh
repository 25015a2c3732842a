#!/usr/bin/env bash
# Whether a container of ours is of use: its interpreter runs, its GPUs answer where it was given any, and the server (MODEL,
# PORT) says that it is well.
set -euo pipefail
case "${1:-}" in
-h | --help)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit
    ;;
esac
if [ -e /dev/nvidiactl ]; then nvidia-smi -L >/dev/null; fi
exec python -I -c '
import sys, urllib.request
if len(sys.argv) > 1:
    urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/health", timeout=5).close()
' ${MODEL:+"${PORT:-8000}"}
