#!/usr/bin/env bash
# All that is done with this tree, a word each.
#
#   ./do demo      installs what is missing, builds, and shows a mirror at work on real files
#   ./do cluster-demo  the same for a failover cluster under PostgreSQL, in a virtual machine where that is needed
#   ./do test      installs what is missing, and runs every check and test (the longest under a real kernel: ./do vm)
#   ./do check     formatting, lints and what `cargo test` runs, end-to-end tests too: what to run before a commit
#   ./do sim [N]   N simulation seeds of the mirror (20000)
#   ./do failover [N]  N simulation seeds of the failover manager, and as many of its leases (20000)
#   ./do vm [NAME...]  the scenarios of tests/vm under a real kernel, for half an hour, or those that are named
#   ./do model [ARG...]  the model of the protocol: its runs, planted mistakes and table, or kagami-model ARG...
#   ./do soak [M]  random faults under PostgreSQL for M minutes (60), in a virtual machine
#   ./do planted   plants defects, and shows which of them the simulator catches
#   ./do mutants PART [K/N]   mutates bitmap, core or core/FILE, and shows what no test notices
#   ./do fuzz [TARGET [SECONDS]]  searches for inputs that break a decoder (all of them, 600 s each)
#   ./do miri      runs what is unsafe and asks nothing of the kernel under Miri
#   ./do bench [ARG...]  measures: the main table into target/bench.json, or kagami-bench ARG...
#   ./do build     target/release/kagami
#   ./do package   the Debian package of it, in target/debian
#
# KAGAMI_SEEDS: how many seeds `sim` and `test` run where none are given, and `mutants` for each mutant.
#
# Needs Debian 12 or newer and Rust 1.95 or newer; installs Debian's packages rustc-web and
# cargo-web where there is no such Rust (Debian 12's own rustc is too old), and, for the tests,
# the real NBD clients that they use. Installing needs root, or sudo; nothing else does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

RUST_NEEDED=1.95
BUILD_PACKAGES=(gcc libc6-dev protobuf-compiler libprotobuf-dev)
TEST_PACKAGES=(libnbd-bin python3-libnbd nbdkit fio qemu-utils openssl e2fsprogs procps shellcheck strace iproute2 postgresql resource-agents libxml2-utils etcd-server)
# For kagami-bench besides: its namespaces and the peers that it measures.
BENCH_PACKAGES=(iproute2 util-linux fio nbdkit qemu-utils strace)
# For tests/vm: both virtual machines, and what the scenarios use inside.
VM_PACKAGES=(busybox-static kmod xz-utils qemu-system-x86 user-mode-linux nbd-client fio e2fsprogs fdisk dmsetup lvm2
    mmdebstrap uidmap postgresql python3 iproute2 qemu-utils)
# For `kagami cluster demo`: its service, its networks, and the virtual machine that it may need.
CLUSTER_DEMO_PACKAGES=(busybox-static kmod xz-utils user-mode-linux util-linux e2fsprogs iproute2 postgresql)
PACKAGE_PACKAGES=(dpkg-dev binutils)
SEEDS=${KAGAMI_SEEDS:-20000}
OTHER=
DENY_VERSION=0.20.2 MACHETE_VERSION=0.9.2 MUTANTS_VERSION=27.1.0 FUZZ_VERSION=0.13.2

say() { printf '\n== %s (%d:%02d)\n' "$*" $((SECONDS / 60)) $((SECONDS % 60)); }
die() { printf 'do: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "needs root for: $*"; fi
}

# Installs those of the named Debian packages that are missing.
need_packages() {
    local missing package round
    for round in 1 2 3; do
        missing=()
        for package in "$@"; do
            dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
        done
        [ ${#missing[@]} = 0 ] && return
        say "installing ${missing[*]}"
        [ "$round" -gt 1 ] || as_root apt-get -qq update
        # Again: a package of another release (a backport) may have had to go for one of these.
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
    done
    die "these packages can't be installed together: ${missing[*]}"
}

rust_is_new_enough() {
    command -v cargo >/dev/null && command -v rustc >/dev/null || return 1
    local have
    have=$(rustc --version | cut -d ' ' -f 2)
    [ "$(printf '%s\n%s\n' "$RUST_NEEDED" "$have" | sort -V | head -n 1)" = "$RUST_NEEDED" ]
}

need_rust() {
    [ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ] && PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    need_packages "${BUILD_PACKAGES[@]}"
    rust_is_new_enough && return
    # web: Debian keeps these two packages new for its browsers.
    [ -d /usr/lib/rust-web/bin ] || need_packages rustc-web cargo-web
    PATH="/usr/lib/rust-web/bin:$PATH"
    rust_is_new_enough || die "no Rust $RUST_NEEDED or newer: install it, e.g. with rustup"
}

# A cargo command that checks the tree; built once.
need_cargo_tool() { # NAME VERSION [OPTION-OF-CARGO-INSTALL]...
    cargo "$1" --version 2>/dev/null | grep -qF "$2" && return
    say "building cargo-$1 $2"
    cargo install --quiet --locked "${@:3}" "cargo-$1@$2"
}

# A program of the release build. Chosen together, all packages with programs agree on the features of what they stand on,
# and it is built once.
release() { # PROGRAM
    cargo build --quiet --release -p kagami -p kagami-bench -p kagami-tests --bin "$1"
}
built() { printf '%s/release/%s' "${CARGO_TARGET_DIR:-target}" "${1:-kagami}"; }
built_and_run() { # PROGRAM ARG...
    release "$1"
    "$(built "$1")" "${@:2}"
}

check() {
    need_rust
    say "formatting and lints"
    shellcheck --external-sources ./do .ci/run tests/planted/rustc tests/vm/{run,init,mkinitrd,fetch-kernel,fetch-debian,try,in-boot,node-boot,lib.sh,debian.sh,service.sh,faults.sh,cluster.sh,cluster-faults.sh,beside.sh} tests/vm/scenarios/*.sh \
        cli/package/{build,kagami-witness,unmount-at-shutdown} cli/package/debian/{postinst,prerm,postrm} \
        cli/package/ocf/{kagami,test,cluster} failover/src/resource/package.sh
    if cargo fmt --version >/dev/null 2>&1; then cargo fmt --all --check; else echo "(no rustfmt here)"; fi
    if cargo clippy --version >/dev/null 2>&1; then
        cargo clippy --quiet --workspace --all-targets -- -D warnings
    else
        echo "(no clippy here)"
        cargo check --quiet --workspace --all-targets
    fi
    say "unit, property and end-to-end tests"
    # Twice as many at a time as there are processors: the slow ones wait for other processes and for time-outs.
    RUST_TEST_THREADS=$((2 * $(nproc))) cargo test --quiet --workspace
}

sim() { # SEEDS
    need_rust
    say "simulation: $1 seeds"
    built_and_run kagami-sim run --seeds "$1"
}

failover() { # SEEDS
    need_rust
    say "simulation of the failover manager: $1 seeds"
    built_and_run kagami-failover-sim run --seeds "$1"
    say "simulation of leases: $1 seeds"
    built_and_run kagami-failover-sim run --leases --seeds "$1"
}

# Of each profile of docs/simulation.md the first seeds.
profiles() {
    local name
    for name in lease-race late-answers early-answers hand-over cooling clean-leave invalidated old-copies busy-end forced fenced guests carried full-stores bad-blocks unheard mirrors; do
        built_and_run kagami-sim run --profile "$name" --seeds 60
    done
}

model() { # ARG-OF-KAGAMI-MODEL...
    need_rust
    say "the model: $*"
    built_and_run kagami-model "$@"
}

# What scenarios need besides, by a line `# packages:` at their heads.
packages_of() { # [SCENARIO]...
    local name
    for name; do sed -n 's/^# packages: //p' "tests/vm/scenarios/$(basename "$name" .sh).sh"; done
}

vm() { # [SCENARIO]...
    say "scenarios under a real kernel"
    # The kernel's package is fetched with apt, whose lists may be old or missing.
    tests/vm/run --setup || { as_root apt-get -qq update && tests/vm/run --setup; }
    # Two at a time: each waits for time-outs, disks and links more than it computes.
    tests/vm/try --jobs "$(($(nproc) > 1 ? 2 : 1))" ${OTHER:+--other "$OTHER"} "$(built)" "$@"
}

# Its order of faults is the seed's: SOAK_SEED=N ./do soak.
soak() { # MINUTES
    say "random faults for $1 minutes"
    # Setting up and the last fault take their time, too.
    SOAK_MINUTES=$1 tests/vm/try --timeout $((($1 + 15) * 60)) "$(built)" soak
}

planted() { # [ARG-OF-KAGAMI-SIM]...
    need_rust
    say "planted defects"
    # Of this workspace's crates alone: all others are those of the release build.
    export RUSTC_WORKSPACE_WRAPPER="$PWD/tests/planted/rustc"
    built_and_run kagami-sim planted "$@"
    [ $# -gt 0 ] || built_and_run kagami-failover-sim planted
    unset RUSTC_WORKSPACE_WRAPPER
}

# Mutates PART, or shard K of N of it: all that can be switches in one build (tests/mutants), the rest with a build each. What
# has been tried is not tried again: remove the folder to begin anew. docs/mutants.md has the results.
mutants() { # PART [K/N]
    local part=$1 shard=${2:-0/1} out name status=0
    local names=() select=() tests=()
    out=${CARGO_TARGET_DIR:-$PWD/target}/mutants/${part//\//-}
    case $part in
        bitmap)
            select=(-p kagami-bitmap)
            tests=(--test-package kagami-bitmap --test-package kagami-tests
                -- --lib --test bitmap_model --test damage --test format_doc --test growing --test log_crashes
                --test log_places --test pages --test seeds) ;;
        core | core/*)
            select=(--file "replicator/src/core/$([ "$part" = core ] && echo '*' || echo "${part#core/}").rs")
            tests=(--test-package kagami-replicator --test-package kagami-tests
                -- --lib --test decide_table --test replaced_peer --test seeds) ;;
        *) die "mutants of bitmap, core or core/FILE, not of $part" ;;
    esac
    need_rust
    need_cargo_tool mutants "$MUTANTS_VERSION"
    mkdir -p "$out"
    say "mutants of $part, shard $shard: $out"
    cargo mutants --list --json "${select[@]}" >"$out/list.json"
    cargo run --quiet --release --manifest-path tests/mutants/Cargo.toml -- "$out" \
        --shard "$shard" --jobs "$(nproc)" ${KAGAMI_SEEDS:+--seeds "$KAGAMI_SEEDS"} \
        ${KAGAMI_UNTIL:+--until "$KAGAMI_UNTIL"} || status=$?
    [ "$status" -lt 2 ] && [ -z "${KAGAMI_UNTIL:-}" ] || return "$status"
    while read -r name; do
        names+=(--re "^$name\$")
    done < <(sed 's/[][(){}.*+?^$|\\]/\\&/g' "$out/alone.txt")
    [ ${#names[@]} -gt 0 ] || return "$status"
    say "those that are no switches, each built alone"
    # Status 2 and 3: some survived, or ran out of time.
    KAGAMI_SEEDS=${KAGAMI_SEEDS:-500} cargo mutants --no-shuffle --baseline skip --timeout 120 --build-timeout 900 --shard "$shard" \
        "${select[@]}" --output "$out" "${names[@]}" "${tests[@]}" || return $((status > 0 ? status : $?))
    return "$status"
}

# These two need a nightly compiler; nothing else does.
need_nightly() { # COMPONENT...
    command -v rustup >/dev/null || die "needs rustup, for a nightly compiler (https://rustup.rs)"
    rustup toolchain list | grep -q '^nightly' || rustup toolchain install nightly --profile minimal
    [ $# = 0 ] || rustup component add --toolchain nightly "$@"
}

fuzz() { # [TARGET [SECONDS]]
    need_packages g++
    need_nightly
    need_cargo_tool fuzz "$FUZZ_VERSION"
    local target seconds=${2:-600} work merged limits corpus targets=(${1:+"$1"})
    [ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(sed -n '/\[\[bin/,$s/^name = "\([a-z_]*\)"$/\1/p' tests/fuzz/Cargo.toml)
    for target in "${targets[@]}"; do
        [ -f "tests/fuzz/targets/$target.rs" ] || die "no such target: $target (tests/fuzz/targets)"
        say "fuzzing $target for $seconds s"
        work=$(mktemp -d) merged=$(mktemp -d) corpus=$PWD/tests/fuzz/corpus/$target
        mkdir -p "$corpus"
        limits=(-max_total_time="$seconds" -max_len=8192 -timeout=20 -malloc_limit_mb=64 -rss_limit_mb=1500)
        [ ! -f "tests/fuzz/dictionaries/$target.dict" ] || limits+=("-dict=$PWD/tests/fuzz/dictionaries/$target.dict")
        # Found inputs go to $work; what adds coverage is kept, as few and as small as possible.
        cargo +nightly fuzz run --fuzz-dir tests/fuzz "$target" "$work" "$corpus" -- "${limits[@]}" -print_final_stats=1
        cargo +nightly fuzz run --fuzz-dir tests/fuzz "$target" "$merged" "$work" "$corpus" -- -merge=1
        keep_corpus "$merged" "$corpus"
        rm -r "$work" "$merged"
    done
}

# Inputs of a merged corpus, small and large ones, as many as git should hold.
keep_corpus() { # FROM TO
    local count
    count=$(find "$1" -type f | wc -l)
    find "$2" -type f -delete
    find "$1" -type f -printf '%s %p\n' | sort -n |
        awk -v every=$(((count + 279) / 280)) 'NR % every == 0 && (total += $1) <= 150000 { print $2 }' |
        xargs -r cp -t "$2"
}

# What an operation costs in system calls, against its bounds; times are never asserted.
costs() {
    say "what operations cost, counted"
    built_and_run kagami-bench costs
}

# Without arguments the main table, about a quarter of an hour; cut, it goes on where it was.
bench() { # [ARG-OF-KAGAMI-BENCH]...
    release kagami
    if [ $# = 0 ]; then
        set -- all --resume --json "${CARGO_TARGET_DIR:-target}/bench.json"
    fi
    built_and_run kagami-bench "$@"
}

miri() {
    need_nightly miri rust-src
    say "unsafe code under Miri"
    export MIRIFLAGS=-Zmiri-disable-isolation
    cargo +nightly miri test -p kagami-replicator --test disk_buffers
    cargo +nightly miri test -p kagami-replicator --lib shell::uring::operation
}

case ${1:-help} in
    build) need_rust; release kagami ;;
    demo)
        need_rust
        say "building (some minutes the first time)"
        release kagami
        exec "$(built)" demo "${@:2}" ;;
    cluster-demo)
        need_packages "${CLUSTER_DEMO_PACKAGES[@]}"
        need_rust
        say "building (some minutes the first time)"
        release kagami
        exec "$(built)" cluster demo "${@:2}" ;;
    check) need_packages "${TEST_PACKAGES[@]}"; check ;;
    sim) sim "${2:-$SEEDS}" ;;
    failover) failover "${2:-20000}" ;;
    package)
        need_packages "${PACKAGE_PACKAGES[@]}"
        need_rust
        release kagami
        cli/package/build "$(built)" "${CARGO_TARGET_DIR:-target}/debian" "${@:2}" ;;
    vm)
        read -rd '' -a besides < <(packages_of "${@:2}") || :
        need_packages "${VM_PACKAGES[@]}" "${PACKAGE_PACKAGES[@]}" "${besides[@]}"
        need_rust
        release kagami
        vm "${@:2}" ;;
    model)
        if [ $# -gt 1 ]; then model "${@:2}"; else model check && model bugs && model table; fi ;;
    soak)
        need_packages "${VM_PACKAGES[@]}"
        need_rust
        release kagami
        soak "${2:-60}" ;;
    planted) planted "${@:2}" ;;
    mutants) mutants "${@:2}" ;;
    fuzz) need_rust; fuzz "${@:2}" ;;
    miri) need_rust; miri ;;
    bench)
        need_packages "${BENCH_PACKAGES[@]}"
        need_rust
        bench "${@:2}" ;;
    test)
        # Built once each: what a second build would go by is gigabytes.
        export CARGO_INCREMENTAL=0
        need_packages "${TEST_PACKAGES[@]}" "${VM_PACKAGES[@]}" "${PACKAGE_PACKAGES[@]}"
        check
        say "dependencies: licences, sources, bans, unused"
        # What runs for a second need not be optimised for minutes.
        need_cargo_tool deny "$DENY_VERSION" --debug
        need_cargo_tool machete "$MACHETE_VERSION" --debug
        cargo deny --log-level error check bans licenses sources
        cargo machete
        sim "$SEEDS"
        failover 10000
        profiles
        planted
        model check quick
        say "the main job, shown"
        release kagami
        "$(built)" demo
        say "the resource agent under ocf-tester"
        cli/package/ocf/test "$(built)"
        costs
        # The build that the tests left is another one, to upgrade to. The rest of what is tried under a real kernel is
        # `./do vm`, for half an hour more.
        export SHORT=1
        OTHER=${CARGO_TARGET_DIR:-target}/debug/kagami vm
        say "all of it passed" ;;
    help | -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;;
    *) die "there is no ./do $1 (./do help names the words)" ;;
esac
