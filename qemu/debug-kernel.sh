#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Builds the debug kernel once, from debug.config into RB_DEBUG, with the patches in qemu/patches/.
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"
cd "$RB_TOP" || exit 1

# The applied patches, which are reverted before another set of patches is applied.
applied=$RB_DEBUG/.rust_buddy-patches

# Unpacks a separate source tree, since the stock one is configured in place.
unpack() {
	rm -rf "$RB_DEBUG"
	mkdir -p "$RB_DEBUG"
	qemu/enter.sh tar -xf "$RB_KERNEL/usr/src/linux-source-$RB_SERIES.tar.xz" -C "$RB_DEBUG" \
		--strip-components=1
}
take_out() {
	local i files=("$applied"/*.patch)
	for ((i = ${#files[@]} - 1; i >= 0; i--)); do
		[ ! -e "${files[i]}" ] || patch -p1 -s -f -R -d "$RB_DEBUG" <"${files[i]}" || return 1
	done
	rm -rf "$applied"
}
put_in() {
	local file
	mkdir "$applied"
	for file in qemu/patches/*.patch; do
		patch -p1 -s -f -d "$RB_DEBUG" <"$file" || return 1
		cp "$file" "$applied"
	done
}
# An interrupted run leaves a patch that is not recorded. Only a new tree is sure to be clean.
repatch() {
	(take_out && put_in) || (unpack && put_in)
}
compile() {
	# shellcheck disable=SC2016 # expanded by the inner shell
	qemu/enter.sh bash -ec '
		cd "$1"
		make LLVM=1 KCONFIG_ALLCONFIG="$2" allnoconfig
		lost=$(grep "^CONFIG_" "$2" | grep -vxFf .config) || :
		if [ -n "$lost" ]; then
			echo "the configuration lost: $lost"
			exit 1
		fi
		make LLVM=1 -j"$(nproc)" bzImage modules
		# A copy elsewhere, since virtme-ng would look for the modules of the tree.
		cp arch/x86/boot/bzImage rust_buddy-debug.img
	' - "$RB_DEBUG" "$RB_TOP/qemu/debug.config"
}

once debug-source "$(krel)" "unpacking the source for the debug kernel" unpack
patches=$(cat qemu/patches/*.patch | cksum)
# A tree that was unpacked anew has no patches.
[ -d "$applied" ] || rm -f "$RB_STAMPS/debug-patches"
once debug-patches "$patches" "patching the debug kernel" repatch
once debug-kernel "$(krel) $(grep -v "^#" qemu/debug.config | cksum) $patches" \
	"building the debug kernel (about 10 minutes on 2 cores)" compile
