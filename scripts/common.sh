# Shared by the scripts beside it, which source it: where things are, how they report, what the release is called.
# shellcheck shell=bash

# A failure inside $(...) is a failure of the script.
shopt -s inherit_errexit

# shellcheck disable=SC2034 # Used by the scripts.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Where rustup puts cargo, and where distributions put ip and nft; sudo and services often leave them out.
PATH=$PATH:${HOME:-/root}/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin

say() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
}

fail() {
    say "$*"
    exit 1
}

# The comment at the head of a script is its help.
show_help() {
    awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$0"
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# Prints where a tool of LLVM 19 is: distributions give it a name of its own or a directory of its own.
llvm19() {
    local place
    for place in "$(command -v "$1-19" || true)" /usr/lib{,64}/llvm{,-}19/bin/"$1"; do
        if [[ -x $place ]]; then
            printf '%s\n' "$place"
            return
        fi
    done
    return 1
}

# Given all arguments that are left, ends the script when the first one lacks the value that should follow it.
needs_value() {
    [[ $# -ge 2 && -n $2 ]] || fail "$1 needs a value; --help tells more"
}

# Version of the release, which Cargo.toml states.
release_version() {
    sed -n 's/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml" | head -n 1
}

# Version of the C interface, which the header states: programs ask for it, and the library's file is named by it.
interface_version() {
    awk '/^#define CAPTURE_VERSION_(MAJOR|MINOR|PATCH) / { part = part dot $3; dot = "." } END { print part }' \
        "$root/include/libcapture.h"
}

# Prints the directory that a release is built in.
release_directory() {
    (cd "$root" && cargo metadata --format-version 1 --no-deps --locked --offline) |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1\/release/p'
}

# Builds the release, and prints the directory that it stands in.
build_release() {
    (cd "$root" && cargo build --release --locked --lib >&2)
    release_directory
}

# Builds the program that plays scenarios and the one that makes their traffic, and prints their directory.
build_measurement() {
    (cd "$root" && cargo build --release --locked --package capture-test-programs --package capture-test-support \
        --bin accuracy --bin traffic_maker >&2)
    release_directory
}

# The directory with the built libraries: the one given, or that of a release built now.
artifacts_or_build() {
    local given=$1 directory=$1
    if [[ -z $given ]]; then
        has cargo || fail "cargo was not found; build elsewhere and name the directory with --artifacts"
        directory=$(build_release)
    fi
    [[ -e $directory/libcapture.so ]] || fail "there is no libcapture.so in ${directory:-the build}"
    (cd "$directory" && pwd)
}
