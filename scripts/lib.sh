# Shared by the scripts of this folder: where the repository is, how to speak, which cargo to use.
# Sourced, not run.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
RUST_MINIMUM=1.90

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# True when version $1 is at least version $2.
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

rust_version() { rustc --version 2>/dev/null | awk '{print $2}'; }

rust_is_good() {
    local version
    version=$(rust_version) || return 1
    [ -n "$version" ] && version_at_least "$version" "$RUST_MINIMUM" && command -v cargo >/dev/null
}
