#!/usr/bin/env bash
# Checkpoints and outputs of a run to and from the durable bucket; nothing else of NexaCompute talks to it about them.
#
#   run_sync.sh fence RUN_ID GENERATION       lock older attempts out; prints {"step": newest whole one, or null}
#   run_sync.sh push  RUN_ID STEP_DIR         upload a checkpoint, files first, manifest last
#   run_sync.sh part  RUN_ID STEP_DIR         a node's files of a sharded one, without a manifest
#   run_sync.sh seal  RUN_ID STEP_DIR         its manifest, when all files that it names are there
#   run_sync.sh pull  RUN_ID DEST_DIR [STEP]  the newest whole one (or STEP) into DEST_DIR, verified; prints its folder
#   run_sync.sh list  RUN_ID [--json]         the whole ones, newest first
#   run_sync.sh show  RUN_ID                  {"step", "uri", "sha256"} of the newest whole one, or null
#   run_sync.sh prune RUN_ID KEEP             remove what is older than the KEEP newest; not for nodes, which may not
#   run_sync.sh tier  DURABLE_DIR [--dry-run] all of a durable folder to tier/, without temporary files; removes nothing
#   run_sync.sh keep  RUN_ID NODE DIR         a node's outputs, named by their SHA-256, and then their manifest.json
#   run_sync.sh kept  RUN_ID DEST_DIR         the manifests of all outputs, as NODE/g<attempt>.json
#   run_sync.sh fetch RUN_ID NODE DEST_DIR    outputs of a node, whose SHA-256 stand on standard input, a line each
#
# NEXA_BUCKET is s3://bucket/prefix. Below it: RUN_ID/generation/<attempt>, an empty object for every attempt that
# began, and RUN_ID/checkpoints/step_<step>/g<attempt>/, so that no attempt writes where another does; without its
# manifest.json such a folder is no checkpoint. push and keep take their attempt from NEXA_ATTEMPT. Outputs lie in
# RUN_ID/outputs/<node>/. Credentials, region and endpoint are what the aws command finds. Exit codes: 0, 1 failed, 2 usage, 3 a newer attempt has begun.
# Every node may write here, so what is written is not believed: an attempt that is far ahead of ours is a lie, and of a
# checkpoint that was written over the first versions count, where the bucket keeps them.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }
die() { # CODE MESSAGE
    say "error: $2"
    exit "$1"
}
describe() { sed -n '4,15s/^# *//p' "${BASH_SOURCE[0]}"; }
usage() {
    describe >&2
    exit 2
}

python=${NEXA_PYTHON:-python3}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$here/.." AWS_PAGER='' AWS_EC2_METADATA_SERVICE_NUM_ATTEMPTS=3
export AWS_RETRY_MODE=standard AWS_MAX_ATTEMPTS="${AWS_MAX_ATTEMPTS:-4}"

find_aws() {
    local beside
    beside=$(dirname "$(command -v "$python" || echo /nowhere/python)")/aws
    if [ -x "$beside" ]; then aws=$beside; else aws=$(command -v aws) || die 1 "the aws command is not on this node"; fi
}
run_aws() { nice -n 5 "$aws" --cli-connect-timeout 10 --cli-read-timeout 60 "$@"; }

# Everything of the run, "bytes<TAB>key below RUN_ID/" a line. One request for a thousand keys.
look() {
    run_aws s3api list-objects-v2 --bucket "$bucket" --prefix "$base/" --output text \
        --query 'Contents[].[Size,Key]' >"$scratch/raw" || die 1 "s3://$bucket/$base/ cannot be listed"
    # A page without keys says None; what is not below the prefix is not ours.
    awk -F'\t' -v base="$base/" 'NF == 2 && index($2, base) == 1 { print $1 "\t" substr($2, length(base) + 1) }' \
        "$scratch/raw" >"$scratch/keys"
}

# "step generation" of every folder with a manifest, newest first. From the last look.
whole() {
    sed -nE 's|^[0-9]+\tcheckpoints/step_0*([0-9]{1,9})/g0*([0-9]{1,9})/manifest\.json$|\1 \2|p' "$scratch/keys" |
        sort -k1,1nr -k2,2nr
}

FAR=100 # attempts: more than any run begins while a process of an older one still lives

folder_of() { printf 'checkpoints/step_%08d/g%06d' "$1" "$2"; } # STEP GENERATION

# After a look: is an attempt later than ours known?
check_fence() { # GENERATION
    local newest lie
    sed -nE 's|^[0-9]+\tgeneration/0*([0-9]+)$|\1|p' "$scratch/keys" | sort -nr >"$scratch/attempts"
    newest=$(awk -v far="$(($1 + FAR))" 'length($1) < 10 && $1 <= far { print $1; exit }' "$scratch/attempts")
    if [ "$(head -n 1 "$scratch/attempts")" != "$newest" ]; then
        lie=$(head -n 1 "$scratch/attempts" | head -c 40)
        say "warning: $url/generation/$lie is of an attempt which nobody began: passed over"
    fi
    [ "${newest:-0}" -le "$1" ] || die 3 "attempt $1 may write no checkpoint any more: $url says attempt $newest"
}

verified() { "$python" -m nexa_dist.train.checkpoint --verify "$1"; } # STEP_DIR

do_fence() { # GENERATION
    local step
    : >"$scratch/empty"
    run_aws s3 cp --only-show-errors "$scratch/empty" "$url/generation/$(printf %06d "$1")" ||
        die 1 "$url/generation cannot be written"
    look
    check_fence "$1"
    step=$(whole | awk 'NR == 1 { print $1 }')
    printf '{"step": %s}\n' "${step:-null}"
}

# "bytes<TAB>name" of every file that the manifest names.
named() { # MANIFEST
    "$python" -c 'import json, sys
for name, about in json.load(open(sys.argv[1]))["files"].items(): print(about["bytes"], name, sep="\t")' "$1"
}

do_push() { # STEP_DIR
    verified "${1%/}" || die 1 "$1 is no whole checkpoint"
    locate "$1"
    if known_as "$1"; then return; fi
    do_part "$1"
    do_seal "$1"
}

# A step's folder in the bucket, for the attempt that may write it.
locate() { # STEP_DIR
    step=$(basename "$1")
    step=$((10#${step#step_}))
    into=$(folder_of "$step" "${NEXA_ATTEMPT:?is not set}")
    look
    check_fence "$NEXA_ATTEMPT"
}

# Whether the checkpoint is there, whole; another one in its place is an error. From the last look.
known_as() { # STEP_DIR
    grep -qF "	$into/manifest.json" "$scratch/keys" || return 1
    run_aws s3 cp --only-show-errors "$url/$into/manifest.json" "$scratch/manifest" || die 1 "$url/$into: not read"
    cmp -s "$scratch/manifest" "${1%/}/manifest.json" || die 1 "$url/$into holds another checkpoint"
}

do_part() { # STEP_DIR
    [ -n "${into:-}" ] || locate "$1"
    run_aws s3 cp --recursive --only-show-errors --exclude manifest.json "${1%/}/" "$url/$into/" ||
        die 1 "step $step was not uploaded to $url"
}

do_seal() { # STEP_DIR
    local missing
    locate "$1"
    if known_as "$1"; then return; fi
    missing=$(named "${1%/}/manifest.json" | awk -F'\t' -v into="$into" '
        NR == FNR { there[$1 "\t" $2] = 1; next } !(($1 "\t" into "/" $2) in there) { print $2; exit }' "$scratch/keys" -)
    [ -z "$missing" ] || die 1 "$url/$into/$missing is not what was uploaded"
    run_aws s3 cp --only-show-errors "${1%/}/manifest.json" "$url/$into/manifest.json" ||
        die 1 "the manifest of step $step was not uploaded to $url"
}

# "version<TAB>name" of the first version of every file of a checkpoint; fails when none was ever written over.
written_over() { # FOLDER
    run_aws s3api list-object-versions --bucket "$bucket" --prefix "$base/$1/" --output text \
        --query 'Versions[].[VersionId,Key]' </dev/null >"$scratch/versions" 2>/dev/null || return 1
    # The newest of a key is listed first, so the last one counts.
    awk -F'\t' -v under="$base/$1/" 'index($2, under) == 1 { n = substr($2, length(under) + 1); over += n in first
        first[n] = $1 } END { for (n in first) print first[n] "\t" n; exit !over }' "$scratch/versions" >"$scratch/first"
}

get_version() { # FOLDER NAME INTO
    local version
    case "/$2/" in */../* | *//*) return 1 ;; esac
    version=$(n=$2 awk -F'\t' '$2 == ENVIRON["n"] { print $1 }' "$scratch/first")
    mkdir -p "$(dirname "$3/$2")"
    run_aws s3api get-object --bucket "$bucket" --key "$base/$1/$2" --version-id "$version" "$3/$2" </dev/null >/dev/null
}

# A checkpoint as it was first written, after written_over.
get_first() { # FOLDER INTO
    local name
    get_version "$1" manifest.json "$2" && named "$2/manifest.json" >"$scratch/wanted" 2>/dev/null || return 1
    while IFS=$'\t' read -r _ name; do
        get_version "$1" "$name" "$2" || return 1
    done <"$scratch/wanted"
}

do_pull() { # DEST_DIR [STEP]
    local destination=$1 wanted=${2:-} step generation from name
    look
    mkdir -p "$destination"
    while read -r step generation; do
        if [ -n "$wanted" ] && [ "$step" != "$wanted" ]; then continue; fi
        from=$(folder_of "$step" "$generation")
        name=$(basename "$(dirname "$from")")
        if written_over "$from" && get_first "$from" "$scratch/$name" && verified "$scratch/$name"; then
            say "warning: $url/$from was written over: its first versions are taken"
        else
            rm -rf "${scratch:?}/$name"
            run_aws s3 cp --recursive --only-show-errors "$url/$from/" "$scratch/$name/" </dev/null ||
                die 1 "step $step could not be downloaded from $url"
        fi
        if verified "$scratch/$name"; then
            if [ -e "$destination/$name" ]; then mv -T "$destination/$name" "$scratch/replaced"; fi
            mv -T "$scratch/$name" "$destination/$name"
            printf '%s\n' "$destination/$name"
            return
        fi
        say "warning: $url/$from is passed over: it is damaged"
        rm -rf "${scratch:?}/$name"
    done < <(whole)
    die 1 "no whole checkpoint${wanted:+ of step $wanted} in $url"
}

do_list() { # [--json]
    local step generation first=1
    look
    if [ "${1:-}" != --json ]; then
        whole | while read -r step generation; do printf 'step %s (attempt %s)\n' "$step" "$generation"; done
        return
    fi
    printf '['
    while read -r step generation; do
        [ -n "$first" ] || printf ', '
        first=''
        printf '{"step": %s, "generation": %s, "uri": "%s"}' "$step" "$generation" \
            "$url/$(folder_of "$step" "$generation")"
    done < <(whole)
    printf ']\n'
}

do_show() {
    local step generation into
    look
    read -r step generation < <(whole) || {
        printf 'null\n'
        return
    }
    into=$(folder_of "$step" "$generation")
    run_aws s3 cp --only-show-errors "$url/$into/manifest.json" "$scratch/manifest" || die 1 "$url/$into: not read"
    "$python" -c 'import json, sys
print(json.dumps({"step": int(sys.argv[1]), "uri": sys.argv[2], "sha256": json.load(open(sys.argv[3]))["sha256"]}))' \
        "$step" "$url/$into" "$scratch/manifest"
}

# The manifest goes first, so that a half removed one is no checkpoint. Uploads without a manifest that are older than
# what is kept go too.
do_prune() { # KEEP
    local oldest name
    look
    oldest=$(whole | awk '{ print $1 }' | uniq | sed -n "$1p")
    [ -n "$oldest" ] || return 0
    sed -nE 's|^[0-9]+\tcheckpoints/(step_0*([0-9]+))/.*|\2 \1|p' "$scratch/keys" | sort -u |
        awk -v oldest="$oldest" '$1 + 0 < oldest + 0 { print $2 }' >"$scratch/doomed"
    while read -r name; do
        run_aws s3 rm --recursive --only-show-errors --exclude '*' --include '*/manifest.json' \
            "$url/checkpoints/$name/" </dev/null || die 1 "$name was not removed: nodes may not, use credentials of yours"
        run_aws s3 rm --recursive --only-show-errors "$url/checkpoints/$name/" </dev/null ||
            die 1 "$name was not wholly removed: run it again"
        printf '%s\n' "$name"
    done <"$scratch/doomed"
}

# Half a file, or half a checkpoint, has one of these names until it is whole.
TEMPORARY=('.tmp-*' '*/.tmp-*' '*.tmp' '*.part' '*.part/*' '*.partial' '*.lock' '*~' '*/__pycache__/*')

do_tier() { # DURABLE_DIR [--dry-run]
    local word more=()
    [ -d "$1" ] || die 2 "no such folder: $1"
    case "${2:---}" in --) ;; --dry-run) more+=(--dryrun) ;; *) usage ;; esac
    for word in "${TEMPORARY[@]}"; do more+=(--exclude "$word"); done
    run_aws s3 sync --no-follow-symlinks --no-progress "${more[@]}" "${1%/}/" "${NEXA_BUCKET%/}/tier/" ||
        die 1 "not all of $1 was copied to ${NEXA_BUCKET%/}/tier/: run it again"
}

do_keep() { # NODE DIR
    local into=$url/outputs/$1
    run_aws s3 cp --recursive --only-show-errors --exclude manifest.json "${2%/}/" "$into/" ||
        die 1 "outputs were not uploaded to $into"
    run_aws s3 cp --only-show-errors "${2%/}/manifest.json" "$into/$(printf 'g%06d.json' "${NEXA_ATTEMPT:?is not set}")" ||
        die 1 "the manifest of outputs was not uploaded to $into"
}

do_kept() { # DEST_DIR
    run_aws s3 cp --recursive --only-show-errors --exclude '*' --include '*/g*.json' "$url/outputs/" "${1%/}/" ||
        die 1 "$url/outputs cannot be read"
}

do_fetch() { # NODE DEST_DIR
    local names # What is there is not fetched again: the aws command gives a file its name when it is whole.
    while mapfile -t -n 500 names && [ ${#names[@]} -gt 0 ]; do
        run_aws s3 sync --size-only --only-show-errors --exclude '*' "${names[@]/#/--include=}" "$url/outputs/$1/" \
            "${2%/}/" </dev/null || die 1 "outputs could not be downloaded from $url/outputs/$1"
    done
}

node() { case "$1" in '' | *[!A-Za-z0-9._-]* | .*) die 2 "not a node: $1" ;; esac }
number() { case "$1" in '' | *[!0-9]*) usage ;; esac }

case "${1:-}" in -h | --help) describe && exit ;; esac
[ $# -ge 2 ] || usage
verb=$1 run_id=$2
shift 2
if [ "$verb" = tier ]; then
    case "${NEXA_BUCKET:-}" in s3://[a-z0-9]*/*) ;; *) die 2 "NEXA_BUCKET must be s3://bucket/prefix" ;; esac
    [ $# -le 1 ] || usage
    find_aws
    do_tier "$run_id" "$@"
    exit
fi
case "$run_id" in '' | *[!A-Za-z0-9._-]* | .*) die 2 "not a run id: $run_id" ;; esac
case "${NEXA_BUCKET:-}" in s3://[a-z0-9]*) ;; *) die 2 "NEXA_BUCKET must be s3://bucket/prefix" ;; esac
place=${NEXA_BUCKET#s3://}
place=${place%/}/$run_id
bucket=${place%%/*} base=${place#*/} url=s3://$place
find_aws
parent=${TMPDIR:-/tmp}
if [ "$verb" = pull ] && [ $# -ge 1 ]; then # beside its destination, so that the last step is a rename
    mkdir -p "$1"
    parent=$1
fi
scratch=$(mktemp -d "$parent/.tmp-sync-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
trap 'exit 143' TERM INT HUP
case "$verb:$#" in
fence:1) number "$1" && do_fence "$((10#$1))" ;;
push:1 | part:1 | seal:1) "do_$verb" "$1" ;;
pull:1) do_pull "$1" ;;
pull:2) number "$2" && do_pull "$1" "$((10#$2))" ;;
list:0 | list:1) do_list "$@" ;;
show:0) do_show ;;
keep:2 | fetch:2) node "$1" && "do_$verb" "$1" "$2" ;;
kept:1) do_kept "$1" ;;
prune:1)
    number "$1"
    [ "$((10#$1))" -ge 1 ] || usage
    do_prune "$((10#$1))"
    ;;
*) usage ;;
esac
