#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Inside the guest that has an IOMMU: tests of the addresses that devices behind it can access.
. qemu/guest/lib.sh

modprobe -a vfio-pci vfio_iommu_type1 2>/dev/null
bash qemu/guest/tests.sh contig -- iommu device sync
bash qemu/guest/tests.sh range phys_start=0x40000000 -- iommu device
