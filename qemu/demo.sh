#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# From a bare machine to DMA into buffers of the pool, on a stock kernel.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"
cd "$RB_TOP"
start=$SECONDS

qemu/setup.sh
qemu/build.sh
mkdir -p "$RB_CACHE/out"
disk=$RB_CACHE/out/demo.img
qemu/enter.sh "$RB_BUILD/selftests/nvme-image" create "$disk"
qemu/boot.sh demo --append "cma=256M" --nvme "$disk" --timeout 300 -- bash qemu/guest/demo.sh
say "the demo took $((SECONDS - start)) s"
