# shellcheck shell=bash
# Other people's tools that read what Kiln publishes, from Debian packages that are unpacked beside the system: cosign of
# two generations, crane, oras and podman. The first four need no library but the C library of Debian 12.

# trixie has no crane, and its oras makes no indexes.
cached_peers() { cached peers-v3 unpack_peers; }

unpack_peers() {
    local folder=$1
    unpacked_packages trixie cosign "$folder/trixie"
    unpacked_packages forky cosign crane oras "$folder/forky"
    # Debian 13's podman wants a newer C library than Debian 12 has.
    unpacked_packages bookworm podman conmon runc libgpgme11 libassuan0 libgpg-error0 libsubid4 libdevmapper1.02.1 \
        golang-github-containers-common golang-github-containers-image "$folder/bookworm"
    podman_wrapper "$folder" >"$folder/podman"
    chmod 755 "$folder/podman"
}

# podman_wrapper FOLDER: podman with its own libraries, found by where the wrapper lies.
podman_wrapper() {
    cat <<'SH'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
libraries=$(echo "$here"/bookworm/usr/lib/*-linux-gnu*/ "$here"/bookworm/lib/*-linux-gnu*/ | tr ' ' ':')
export LD_LIBRARY_PATH="$libraries" CONTAINERS_CONF="$here/bookworm/usr/share/containers/containers.conf"
exec "$here/bookworm/usr/bin/podman" --conmon "$here/bookworm/usr/bin/conmon" --runtime "$here/bookworm/usr/sbin/runc" "$@"
SH
}

# peer_lines BED: where they are, for bed.env.
peer_lines() {
    local bed=$1 peers
    peers=$(cached_peers)
    env_line "$bed" KILN_BED_COSIGN "$peers/trixie/usr/bin/cosign"
    env_line "$bed" KILN_BED_COSIGN3 "$peers/forky/usr/bin/cosign"
    env_line "$bed" KILN_BED_CRANE "$peers/forky/usr/bin/crane"
    env_line "$bed" KILN_BED_ORAS "$peers/forky/usr/bin/oras"
    env_line "$bed" KILN_BED_PODMAN "$peers/podman"
}
