# shellcheck shell=bash
# Stand-ins for the base images of Docker Hub, on a machine that cannot reach it.

docker_hub_answers() {
    # Its root answers 401 without a token; any answer will do.
    curl -s -o /dev/null --max-time 8 https://registry-1.docker.io/v2/
}

cached_stand_ins() { cached stand-ins-v1 make_stand_ins; }

# make_stand_ins FOLDER: the data of a registry that holds them.
make_stand_ins() {
    local folder=$1 arch own port go
    own=$(dpkg --print-architecture)
    for arch in amd64 arm64 armhf armel; do
        # The packages of golang-go say which Go is the suite's.
        download bookworm "$arch" "$folder/debs/$arch" busybox-static libc6 golang-go
        go=$(dpkg-deb -f "$folder/debs/$arch"/golang-go_*.deb Depends | grep -oE 'golang-1\.[0-9]+-go' | head -n 1)
        download bookworm "$arch" "$folder/debs/$arch" "$go"
        [[ $arch != amd64 ]] || download bookworm "$arch" "$folder/debs/$arch" "${go%-go}-src"
    done
    [[ -d $folder/debs/$own ]] || { fail "no stand-ins can be made on $own" "use a machine that reaches Docker Hub"; return 1; }
    unpack "$folder/own" "$folder/debs/$own"/busybox-static_*.deb
    port=$(free_port)
    start_registry "$folder/registry" "$port"
    trap 'stop_daemon "$folder/registry"' EXIT
    await_registry "$folder/registry" "$port"
    python3 "$KILN_LIB/stand_in_images.py" --packages "$folder/debs" --busybox "$folder/own/bin/busybox" --registry "127.0.0.1:$port"
    stop_daemon "$folder/registry"
    trap - EXIT
    mv "$folder/registry/data" "$folder/data"
    rm -rf "$folder/debs" "$folder/own" "$folder/registry"
}

# seed_registry FOLDER: gives a registry that is not started yet the stand-ins.
seed_registry() {
    local seed
    seed=$(cached_stand_ins)
    mkdir -p "$1/data"
    # Blobs are written once and never changed, so they may be shared; tags and links are not.
    (
        cd "$seed/data" || exit 1
        find . -type d -exec mkdir -p "$1/data/{}" \;
        cp -al docker/registry/v2/blobs/. "$1/data/docker/registry/v2/blobs/" 2>/dev/null ||
            cp -a docker/registry/v2/blobs/. "$1/data/docker/registry/v2/blobs/"
        cp -a docker/registry/v2/repositories/. "$1/data/docker/registry/v2/repositories/"
    )
}
