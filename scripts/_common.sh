# What the scripts share. Sourced, never run. Everything here is relative to the root of the checkout.
# shellcheck shell=bash

say() { printf '%s\n' "$*" >&2; }
die() { # MESSAGE [HINT [CODE]]; 2 is for words that cannot be
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit "${3:-1}"
}
have() { command -v "$1" >/dev/null 2>&1; }

# Prints what the script says of itself at its top, and ends it, where that is asked for.
help_if_asked() { # "$@"
    case "${1:-}" in
    -h | --help)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "scripts/${0##*/}"
        exit
        ;;
    esac
}

# Becomes a module of this checkout with its environment, in the folder that the script was called from.
run_module() { # MODULE ARG…
    local python="${NEXA_PYTHON:-$PWD/.venv/bin/python}"
    if ! have "$python"; then
        help_if_asked "${@:2}"
        die "there is no $python" "scripts/setup dev, or NEXA_PYTHON names an interpreter"
    fi
    use_checkout
    export PYTHONPATH="$PWD"
    cd "$OLDPWD" || exit
    exec "$python" -P -m "$@" # -P: a folder `tests` of the caller's is not ours
}

# Becomes nexa, in the folder that the script was called from: there the paths that are named begin.
run_nexa() { # WORD…
    use_checkout
    have nexa || die "nexa is not set up in $PWD, nor on PATH" "$PWD/scripts/setup"
    cd "$OLDPWD" || exit
    exec nexa "$@"
}

# The programs of the checkout come first, and Terraform is not distracted by another session's settings.
use_checkout() {
    export PATH="$PWD/.venv/bin:$PATH:$PWD/.nexa/bin:/usr/sbin"
    export TF_IN_AUTOMATION=1 CHECKPOINT_DISABLE=1
    if [ -n "${TF_CLI_CONFIG_FILE:-}" ] && [ ! -e "$TF_CLI_CONFIG_FILE" ]; then
        export TF_CLI_CONFIG_FILE=/dev/null # a missing one gives a warning on every call
    fi
}

# terraform or tofu, whichever is there.
terraform_program() { command -v terraform || command -v tofu; }

# Terraform's providers come from where nexa takes them: the user's own settings, a mirror on this machine, else they
# are downloaded once. Writes FILE and names it to Terraform; nothing is copied, a mirror is linked to.
use_providers() { # FILE
    local mirror host cache="${XDG_CACHE_HOME:-$HOME/.cache}/nexa/terraform-plugins"
    if [ -f "${TF_CLI_CONFIG_FILE:-$HOME/.terraformrc}" ]; then return; fi
    { read -r host && read -r mirror; } < <(python -c 'from nexa_dist.run.terraform.settings import MIRROR_HOST, mirror
print(MIRROR_HOST, mirror() or "none", sep="\n")')
    if [ "$mirror" != none ]; then
        printf 'provider_installation {\n  filesystem_mirror {\n    path    = "%s"\n    include = ["%s"]\n  }\n%s\n}\n' \
            "$mirror" "$host/hashicorp/*" "  direct { exclude = [\"$host/hashicorp/*\"] }" >"$1"
    else
        mkdir -p "$cache"
        printf 'plugin_cache_dir = "%s"\nplugin_cache_may_break_dependency_lock_file = true\n' "$cache" >"$1"
    fi
    export TF_CLI_CONFIG_FILE="$1"
}

# Where wheels and certificates come from: what pip is told holds for uv too.
use_package_settings() {
    export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
    [ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS
    export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}" UV_PYTHON_DOWNLOADS=never
}

# First Python that this project can run on: the distribution's, where it can make an environment, before another one of
# PATH. What pyenv builds has no profile-guided optimization: Python code takes a quarter longer in it.
find_python() {
    local candidate distribution=/usr/bin/python3
    if [[ ":$PATH:" != *:/usr/bin:* ]] || ! { have uv || "$distribution" -c 'import ensurepip' 2>/dev/null; }; then
        distribution=python3
    fi
    for candidate in ${NEXA_PYTHON:+"$NEXA_PYTHON"} "$distribution" python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer was found" "install one (apt-get install -y python3), or name it in NEXA_PYTHON"
}
