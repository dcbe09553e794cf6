/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The DMA engine of QEMU's edu device: copies between memory and 4096 bytes of
 * its own, 100 ms after it was told to.
 *
 *	-device edu,dma_mask=0xffffffffffffffff
 *
 * The mask is a must: the device cuts what lies beyond its mask off an address,
 * without a word, and then writes to memory that is not ours.
 */
#ifndef SELFTESTS_EDU_H
#define SELFTESTS_EDU_H

#include "pci.h"

#define EDU_VENDOR	0x1234
#define EDU_DEVICE	0x11e8

/* Registers. Those of the DMA take 8 bytes at once. */
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
 * Its own memory, as it addresses it. QEMU before 8.2.1 aborts when a transfer
 * ends at the end of this; later ones, and so those that have the tools for the
 * kernels that this module needs, allow it.
 */
#define EDU_MEMORY	0x40000
#define EDU_BYTES	4096

/* Waits for the end of the transfer: its bit is cleared when all has been copied. */
static inline int edu_wait(struct pci_dev *pci)
{
	uint64_t start = pci_now();

	while (pci_read32(pci, EDU_DMA_COMMAND) & EDU_RUN) {
		if (pci_now() - start > EDU_TIMEOUT_NS) {
			/* It might still come and write to memory that others have then. */
			pci_master_off(pci);
			return -ETIMEDOUT;
		}
		usleep(1000);
	}
	return 0;
}

/* Tells the device to; returns at once. */
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

/* Finds and opens it; -ENODEV if there is none. */
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
