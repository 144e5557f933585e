# shellcheck shell=bash
# QEMU handlers in binfmt_misc, with the F flag that containers need. The kernel has one table for
# the whole machine, so several users count their uses and the last one takes the handlers out.

BINFMT=/proc/sys/fs/binfmt_misc
BINFMT_STATE=/run/kiln-binfmt

# The ELF header of each architecture: class, byte order and machine; the mask leaves out the OS ABI.
binfmt_rule() {
    local mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    case $1 in
    aarch64) printf ':qemu-aarch64:M::%s:%s:%s:OPF' '\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00' "$mask" "$2" ;;
    arm) printf ':qemu-arm:M::%s:%s:%s:OPF' '\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x28\x00' "$mask" "$2" ;;
    esac
}

# binfmt_needed: the architectures that this machine cannot run by itself.
binfmt_needed() {
    case $(uname -m) in
    x86_64) printf 'aarch64\narm\n' ;;
    # A 64-bit arm machine without AArch32 still needs the second; with it, a handler would only slow it down.
    aarch64) setarch linux32 true 2>/dev/null || printf 'arm\n' ;;
    esac
}

cached_qemu() { cached qemu-v1 qemu_interpreters; }

# A late QEMU: twice to four times as fast as the one of Debian 12, and static, so it runs anywhere.
qemu_interpreters() {
    local folder=$1 arch
    unpacked_packages forky qemu-user "$folder/all"
    mkdir -p "$folder/bin"
    for arch in aarch64 arm; do
        mv "$folder/all/usr/bin/qemu-$arch" "$folder/bin/"
    done
    rm -rf "$folder/all"
}

# binfmt_up USER: USER is the folder on whose behalf the handlers are held.
binfmt_up() {
    local qemu
    [[ -n $(binfmt_needed) ]] || return 0
    qemu=$(cached_qemu)
    mkdir -p "$BINFMT_STATE/users"
    flock "$BINFMT_STATE.lock" bash "$KILN_LIB/run.sh" binfmt_acquire "$1" "$qemu"
}

binfmt_acquire() {
    local user=$1 qemu=$2 arch
    if [[ ! -e $BINFMT/register ]]; then
        modprobe binfmt_misc 2>/dev/null || true
        mount -t binfmt_misc binfmt_misc "$BINFMT"
        touch "$BINFMT_STATE/mounted"
    fi
    for arch in $(binfmt_needed); do
        if ! binfmt_usable "$arch"; then
            # A handler without F is of no use to containers, but it is not ours to replace.
            [[ ! -e $BINFMT/qemu-$arch ]] || { fail "binfmt_misc has a qemu-$arch without the F flag" "apt-get install qemu-user-static, or take it out"; return 1; }
            binfmt_rule "$arch" "$qemu/bin/qemu-$arch" >"$BINFMT/register"
            touch "$BINFMT_STATE/registered-$arch"
        fi
    done
    printf '%s\n' "$user" >"$BINFMT_STATE/users/$(user_key "$user")"
}

binfmt_usable() { grep -lsE '^flags: .*F' "$BINFMT"/*"$1"* 2>/dev/null | grep -qE "/(qemu-)?$1$"; }

# binfmt_down USER: takes the handlers out when nobody else holds them.
binfmt_down() {
    [[ -d $BINFMT_STATE ]] || return 0
    flock "$BINFMT_STATE.lock" bash "$KILN_LIB/run.sh" binfmt_release "$1"
}

binfmt_release() {
    local entry arch
    rm -f "$BINFMT_STATE/users/$(user_key "$1")"
    for entry in "$BINFMT_STATE"/users/*; do
        # A user whose folder is gone went without saying so.
        [[ -e $entry ]] || continue
        [[ -d $(<"$entry") ]] || { rm -f "$entry"; continue; }
        return 0
    done
    for arch in aarch64 arm; do
        [[ -e $BINFMT_STATE/registered-$arch ]] || continue
        [[ ! -e $BINFMT/qemu-$arch ]] || echo -1 >"$BINFMT/qemu-$arch"
    done
    [[ ! -e $BINFMT_STATE/mounted ]] || umount "$BINFMT"
    rm -rf "$BINFMT_STATE"
}

user_key() { printf '%s' "$1" | sha256sum | cut -c 1-16; }
