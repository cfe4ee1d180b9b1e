# Makes what a virtual machine boots, and boots it, for scripts/kernels, which sources it.
# shellcheck shell=bash

# Modules that scenarios use, by directory of the kernel's; what they depend on is in these, too.
module_places=(net drivers/net lib crypto arch/x86/crypto)

# Copies a file into a root directory, with the shared libraries that it needs: put ROOT FILE [PLACE].
put() {
    local root=$1 file=$2 place=${3-$2} library
    install -D "$(realpath "$file")" "$root$place"
    for library in $({ ldd "$file" 2>/dev/null || true; } | grep -o '/[^ ]*'); do
        [[ -e $root$library ]] || install -D "$(realpath "$library")" "$root$library"
    done
}

# Makes the root directory that is the same for all kernels: make_root ROOT PROGRAMS.
make_root() {
    local made=$1 programs=$2 tool
    mkdir -p "$made"/{proc,sys,dev,run,tmp,root,sbin,capture}
    put "$made" "$(command -v busybox)" /bin/busybox
    # The kernel calls this one itself.
    ln -s /bin/busybox "$made/sbin/modprobe"
    ln -s /bin/busybox "$made/bin/sh"
    for tool in ethtool ip nft ping ss; do
        put "$made" "$(command -v "$tool")" "/usr/bin/$tool"
    done
    for tool in accuracy traffic_maker; do
        put "$made" "$programs/$tool" "/capture/$tool"
    done
    # Loaded when a thread is cancelled, and therefore not listed by ldd(1).
    put "$made" "$("${CC-cc}" -print-file-name=libgcc_s.so.1)" /lib/libgcc_s.so.1
    mkdir -p "$made/etc"
    printf 'root:x:0:0::/root:/bin/sh\n' >"$made/etc/passwd"
    printf 'root:x:0:\n' >"$made/etc/group"
    install "$root/tests/kernels/init" "$made/init"
}

# Makes the image of a machine for the kernel in `files`: make_image DIRECTORY ROOT ARGUMENT... with those of init.
make_image() {
    local directory=$1 base=$2 modules version made="$1/root"
    shift 2
    modules=$(find "$directory/files" -type d -path '*/lib/modules/*' -prune)
    version=${modules##*/}
    # It stands in one place or in the other.
    mv "$(find "$directory/files" -name 'vmlinuz*' -type f)" "$directory/vmlinuz"
    mkdir -p "$made/lib/modules/$version"
    (cd "$modules" && find "${module_places[@]/#/kernel/}" -name '*.ko*') |
        (cd "$modules" && cpio -pdm --quiet "$made/lib/modules/$version")
    cp "$modules"/modules.{builtin*,order} "$made/lib/modules/$version/"
    find "$made" -name '*.ko.xz' -exec busybox unxz {} +
    busybox depmod -b "$made" "$version"
    printf '%s\n' "$@" >"$made/arguments"
    mkfifo "$directory/said"
    (cd "$base" && find . | cpio -o -H newc --quiet) >"$directory/image"
    (cd "$made" && find . | cpio -o -H newc --quiet) >>"$directory/image"
}

# Boots a machine, which writes what its init says to the FIFO `said`, until it ends or so many seconds have passed:
# boot DIRECTORY SECONDS. To be run in the background.
boot() {
    local directory=$1
    exec timeout "$2" qemu-system-x86_64 -accel tcg -cpu max -m 2G -smp 2 \
        -nodefaults -display none -no-reboot -monitor none -serial "file:$directory/console" -serial stdio \
        -kernel "$directory/vmlinuz" -initrd "$directory/image" \
        -append "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off" </dev/null >"$directory/said"
}
