#!/usr/bin/env bash
# Runs every test of Kiln: format, lints, unit, integration, simulation, documents, scripts, and the
# end-to-end tests on a bed of real engines and registries. The same command runs in CI.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
KILN_LIB=$PWD/deploy/lib
# shellcheck source=deploy/lib/run.sh
source "$KILN_LIB/run.sh"

LOGS=$(readlink -m "${CARGO_TARGET_DIR:-target}")/test-logs
export CARGO_TERM_COLOR=never CARGO_TERM_PROGRESS_WHEN=never
# The gate gives one answer for one tree; an empty KILN_TEST_SEED lets the property tests look elsewhere each time.
KILN_TEST_SEED=${KILN_TEST_SEED-1}
if [[ -n $KILN_TEST_SEED ]]; then export PROPTEST_RNG_SEED=$KILN_TEST_SEED; fi
PASSED=0
FAILED=0
FAILURES=()
BED=""
PREPARING=""

usage() {
    cat <<'USAGE'
usage: tests/run.sh [--quick | --bench | --help]

  (nothing)   installs what the tests need and runs all of them
  --quick     leaves out what needs a container engine, and with it root
  --bench     measures Kiln against docker buildx on the same engine instead

Logs are in target/test-logs. The last line is `N passed, N failed`; the exit code is 0 when none failed.
KILN_TEST_THREADS (default 2) is how many end-to-end tests run at once.
KILN_TEST_SEED (default 1) is where the property tests start; empty means somewhere else each time.
KILN_FUZZ_RUNS (default 1500) is how many mutations each parser gets, KILN_FUZZ_SEED (default 1) where they start.
KILN_SIMULATION_SEEDS (default 10000) is how many histories of the farm are simulated: a million takes some twenty minutes. A history that
breaks a rule is printed with the command that replays it.
KILN_BENCH_ONLY=rate,idle,memory,cached,steps,context,merge measures some of these alone; KILN_BENCH_RUNS (default 7) says how often.
USAGE
}

main() {
    case ${1:-} in
    "") run_all ;;
    --quick) run_quick ;;
    --bench) run_bench ;;
    -h | --help) usage ;;
    *) usage >&2 && exit 2 ;;
    esac
}

run_all() {
    need_root
    begin
    install_tools "${ENGINE_PACKAGES[@]}"
    # The bed's downloads and the compiler want different things of the machine.
    setsid tests/bed/bed prepare >"$LOGS/bed-prepare.log" 2>&1 </dev/null &
    PREPARING=$!
    quick_checks
    engine_checks
    finish
}

run_quick() {
    begin
    if [[ $(id -u) == 0 ]]; then
        install_tools
    fi
    quick_checks
    finish
}

run_bench() {
    need_root
    begin
    install_tools "${ENGINE_PACKAGES[@]}"
    step "release binaries"
    watched "compiling" "$LOGS/release.log" cargo build --release --workspace --bins ||
        die "the release build failed" "cargo build --release --workspace --bins" "$LOGS/release.log"
    bed_up || die "no bed, no benchmark" "" "$LOGS/bed-up.log"
    step "benchmark"
    "${CARGO_TARGET_DIR:-target}/release/bench" </dev/null
}

quick_checks() {
    check "format" cargo fmt --all --check
    check "lints" cargo clippy --workspace --all-targets --locked -- -D warnings
    check "binaries" cargo build --workspace --bins --locked
    quick_tests
    doc_tests
    check "documentation builds without warnings" env RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --workspace --no-deps --locked
    check "links between documents" document_links
    check "scripts" check_scripts
}

engine_checks() {
    if bed_up; then
        PASSED=$((PASSED + 1))
        bed_tests
        check "the bed leaves nothing behind" bed_down
    else
        count_failure "the test bed" "$LOGS/bed-up.log"
    fi
}

need_root() {
    [[ $(id -u) == 0 ]] || die "the end-to-end tests start container engines, which takes root" "sudo, or tests/run.sh --quick"
}

begin() {
    command -v cargo >/dev/null || die "there is no cargo" "install Rust: https://www.rust-lang.org/tools/install"
    mkdir -p "$LOGS"
    trap clean_up EXIT
    # A run that is stopped from outside must not leave its engines running.
    stop_with_watched
}

clean_up() {
    if [[ -n $PREPARING ]]; then
        kill -- "-$PREPARING" 2>/dev/null || true
    fi
    bed_down >/dev/null 2>&1 || true
}

install_tools() {
    step "tools"
    # gcc links and compiles ring's assembly; git is what the tests' sources come from.
    watched "installing" "$LOGS/tools.log" install_packages gcc libc6-dev git openssh-client shellcheck "$@" ||
        die "the packages could not be installed" "apt-get update, then again" "$LOGS/tools.log"
}

# ----- counting

# check LABEL COMMAND...: one check, by its exit code.
check() {
    local label=$1 log=$LOGS/${1//[^a-z]/-}.log started=$SECONDS
    shift
    step "$label"
    if watched "$label" "$log" "$@" </dev/null; then
        PASSED=$((PASSED + 1))
        say "ok, $((SECONDS - started)) s"
    else
        count_failure "$label" "$log"
    fi
}

count_failure() {
    FAILED=$((FAILED + 1))
    FAILURES+=("$1")
    fail "$1 failed" "read $2" "$2" || true
}

# tests LABEL LOG COMMAND...: a test runner, counted by its summaries.
tests() {
    local label=$1 log=$2 started=$SECONDS status=0 passed failed
    shift 2
    step "$label"
    watched "$label" "$log" "$@" </dev/null || status=$?
    read -r passed failed < <(summaries "$log")
    # A runner that stopped before its summary, as after a compile error, is one failure.
    if ((status != 0 && failed == 0)); then
        failed=1
    fi
    PASSED=$((PASSED + passed))
    FAILED=$((FAILED + failed))
    if ((failed > 0)); then
        FAILURES+=("$label: $failed")
        show_failures "$log"
        fail "$label: $failed failed, $passed passed" "read $log" || true
    else
        say "$passed passed, $((SECONDS - started)) s"
    fi
}

# summaries LOG: passed and failed, over all summary lines of nextest and of cargo's own runner.
summaries() {
    sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
        # Summary [ 1.2s] 12 tests run: 11 passed (1 slow), 1 failed, 2 skipped
        /^ *Summary \[/ && match($0, /[0-9]+(\/[0-9]+)? tests? run: /) {
            planned = substr($0, RSTART, RLENGTH); sub(/^[0-9]+\//, "", planned); run = planned + 0
            ok = match($0, /[0-9]+ passed/) ? substr($0, RSTART, RLENGTH) + 0 : 0
            passed += ok; failed += run - ok
        }
        /^test result: / {
            for (i = 1; i < NF; i++) { if ($(i + 1) ~ /^passed/) passed += $i; if ($(i + 1) ~ /^failed/) failed += $i }
        }
        END { print passed + 0, failed + 0 }'
}

# What a CI log must hold, for nobody can read its files afterwards.
show_failures() {
    {
        grep -E '^ *(FAIL|TIMEOUT|SIG[A-Z]+|ABORT|XFAIL|TRY) |^test .* FAILED$|^error' "$1" | sort -u | head -n 60 || true
        printf -- '----- the end of %s\n' "$1"
        tail -n 150 "$1"
        printf -- '-----\n'
    } >&2
}

finish() {
    local failure
    for failure in "${FAILURES[@]}"; do
        say "failed: $failure"
    done
    say "took $(elapsed)"
    clean_up
    trap - EXIT
    printf '%s passed, %s failed\n' "$PASSED" "$FAILED"
    ((FAILED == 0))
}

# ----- Rust

have_nextest() { cargo nextest --version >/dev/null 2>&1; }

nextest() {
    cargo nextest run --workspace --locked --no-fail-fast --no-tests pass --show-progress counter \
        --failure-output immediate --tool-config-file "kiln:$PWD/tests/bed/nextest.toml" "$@"
}

quick_tests() {
    local log=$LOGS/quick.log names=()
    if have_nextest; then
        tests "unit, integration and simulation tests" "$log" nextest -E 'not binary(/^bed_/)'
    else
        mapfile -t names < <(test_binaries | grep -v '^bed_' | sed 's/^/--test=/')
        tests "unit, integration and simulation tests" "$log" \
            cargo test --workspace --locked --no-fail-fast --lib --bins "${names[@]}"
    fi
}

bed_tests() {
    local log=$LOGS/bed.log threads=${KILN_TEST_THREADS:-2} names=()
    if have_nextest; then
        tests "end-to-end tests" "$log" nextest --test-threads "$threads" -E 'binary(/^bed_/)'
    else
        mapfile -t names < <(test_binaries | grep '^bed_' | sed 's/^/--test=/')
        [[ ${#names[@]} == 0 ]] || tests "end-to-end tests" "$log" \
            cargo test -p kiln-tests --locked --no-fail-fast "${names[@]}" -- --test-threads "$threads"
    fi
}

doc_tests() {
    tests "examples in the documentation" "$LOGS/doc-tests.log" cargo test --workspace --locked --doc --no-fail-fast
}

test_binaries() {
    cargo metadata --no-deps --format-version 1 --locked | python3 -c '
import json, sys
for package in json.load(sys.stdin)["packages"]:
    for target in package["targets"]:
        if "test" in target["kind"]:
            print(target["name"])'
}

# ----- documents and scripts

# Every relative link of a Markdown file leads to a file.
# shellcheck disable=SC2016 # the backticks are Markdown's
document_links() {
    git ls-files -z '*.md' | python3 -c '
import os, re, sys
dead = []
for page in filter(None, sys.stdin.read().split("\0")):
    if not os.path.exists(page):
        continue
    text = re.sub(r"```.*?```", "", open(page, encoding="utf-8").read(), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target = link.split("#")[0]
        if target and not re.match(r"[a-z]+:", target) and not os.path.exists(os.path.join(os.path.dirname(page), target)):
            dead.append(f"{page}: {link}")
print("\n".join(dead))
sys.exit(bool(dead))'
}

check_scripts() {
    command -v shellcheck >/dev/null || { fail "there is no shellcheck" "apt-get install shellcheck"; return 1; }
    # By their first line, for not all have a suffix.
    git grep -lIE '^#!.*\b(ba)?sh$|^# shellcheck shell=' -- ':!*.md' | xargs -r shellcheck -x
}

# ----- the bed

bed_up() {
    step "test bed"
    if [[ -n $PREPARING ]]; then
        # `up` says what went wrong, should this have failed.
        wait "$PREPARING" || true
        PREPARING=""
    fi
    BED=$(mktemp -d /tmp/kiln-bed.XXXXXX)
    watched "starting" "$LOGS/bed-up.log" tests/bed/bed up "$BED" </dev/null || return 1
    set -a
    # shellcheck source=/dev/null
    source "$BED/bed.env"
    set +a
}

bed_down() {
    [[ -n $BED ]] || return 0
    tests/bed/bed down "$BED" && rm -rf "$BED"
}

main "$@"
