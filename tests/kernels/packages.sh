# Fetches kernels of Debian's releases, for scripts/kernels, which sources it.
# shellcheck shell=bash

# What signs the packages of all releases.
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Prints the address that the system's own packages of its main archive come from.
find_mirror() {
    local release address
    # shellcheck source=/dev/null
    release=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME-}")
    # shellcheck disable=SC2016 # apt-get fills them in.
    address=$(apt-get indextargets --format '$(CREATED_BY) $(COMPONENT) $(RELEASE) $(REPO_URI)' |
        awk -v release="$release" '$1 == "Packages" && $2 == "main" && $3 == release { print $4; exit }')
    [[ -n $address ]] && printf '%s\n' "$address"
}

# Runs a command of apt for a release alone, whose lists are in the directory: release_apt DIRECTORY COMMAND ARGUMENT...
release_apt() {
    local directory=$1 command=$2
    shift 2
    "$command" -qq \
        -o Dir::Etc::SourceList="$directory/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$directory/lists" -o Dir::State::Status=/dev/null \
        -o Dir::Cache="$directory/cache" -o Dir::Cache::Archives="$directory/cache/archives" \
        -o Acquire::Languages=none -o APT::Sandbox::User=root "$@"
}

# Prints the packages that a package depends on, of those whose names fit: dependencies DIRECTORY PACKAGE PATTERN.
dependencies() {
    release_apt "$1" apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces "$2" |
        awk -v pattern="$3" '$1 == "Depends:" && $2 ~ pattern { print $2 }' | sort -u
}

# Unpacks the kernel of a release with its modules into the directory's `files`: fetch_kernel MIRROR SUITE DIRECTORY.
fetch_kernel() {
    local mirror=$1 suite=$2 directory=$3 architecture image package
    local -a packages
    architecture=$(dpkg --print-architecture)
    mkdir -p "$directory"/{lists,cache/archives}/partial "$directory/files"
    printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$suite" >"$directory/sources.list"
    release_apt "$directory" apt-get update || fail "could not fetch the lists of packages of $suite from $mirror"
    image=$(dependencies "$directory" "linux-image-cloud-$architecture" "^linux-image-[0-9]")
    [[ -n $image ]] || fail "$suite of $mirror has no linux-image-cloud-$architecture"
    # Where the image only names its parts, these are fetched.
    mapfile -t packages < <(dependencies "$directory" "$image" "^linux-(base|binary|modules)-[0-9]")
    (cd "$directory" && release_apt "$directory" apt-get download "$image" "${packages[@]}") ||
        fail "could not fetch $image from $mirror"
    for package in "$directory"/*.deb; do
        dpkg-deb -x "$package" "$directory/files"
    done
}
