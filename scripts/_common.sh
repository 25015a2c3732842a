# What the scripts share. Sourced, never run. Everything here is relative to the root of the checkout.
# shellcheck shell=bash

say() { printf '%s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

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

# Where wheels and certificates come from: what pip is told holds for uv too.
use_package_settings() {
    export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
    [ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS
    export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}" UV_PYTHON_DOWNLOADS=never
}

# First Python that this project can run on.
find_python() {
    local candidate
    for candidate in ${NEXA_PYTHON:+"$NEXA_PYTHON"} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer was found" "install one (apt-get install -y python3), or name it in NEXA_PYTHON"
}
