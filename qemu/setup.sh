#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Sets up a bare Debian 12 or 13 machine: a tree to build modules against and a kernel to boot.
# Steps that are done already are skipped. An interrupted step starts over cleanly.
#
#   MIRROR=URL    the Debian archive to use (default: the host's own)
#   RB_CACHE=DIR  the folder for all files (default: .cache)
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"
start=$SECONDS

[ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] ||
	die "the set-up needs a Debian amd64 machine; elsewhere build with 'make KDIR=...'"
[ "$(id -u)" = 0 ] ||
	die "the set-up installs packages: run it as root, or use your own kernel with KDIR= and KERNEL="

mkdir -p "$RB_CACHE"
# One set-up at a time, since two would unpack into the same folders.
exec 9>"$RB_CACHE/lock"
flock -n 9 || { say "waiting for another set-up to finish"; flock 9; }

archives() {
	apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' |
		grep -v security | grep -m 1 debian
}
mirror() {
	if [ -n "${MIRROR:-}" ]; then
		echo "$MIRROR"
	elif ! archives; then
		# On a machine just installed, no archive is listed before the first update.
		apt-get update >/dev/null 2>&1
		archives || die "no Debian archive in the host's apt sources; name one with MIRROR="
	fi
}

# Prints a clear message before a long step fails without the archive.
reachable() {
	/usr/lib/apt/apt-helper download-file "$1/dists/$RB_SUITE/InRelease" "$RB_CACHE/InRelease" \
		>/dev/null 2>&1 ||
		die "the Debian archive at $1 can't be reached: check the network, or name one with MIRROR="
}

# Runs apt-get on the host. It usually fails because a registry can't be reached.
host_install() {
	local missing=() p
	for p in "$@"; do
		dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	export DEBIAN_FRONTEND=noninteractive
	step "host-packages" "installing on the host: ${missing[*]}" \
		bash -c 'apt-get update && apt-get install -y --no-install-recommends "$@"' - "${missing[@]}"
}

make_root() {
	rm -rf --one-file-system "$RB_ROOT" "$RB_ROOT.part"
	local m=$1 s sources=()
	for s in "$RB_SUITE" "$RB_SUITE-updates"; do
		sources+=("deb $m $s main")
	done
	mmdebstrap --variant=apt --include="$(IFS=,; echo "${RB_TOOLS[*]}")" \
		"$RB_SUITE" "$RB_ROOT.part" "${sources[@]}"
	mv "$RB_ROOT.part" "$RB_ROOT"
}

# The kernel's packages are unpacked, never installed. Nothing on the machine changes, and no boot
# loader is touched. apt uses a separate state for that.
fetch_kernel() {
	local m=$1 apt=$RB_CACHE/apt opts rel=$RB_KREL
	rm -rf "$apt" "$RB_KERNEL" "$RB_KERNEL.part"
	mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$RB_KERNEL.part"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $m $RB_SUITE-backports main" \
		>"$apt/sources.list"
	opts=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=-
		-o "Dir::State=$apt/state" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
	"$here/enter.sh" apt-get "${opts[@]}" update
	if ! "$here/enter.sh" apt-cache "${opts[@]}" show "linux-image-$rel" >/dev/null 2>&1; then
		rel=$("$here/enter.sh" apt-cache "${opts[@]}" pkgnames "linux-image-$RB_SERIES" |
			sed -n "s/^linux-image-\(${RB_SERIES}[.0-9]*+deb13-amd64\)$/\1/p" | sort -V | tail -n 1)
		[ -n "$rel" ] || { echo "the archive has no kernel of the $RB_SERIES series"; return 1; }
		echo "$RB_KREL is gone from the archive, taking $rel" | tee "$RB_CACHE/notice"
	fi
	cd "$RB_KERNEL.part"
	# linux-image stands for several packages: the kernel and its modules.
	local packages
	packages=$("$here/enter.sh" apt-cache "${opts[@]}" depends --recurse --no-recommends \
		--no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
		"linux-image-$rel" | grep -Fx -e "linux-image-$rel" -e "linux-binary-$rel" -e "linux-modules-$rel")
	# shellcheck disable=SC2086 # package names
	"$here/enter.sh" apt-get "${opts[@]}" download $packages "linux-headers-$rel" \
		"linux-source-$RB_SERIES"
	local deb
	for deb in *.deb; do
		echo "unpacking $deb"
		"$here/enter.sh" dpkg-deb -x "$deb" .
		rm "$deb"
	done
	"$here/enter.sh" depmod -b "$RB_KERNEL.part/usr" "$rel"
	cd "$RB_TOP"
	mv "$RB_KERNEL.part" "$RB_KERNEL"
	echo "$rel" >"$RB_CACHE/krel"
}

unpack_tree() {
	rm -rf "$RB_TREE"
	mkdir -p "$RB_TREE"
	"$here/enter.sh" tar -xf "$RB_KERNEL/usr/src/linux-source-$RB_SERIES.tar.xz" \
		-C "$RB_TREE" --strip-components=1 --checkpoint=20000 --checkpoint-action=echo='%u records'
}

# Debian's headers package has no Rust metadata, so it is generated here, from the source and
# configuration of the stock kernel.
prepare_tree() {
	local rel version
	rel=$(krel)
	# 7.3.4+deb13-amd64 -> +deb13-amd64: the part that the Makefile lacks.
	version="+${rel#*+}"
	cp "$RB_KERNEL/usr/src/linux-headers-$rel/.config" "$RB_TREE/.config"
	cp "$RB_KERNEL/usr/src/linux-headers-$rel/Module.symvers" "$RB_TREE/Module.symvers"
	"$here/enter.sh" bash -ec "
		cd '$RB_TREE'
		scripts/config --disable MODULE_SIG_ALL
		make LOCALVERSION='$version' olddefconfig
		grep -q '^CONFIG_RUST=y' .config || { echo 'no CONFIG_RUST: make rustavailable says:'; make rustavailable; exit 1; }
		make -j\$(nproc) LOCALVERSION='$version' modules_prepare
		test \"\$(make -s LOCALVERSION='$version' kernelrelease)\" = '$rel'
	"
}

m=$(mirror)
m=${m%/}
[ "$(cat "$RB_STAMPS/kernel" 2>/dev/null)" = "$RB_KREL" ] || reachable "$m"
if needs_root; then
	host_install mmdebstrap debian-archive-keyring util-linux
	once root "$RB_SUITE ${RB_TOOLS[*]}" "making the $RB_SUITE toolchain root (about 2.5 GB, a minute)" make_root "$m"
else
	host_install "${RB_TOOLS[@]}"
fi
once kernel "$RB_KREL" "fetching the stock kernel $RB_KREL, its headers and its source" fetch_kernel "$m"
[ ! -e "$RB_CACHE/notice" ] || say "$(cat "$RB_CACHE/notice")"
once tree "$(krel)" "unpacking the kernel source" unpack_tree
once prepare "$(krel) $(cat "$RB_STAMPS/root" 2>/dev/null)" \
	"preparing the kernel tree for Rust modules (2 to 3 minutes)" prepare_tree
say "set-up ready in $((SECONDS - start)) s: kernel $(krel)"
