#!/usr/bin/env bash
# From a fresh Debian machine with Rust to a four-architecture image under one tag: a private container
# engine and registry, `kiln up`, one `kiln build`, and every child of the index run.
set -euo pipefail
shopt -s inherit_errexit
REPOSITORY=$(readlink -f "$(dirname "${BASH_SOURCE[0]}")/..")
KILN_LIB=$REPOSITORY/deploy/lib
# shellcheck source=deploy/lib/run.sh
source "$KILN_LIB/run.sh"

STATE=$(readlink -m "${KILN_QUICKSTART_DIR:-/var/tmp/kiln-quickstart}")
LOGS=$STATE/logs
KILN=$(readlink -m "${CARGO_TARGET_DIR:-$REPOSITORY/target}")/release/kiln
PLATFORMS=linux/amd64,linux/arm64,linux/arm/v7,linux/arm/v6
OWN_ENGINE=""
BUILT=""

usage() {
    cat <<'USAGE'
usage: deploy/quickstart.sh [--engine unix:///var/run/docker.sock] | --down | --help

Installs what is missing, builds Kiln, starts `kiln up`, builds examples/hello for linux/amd64,
linux/arm64, linux/arm/v7 and linux/arm/v6, shows the published index and runs each image.
It can be run again: what still runs is used again, and `kiln up` is started anew.

  --engine ADDRESS   build on a Docker Engine of yours instead of a private one; it must reach Docker Hub
  --down             end what was started and remove its data

The private engine, the registry and Kiln's data live in $KILN_QUICKSTART_DIR (/var/tmp/kiln-quickstart).
An engine or registry that was there before is never touched. Where Docker Hub does not answer, the base
images are stand-ins made from Debian packages. Downloads are kept in $KILN_BED_CACHE (~/.cache/kiln-bed).
USAGE
}

main() {
    local action=quickstart
    while [[ $# -gt 0 ]]; do
        case $1 in
        --engine) OWN_ENGINE=${2:?--engine takes an address} && shift ;;
        --down) action=down ;;
        # Given by this script to itself when it goes on as root.
        --built) BUILT=yes ;;
        -h | --help) usage && exit ;;
        *) usage >&2 && exit 2 ;;
        esac
        shift
    done
    stop_with_watched
    [[ $STATE =~ ^[A-Za-z0-9/._-]{2,60}$ ]] || die "$STATE cannot hold sockets" "set KILN_QUICKSTART_DIR to a short path without spaces"
    "$action"
}

quickstart() {
    command -v apt-get >/dev/null || die "this is not a Debian machine" "start kiln up beside your own engine: kiln up --help"
    [[ -n $BUILT ]] || build_kiln
    if [[ $(id -u) != 0 ]]; then
        continue_as_root
    fi
    mkdir -p "$LOGS"
    install_tools
    base_images
    registry
    emulators
    engine
    kiln_up
    build_hello
    show_index
    run_children
    farewell
}

# Cargo runs as the person who owns the checkout; containers and binfmt_misc take root.
continue_as_root() {
    command -v sudo >/dev/null || die "container engines take root, and there is no sudo" "run this as root"
    say "going on as root with sudo"
    exec sudo env UI_STARTED="$((UI_STARTED - SECONDS))" KILN_QUICKSTART_DIR="$STATE" KILN_BED_CACHE="$KILN_CACHE" \
        CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$REPOSITORY/target}" \
        bash "$0" --built ${OWN_ENGINE:+--engine "$OWN_ENGINE"}
}

build_kiln() {
    local log
    step "Kiln, in release mode"
    command -v cargo >/dev/null || die "there is no cargo" "install Rust: https://www.rust-lang.org/tools/install"
    if [[ $(id -u) == 0 ]]; then
        watched "installing a linker" /tmp/kiln-quickstart-linker.log install_packages gcc libc6-dev git ||
            die "gcc could not be installed" "apt-get update, then again" /tmp/kiln-quickstart-linker.log
    fi
    command -v cc >/dev/null || die "there is no C compiler to link with" "apt-get install gcc libc6-dev"
    log=$(mktemp /tmp/kiln-quickstart-cargo.XXXXXX)
    (cd "$REPOSITORY" && watched "compiling" "$log" cargo build --release --locked -p kiln-cli) ||
        die "Kiln does not compile" "cargo build --release -p kiln-cli" "$log"
    rm -f "$log"
    [[ -x $KILN ]] || die "cargo made no $KILN" "see where CARGO_TARGET_DIR points"
}

install_tools() {
    step "tools"
    watched "installing" "$LOGS/tools.log" install_packages "${ENGINE_PACKAGES[@]}" ||
        die "the packages could not be installed" "apt-get update, then again" "$LOGS/tools.log"
}

base_images() {
    step "base images"
    rm -f "$STATE/stand-ins"
    if docker_hub_answers; then
        say "Docker Hub answers: golang:alpine and alpine come from there"
    elif [[ -n $OWN_ENGINE ]]; then
        die "Docker Hub does not answer, and stand-ins can only be given to a private engine" "run again without --engine"
    else
        say "Docker Hub does not answer: golang:alpine and alpine will be stand-ins made from Debian packages"
        watched "making stand-ins" "$LOGS/stand-ins.log" bash "$KILN_LIB/run.sh" cached_stand_ins ||
            die "the stand-ins could not be made" "read $LOGS/stand-ins.log" "$LOGS/stand-ins.log"
        touch "$STATE/stand-ins"
    fi
}

registry() {
    local port
    step "registry"
    if daemon_gone "$STATE/reg"; then
        port=$(remembered_port registry)
        [[ ! -e $STATE/stand-ins ]] || seed_registry "$STATE/reg"
        start_registry "$STATE/reg" "$port"
    fi
    REGISTRY=127.0.0.1:$(remembered_port registry)
    await_registry "$STATE/reg" "${REGISTRY#*:}" || exit 1
    say "$REGISTRY"
}

# remembered_port NAME: the same port in every run, so that tags and logins stay good.
remembered_port() {
    [[ -s $STATE/port-$1 ]] || free_port >"$STATE/port-$1"
    cat "$STATE/port-$1"
}

emulators() {
    step "QEMU handlers for the architectures that this machine lacks"
    watched "registering" "$LOGS/binfmt.log" bash "$KILN_LIB/run.sh" binfmt_up "$STATE" ||
        die "binfmt_misc could not be set up" "read $LOGS/binfmt.log" "$LOGS/binfmt.log"
}

engine() {
    local mirror=""
    step "container engine"
    watched "unpacking" "$LOGS/engine.log" bash "$KILN_LIB/run.sh" cached_docker28 ||
        die "the engine could not be had from Debian's packages" "read $LOGS/engine.log" "$LOGS/engine.log"
    DOCKER=$(docker_cli)
    if [[ -n $OWN_ENGINE ]]; then
        ENGINE=$OWN_ENGINE
        "$DOCKER" -H "$ENGINE" version >/dev/null || die "the engine at $ENGINE does not answer" "docker -H $ENGINE version"
        say "yours, at $ENGINE"
        return
    fi
    ENGINE=unix://$STATE/d/docker.sock
    if daemon_gone "$STATE/d"; then
        [[ ! -e $STATE/stand-ins ]] || mirror=$REGISTRY
        # What an end without warning, as by a reboot, left.
        stop_daemon "$STATE/d" && remove_bridge "$STATE/d"
        rm -f "$STATE/d/docker.pid"
        start_dockerd "$STATE/d" "$(cached_docker28)" containerd "$mirror"
    fi
    await_dockerd "$STATE/d" || exit 1
    say "Docker Engine $("$DOCKER" -H "$ENGINE" version -f '{{.Server.Version}}'), private, at $ENGINE"
}

kiln_up() {
    local ready=$STATE/kiln/data/up.env
    step "kiln up"
    stop_daemon "$STATE/kiln"
    rm -f "$ready"
    mkdir -p "$STATE/kiln/data"
    : >"$STATE/kiln/log"
    start_daemon "$STATE/kiln" "$KILN" up --data-dir "$STATE/kiln/data" --engine "$ENGINE" \
        --grpc-listen "127.0.0.1:$(remembered_port grpc)" --http-listen "127.0.0.1:$(remembered_port http)"
    wait_until 60 up_or_gone "$ready" || true
    [[ -s $ready ]] || die "kiln up did not get ready" "read $STATE/kiln/log" "$STATE/kiln/log"
    # shellcheck source=/dev/null
    source "$ready"
    export KILN_ENDPOINT KILN_CA
    KILN_TOKEN=$(<"$KILN_TOKEN_FILE")
    export KILN_TOKEN
    say "endpoint $KILN_ENDPOINT, dashboard $KILN_DASHBOARD"
}

up_or_gone() { [[ -s $1 ]] || daemon_gone "$STATE/kiln"; }

build_hello() {
    step "kiln build: examples/hello for $PLATFORMS"
    IMAGE=$REGISTRY/hello:latest
    say "kiln build -t $IMAGE --platform $PLATFORMS examples/hello"
    "$KILN" build -t "$IMAGE" --platform "$PLATFORMS" "$REPOSITORY/examples/hello" ||
        die "the build failed" "read what it says above" "$STATE/kiln/log"
}

show_index() {
    step "the index behind $IMAGE"
    skopeo inspect --raw --tls-verify=false "docker://$IMAGE" >"$STATE/index.json" ||
        die "the registry has no $IMAGE" "read $STATE/reg/log" "$STATE/reg/log"
    python3 -m json.tool <"$STATE/index.json" | sed 's/^/       /'
}

# children: platform and digest of each child, one a line.
children() {
    python3 -c '
import json, sys
for child in json.load(open(sys.argv[1]))["manifests"]:
    platform = child["platform"]
    print("/".join(platform[key] for key in ("os", "architecture", "variant") if key in platform), child["digest"])' "$STATE/index.json"
}

run_children() {
    local platform digest greeting seen=0
    step "every image, run"
    while read -r platform digest; do
        greeting=$("$DOCKER" -H "$ENGINE" run --rm --network none --platform "$platform" "${IMAGE%:*}@$digest" 2>"$LOGS/run.log" </dev/null) ||
            die "the image for $platform does not run" "read $LOGS/run.log" "$LOGS/run.log"
        printf '       %-14s %s\n' "$platform" "$greeting"
        [[ $greeting == "Hello, $(cut -d / -f 2 <<<"$platform")!" ]] ||
            die "the image for $platform is not of that architecture" "look at the build: kiln builds ls"
        seen=$((seen + 1))
    done < <(children)
    [[ $seen == 4 ]] || die "the index has $seen platforms instead of 4" "look at the build: kiln builds ls"
}

farewell() {
    step "done"
    cat <<FAREWELL
       the farm still runs. To use it from this shell:
         export KILN_ENDPOINT=$KILN_ENDPOINT KILN_CA=$KILN_CA KILN_TOKEN=\$(cat $KILN_TOKEN_FILE)
         $KILN builds ls
       its dashboard is at $KILN_DASHBOARD
       to end it: deploy/quickstart.sh --down
FAREWELL
}

down() {
    if [[ ! -d $STATE ]]; then
        say "nothing to undo in $STATE"
        return
    fi
    if [[ $(id -u) != 0 ]]; then
        exec sudo env KILN_QUICKSTART_DIR="$STATE" KILN_BED_CACHE="$KILN_CACHE" bash "$0" --down
    fi
    step "ending Kiln"
    stop_daemon "$STATE/kiln"
    step "ending the private engine and the registry"
    stop_dockerd "$STATE/d"
    stop_daemon "$STATE/reg"
    step "taking out the QEMU handlers, unless something else uses them"
    binfmt_down "$STATE"
    rm -rf "$STATE"
    say "undone; downloads stay in $KILN_CACHE"
}

main "$@"
