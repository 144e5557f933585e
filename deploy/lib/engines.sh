# shellcheck shell=bash
# Container engines from Debian packages, unpacked beside each other and started with everything of
# their own: data, sockets, bridge, control groups. The machine's engine, if any, is never touched.

# What the unpacked binaries need of the machine, and the tools that the scripts use themselves.
# shellcheck disable=SC2034 # for the scripts that source this
ENGINE_PACKAGES=(ca-certificates curl debian-archive-keyring iproute2 iptables libdevmapper1.02.1
    libseccomp2 libsystemd0 openssl perl-base procps python3 skopeo util-linux xz-utils)

# Debian 12's own generation, and a current one. runc links against the C library dynamically, so the
# newer engine uses the older runc.
cached_docker20() { cached docker20-v1 unpacked_packages bookworm docker.io containerd runc tini; }
cached_docker28() { cached docker28-v1 unpack_docker28; }

unpack_docker28() {
    unpacked_packages forky docker.io docker-cli docker-buildx containerd "$1"
    unpacked_packages bookworm runc tini "$1/host"
    cp -a "$1/host/usr/sbin/runc" "$1/usr/sbin/"
    cp -a "$1/host/usr/bin/tini-static" "$1/usr/bin/"
    rm -rf "$1/host"
}

docker_cli() { printf '%s/usr/bin/docker\n' "$(cached_docker28)"; }
docker_buildx() { printf '%s/usr/libexec/docker/cli-plugins/docker-buildx\n' "$(cached_docker28)"; }

# start_dockerd FOLDER ENGINE STORE MIRROR: ENGINE is an unpacked engine's folder, STORE `classic` or
# `containerd`, MIRROR the address of a registry to ask before Docker Hub, or empty.
start_dockerd() {
    local folder=$1 engine=$2 store=$3 mirror=$4 key
    key=$(user_key "$folder")
    mkdir -p "$folder"
    make_bridge "$folder" "kiln${key:0:8}"
    dockerd_config "$folder" "$engine" "$store" "$mirror" "$key" >"$folder/daemon.json"
    start_isolated "$folder" env PATH="$engine/usr/sbin:$engine/usr/bin:$PATH" HOME="$folder" \
        "$engine/usr/sbin/dockerd" --config-file "$folder/daemon.json"
}

dockerd_config() {
    local folder=$1 engine=$2 store=$3 mirror=$4 key=$5
    python3 - "$@" <<'PYTHON'
import json, sys
folder, engine, store, mirror, key = sys.argv[1:]
config = {
    "hosts": [f"unix://{folder}/docker.sock"],
    "data-root": f"{folder}/data",
    "exec-root": f"{folder}/x",
    "pidfile": f"{folder}/docker.pid",
    "bridge": f"kiln{key[:8]}",
    # The firewall is the machine's. Builds reach the bridge and, through it, this machine only.
    "iptables": False,
    "ip-forward": False,
    "ip-masq": False,
    # With systemd's driver the containers would be units of the machine's systemd.
    "exec-opts": ["native.cgroupdriver=cgroupfs"],
    "cgroup-parent": f"/kiln-{key}",
    "init-path": f"{engine}/usr/bin/tini-static",
    "userland-proxy": False,
    "log-level": "info",
}
if mirror:
    config["registry-mirrors"] = [f"http://{mirror}"]
if "docker20" in engine:
    config["deprecated-key-path"] = f"{folder}/key.json"
else:
    config["ip6tables"] = False
    config["features"] = {"containerd-snapshotter": store == "containerd"}
print(json.dumps(config, indent=2))
PYTHON
}

await_dockerd() {
    wait_until 60 curl -sf --noproxy "*" --max-time 2 --unix-socket "$1/docker.sock" http://docker/_ping ||
        fail "dockerd in $1 does not answer" "look at its log" "$1/log"
}

stop_dockerd() {
    stop_daemon "$1"
    remove_bridge "$1"
    remove_cgroups "$1"
    rm -rf "${1:?}/data" "$1/x" "$1/docker.sock"
}

# make_bridge FOLDER NAME: a bridge with a subnet that nothing here uses. 198.18.0.0/15 is set aside
# for tests and routed nowhere.
make_bridge() {
    local folder=$1 name=$2 third
    [[ ! -e /sys/class/net/$name ]] || return 0
    for third in $(shuf -i 0-255); do
        ip -4 -o addr show | grep -q " 198\.18\.$third\." && continue
        ip link add "$name" type bridge
        printf '%s\n' "$name" >"$folder/bridge"
        ip addr add "198.18.$third.1/24" dev "$name"
        ip link set "$name" up
        return 0
    done
    fail "no free subnet in 198.18.0.0/16 for the bridge $name"
}

remove_bridge() {
    local name
    [[ -s $1/bridge ]] || return 0
    name=$(<"$1/bridge")
    [[ ! -e /sys/class/net/$name ]] || ip link delete "$name"
    rm -f "$1/bridge"
}

remove_cgroups() {
    find /sys/fs/cgroup -depth -type d -path "*/kiln-$(user_key "$1")*" -exec rmdir {} + 2>/dev/null || true
}
