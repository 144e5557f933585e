# shellcheck shell=bash
# Daemons that leave nothing behind. Each lives in FOLDER: pid, log, sockets and data.
#
# An isolated daemon has mount and process namespaces of its own. Whatever it starts (containerd,
# shims, containers) and whatever it mounts (overlays, network namespaces) ends with the namespaces'
# first process, however it died. It shares the machine's network, so that 127.0.0.1 is one place.

# start_daemon FOLDER COMMAND...
start_daemon() {
    local folder=$1
    shift
    mkdir -p "$folder"
    setsid "$@" >>"$folder/log" 2>&1 </dev/null 9>&- &
    remember_pid "$folder" $!
}

# start_isolated FOLDER COMMAND...: FOLDER/first-pid names the namespaces' first process.
start_isolated() {
    local folder=$1 init
    shift
    init=$(cached_tini)
    start_daemon "$folder" unshare --mount --propagation private --pid --fork --mount-proc --kill-child=KILL \
        "$init/usr/bin/tini-static" -- bash "$KILN_LIB/run.sh" isolated_main "$@"
}

# isolated_main COMMAND...: the inside. A dockerd takes a containerd or plugins that it finds under
# /run for its own; empty folders keep it from the machine's.
isolated_main() {
    local folder
    for folder in /run/containerd /run/docker; do
        mkdir -p "$folder"
        mount -t tmpfs -o mode=711 tmpfs "$folder"
    done
    exec "$@"
}

cached_tini() { cached tini-v1 unpacked_packages bookworm tini; }

# A pid alone can be another process's by the time it is used; with its start time it cannot.
remember_pid() { printf '%s %s\n' "$2" "$(start_time "$2")" >"$1/pid"; }

start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }

# daemon_pid FOLDER: the pid if the daemon still runs.
daemon_pid() {
    local pid started
    [[ -s $1/pid ]] && read -r pid started <"$1/pid" && [[ $(start_time "$pid") == "$started" ]] && printf '%s\n' "$pid"
}

daemon_gone() { ! daemon_pid "$1" >/dev/null; }

# stop_daemon FOLDER [SECONDS]: asks, waits, ends. For an isolated daemon both go to the namespaces'
# first process: unshare itself passes nothing on.
stop_daemon() {
    local folder=$1 patience=${2:-15} pid target
    if pid=$(daemon_pid "$folder"); then
        target=$(pgrep -P "$pid" -x tini-static || printf '%s' "$pid")
        kill -TERM "$target" 2>/dev/null || true
        wait_until "$patience" daemon_gone "$folder" || kill -KILL "$target" 2>/dev/null || true
        wait_until 5 daemon_gone "$folder" || { fail "process $pid of $folder does not end"; return 1; }
    fi
    rm -f "$folder/pid"
}

# free_port: a TCP port that nothing listens on, below the range that outgoing connections use.
free_port() {
    python3 - <<'PYTHON'
import random, socket
while True:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", random.randrange(20000, 32000)))
        except OSError:
            continue
        print(probe.getsockname()[1])
        break
PYTHON
}

http_answers() { curl -s --noproxy '*' --max-time 2 -o /dev/null "$1"; }

# start_registry FOLDER PORT [HTPASSWD]: a registry on 127.0.0.1:PORT that can delete.
start_registry() {
    local folder=$1 port=$2 htpasswd=${3:-} binary
    binary=$(cached registry-v1 unpacked_packages bookworm docker-registry)/usr/bin/docker-registry
    mkdir -p "$folder/data"
    {
        printf 'version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: false\n'
        printf 'storage:\n  filesystem:\n    rootdirectory: %s/data\n  delete:\n    enabled: true\n' "$folder"
        printf 'http:\n  addr: 127.0.0.1:%s\n  secret: %s\n' "$port" "kiln-$port"
        [[ -z $htpasswd ]] || printf 'auth:\n  htpasswd:\n    realm: kiln\n    path: %s\n' "$htpasswd"
    } >"$folder/config.yml"
    start_daemon "$folder" "$binary" serve "$folder/config.yml"
}

await_registry() {
    wait_until 20 http_answers "http://127.0.0.1:$2/v2/" ||
        fail "the registry on port $2 does not answer" "look at its log" "$1/log"
}
