# shellcheck shell=bash
# What the scripts say: numbered steps with elapsed time, signs of life, errors with a remedy.
# Sourced by deploy/quickstart.sh, tests/bed/bed and tests/run.sh.

UI_STARTED=${UI_STARTED:-$SECONDS}
UI_STEP=0
# The last line of a log is shown as a sign of life this often, in seconds.
UI_PULSE=${UI_PULSE:-10}

elapsed() { printf '%d:%02d' $(((SECONDS - UI_STARTED) / 60)) $(((SECONDS - UI_STARTED) % 60)); }

say() { printf '       %s\n' "$*"; }

# step TEXT: announces the next numbered step.
step() {
    UI_STEP=$((UI_STEP + 1))
    printf '[%s] %d. %s\n' "$(elapsed)" "$UI_STEP" "$*"
}

# fail WHAT REMEDY [LOG]: one clear error on stderr, the log's tail before it. Always returns 1.
fail() {
    {
        if [[ -n ${3:-} && -s $3 ]]; then
            printf '\n----- the last lines of %s\n' "$3"
            tail -n 25 "$3"
            printf -- '-----\n'
        fi
        printf 'error: %s\n' "$1"
        [[ -z ${2:-} ]] || printf '  try: %s\n' "$2"
    } >&2
    return 1
}

die() {
    fail "$@" || exit 1
}

# A shell without job control hides Ctrl-C from what it runs in the background, so a script that uses
# `watched` calls this first.
stop_with_watched() {
    trap 'end_watched; exit 130' INT
    trap 'end_watched; exit 143' TERM
}

WATCHED=""
end_watched() { [[ -z $WATCHED ]] || kill "$WATCHED" 2>/dev/null || true; }

# watched LABEL LOG COMMAND...: runs the command into LOG and shows every UI_PULSE seconds that it
# is alive. Returns the command's status.
watched() {
    local label=$1 log=$2 started=$SECONDS pid last
    shift 2
    "$@" >"$log" 2>&1 &
    pid=$!
    WATCHED=$pid
    local next=$((SECONDS + UI_PULSE))
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.2
        if ((SECONDS >= next)); then
            next=$((SECONDS + UI_PULSE))
            # The carriage returns of progress bars would otherwise hide all but the first state.
            last=$(tail -c 400 "$log" | tr '\r' '\n' | grep -v '^[[:space:]]*$' | tail -n 1 | cut -c 1-100 || true)
            say "$label: $((SECONDS - started)) s ... $last"
        fi
    done
    WATCHED=""
    wait "$pid"
}

# wait_until SECONDS CONDITION...: polls the condition five times a second.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.2
    done
}
