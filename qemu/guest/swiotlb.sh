#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Inside the guest whose devices use bounce buffers (swiotlb=force): tests of SYNC.

bash qemu/guest/tests.sh contig -- sync device
bash qemu/guest/tests.sh range phys_start=0x40000000 -- sync
