/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The DMA engine of QEMU's edu device. It copies between memory and 4096 bytes of its own, 100 ms
 * after the command.
 *
 *	-device edu,dma_mask=0xffffffffffffffff
 *
 * The mask is required: the device silently clears the address bits outside of its mask. It would
 * then write to memory that does not belong to the test.
 */
#ifndef SELFTESTS_EDU_H
#define SELFTESTS_EDU_H

#include "pci.h"

#define EDU_VENDOR	0x1234
#define EDU_DEVICE	0x11e8

/* Registers. Those of the DMA engine take accesses of 8 bytes. */
#define EDU_ID		0x00
#define EDU_DMA_FROM	0x80
#define EDU_DMA_TO	0x88
#define EDU_DMA_COUNT	0x90
#define EDU_DMA_COMMAND	0x98

static_assert(sizeof(long) == 8, "a register of 8 bytes takes one access of 8 bytes");

/* The upper 24 bits are the version. */
#define EDU_ID_MASK	0xff
#define EDU_ID_VALUE	0xedu

#define EDU_RUN		1
#define EDU_FROM_EDU	2
#define EDU_TIMEOUT_NS	(10 * 1000000000ULL)

/*
 * The device's memory, in its own addresses. QEMU before 8.2.1 aborts when a transfer ends at the
 * end of this memory. Versions that come with the tools for this module's kernels are later.
 */
#define EDU_MEMORY	0x40000
#define EDU_BYTES	4096

/* Waits until the transfer has ended: the device then clears the bit EDU_RUN. */
static inline int edu_wait(struct pci_dev *pci)
{
	uint64_t start = pci_now();

	while (pci_read32(pci, EDU_DMA_COMMAND) & EDU_RUN) {
		if (pci_now() - start > EDU_TIMEOUT_NS) {
			/*
			 * A late transfer could write to memory that is allocated to another client
			 * by then.
			 */
			pci_master_off(pci);
			return -ETIMEDOUT;
		}
		usleep(1000);
	}
	return 0;
}

/* Starts a transfer, and returns at once. */
static inline void edu_start(struct pci_dev *pci, uint64_t from, uint64_t to, uint64_t bytes,
			     uint64_t direction)
{
	pci_write64(pci, EDU_DMA_FROM, from);
	pci_write64(pci, EDU_DMA_TO, to);
	pci_write64(pci, EDU_DMA_COUNT, bytes);
	pci_write64(pci, EDU_DMA_COMMAND, EDU_RUN | direction);
}

static inline int edu_copy(struct pci_dev *pci, uint64_t from, uint64_t to, uint64_t bytes,
			   uint64_t direction)
{
	int err = edu_wait(pci);

	if (err)
		return err;
	edu_start(pci, from, to, bytes, direction);
	return edu_wait(pci);
}

/* Finds and opens the device. Returns -ENODEV if there is none. */
static inline int edu_open(struct pci_dev *pci)
{
	static const struct pci_match match = { .vendor = EDU_VENDOR, .device = EDU_DEVICE };
	char name[PCI_NAME_LEN];
	int err = pci_find(&match, 0, name);

	if (!err)
		err = pci_open(pci, name);
	if (!err && (pci_read32(pci, EDU_ID) & EDU_ID_MASK) != EDU_ID_VALUE) {
		pci_close(pci);
		return -EIO;
	}
	if (!err)
		err = pci_master_on(pci);
	return err;
}

#endif /* SELFTESTS_EDU_H */
