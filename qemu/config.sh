# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Settings shared by the scripts in this folder: versions, packages and paths. Downloads and build
# results are below RB_CACHE, which git ignores.

RB_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
RB_CACHE=${RB_CACHE:-$RB_TOP/.cache}

# The reference kernel: a stock Debian one. When the archive has dropped this build, setup takes the
# newest one of the same series and prints its name.
RB_SERIES=7.3
RB_KREL=7.3.4+deb13-amd64
RB_SUITE=trixie
# The first Debian release whose own tools are new enough for that kernel.
RB_DEBIAN_MIN=13

RB_TOOLS=(
	build-essential gcc-multilib bc bison flex libelf-dev libssl-dev dwarves
	cpio kmod xz-utils zstd rsync file perl python3 git ca-certificates
	rustc rust-src rustfmt rust-clippy cargo bindgen clang lld llvm
	qemu-system-x86 virtme-ng busybox-static mount udev iproute2 procps strace stress-ng
	# The dependencies of checkpatch.pl --strict for checking spelling and trees.
	python3-ply python3-git codespell shellcheck
)

RB_ROOT=$RB_CACHE/root          # the toolchain root, where one is needed
RB_KERNEL=$RB_CACHE/kernel      # the unpacked kernel packages
RB_TREE=$RB_CACHE/linux         # the kernel source, prepared for modules
RB_DEBUG=$RB_CACHE/debug        # the debug kernel
RB_BUILD=${RB_BUILD:-$RB_CACHE/build}
RB_STAMPS=$RB_CACHE/stamps
RB_LOGS=${RB_LOGS:-$RB_CACHE/logs}
