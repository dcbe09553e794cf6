/* SPDX-License-Identifier: GPL-2.0 */
/*
 * As much of a PCI driver in user space as the tests with real device models
 * need: find a device, take it, reach its registers, let it do DMA, and give it
 * buffers out of the pool. All of it through sysfs, as root.
 *
 * Every function returns 0 or a negative errno. A struct dma_buffer is told to
 * devices by its physical address: with an IOMMU between them and the memory a
 * test has to PIN for the device itself.
 */
#ifndef SELFTESTS_PCI_H
#define SELFTESTS_PCI_H

#include <assert.h>
#include <dirent.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <time.h>

#include "rb.h"

/* Registers, descriptors and test patterns are all used as the CPU has them. */
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "PCI is little-endian");

#define PCI_SYSFS	"/sys/bus/pci/devices"
/* "0000:00:04.0", and room for the longer domains of some bridges. */
#define PCI_NAME_LEN	32
#define PCI_PATH_LEN	128

/* The COMMAND register in the configuration space, 16 bits. */
#define PCI_COMMAND		0x04
#define PCI_COMMAND_MEMORY	0x0002
#define PCI_COMMAND_MASTER	0x0004
#define PCI_COMMAND_NO_INTX	0x0400

/* What a device reads or writes too: exactly one access, here and now. */
#define PCI_ONCE(type, at)	(*(__volatile__ type *)(at))

/* What to look for; 0 stands for any. */
struct pci_match {
	uint32_t vendor;
	uint32_t device;
	uint32_t class;
};

/*
 * A device that is ours.
 * @name:   its directory in PCI_SYSFS
 * @config: its configuration space
 * @bar:    BAR 0
 * @size:   bytes of BAR 0
 */
struct pci_dev {
	char name[PCI_NAME_LEN];
	int config;
	uint8_t *bar;
	size_t size;
};

static inline void pci_path(char path[PCI_PATH_LEN], const char *name, const char *file)
{
	snprintf(path, PCI_PATH_LEN, PCI_SYSFS "/%.*s/%s", PCI_NAME_LEN - 1, name, file);
}

/* What PIN calls the device of that name. */
static inline void pci_rb_name(char text[RUST_BUDDY_DEVICE_LEN], const char *name)
{
	snprintf(text, RUST_BUDDY_DEVICE_LEN, "pci/%.*s", PCI_NAME_LEN - 1, name);
}

/* A word into a file of sysfs. */
static inline int pci_write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int err = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		err = -errno;
	close(fd);
	return err;
}

/* A sysfs file with one number in it. */
static inline int pci_read_number(const char *name, const char *file, uint32_t *value)
{
	char path[PCI_PATH_LEN], text[32] = "";
	ssize_t got;
	int fd, err;

	pci_path(path, name, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	got = read(fd, text, sizeof(text) - 1);
	err = got < 0 ? -errno : 0;
	close(fd);
	if (!err)
		*value = strtoul(text, NULL, 0);
	return err;
}

static inline int pci_matches(const char *name, const struct pci_match *match)
{
	uint32_t vendor = 0, device = 0, class = 0;

	/* A device may go while we look: then it is not the one. */
	if (pci_read_number(name, "vendor", &vendor) ||
	    pci_read_number(name, "device", &device) ||
	    pci_read_number(name, "class", &class))
		return 0;
	return (!match->vendor || match->vendor == vendor) &&
	       (!match->device || match->device == device) &&
	       (!match->class || match->class == class);
}

/* The nth device (from 0) that matches; -ENODEV when there are not so many. */
static inline int pci_find(const struct pci_match *match, unsigned int nth,
			   char name[PCI_NAME_LEN])
{
	DIR *dir = opendir(PCI_SYSFS);
	struct dirent *entry;
	int err = -ENODEV;

	/* A kernel or a machine without PCI has no such device either. */
	if (!dir)
		return errno == ENOENT ? -ENODEV : -errno;
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.' || strlen(entry->d_name) >= PCI_NAME_LEN)
			continue;
		if (pci_matches(entry->d_name, match) && !nth--) {
			snprintf(name, PCI_NAME_LEN, "%.*s", PCI_NAME_LEN - 1, entry->d_name);
			err = 0;
			break;
		}
	}
	closedir(dir);
	return err;
}

/* 1 if a kernel driver has the device, 0 if none has. */
static inline int pci_has_driver(const char *name)
{
	char path[PCI_PATH_LEN];

	pci_path(path, name, "driver");
	return !access(path, F_OK);
}

/* Takes the device away from the kernel's driver, if one has it. */
static inline int pci_unbind(const char *name)
{
	char path[PCI_PATH_LEN];
	int err;

	pci_path(path, name, "driver/unbind");
	err = pci_write_text(path, name);
	return err == -ENOENT ? 0 : err;
}

static inline int pci_command(struct pci_dev *pci, uint16_t clear, uint16_t set)
{
	uint16_t command;

	if (pread(pci->config, &command, sizeof(command), PCI_COMMAND) != sizeof(command))
		return -EIO;
	command = (command & ~clear) | set;
	if (pwrite(pci->config, &command, sizeof(command), PCI_COMMAND) != sizeof(command))
		return -EIO;
	return 0;
}

/* From here on the device may read and write memory. */
static inline int pci_master_on(struct pci_dev *pci)
{
	return pci_command(pci, 0, PCI_COMMAND_MASTER);
}

/* From here on it cannot, whatever it still means to do. */
static inline int pci_master_off(struct pci_dev *pci)
{
	return pci_command(pci, PCI_COMMAND_MASTER, 0);
}

/*
 * Leaves the device unbound and unable to reach memory: so the buffers that it
 * knows can be freed after this.
 */
static inline void pci_close(struct pci_dev *pci)
{
	if (pci->config >= 0) {
		pci_master_off(pci);
		close(pci->config);
	}
	if (pci->bar)
		munmap(pci->bar, pci->size);
	pci->config = -1;
	pci->bar = NULL;
}

/*
 * Takes the device of that name. Its registers work then; DMA is off until
 * pci_master_on(), for a firmware may have left it on, with addresses of its
 * own. Interrupts stay off: nobody would handle them.
 */
static inline int pci_open(struct pci_dev *pci, const char *name)
{
	char path[PCI_PATH_LEN];
	struct stat st;
	void *bar;
	int fd, err;

	memset(pci, 0, sizeof(*pci));
	pci->config = -1;
	snprintf(pci->name, sizeof(pci->name), "%s", name);
	err = pci_unbind(name);
	if (err)
		return err;
	pci_path(path, name, "config");
	pci->config = open(path, O_RDWR | O_CLOEXEC);
	if (pci->config < 0)
		return -errno;
	err = pci_command(pci, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY | PCI_COMMAND_NO_INTX);
	if (err)
		goto close;
	pci_path(path, name, "resource0");
	fd = open(path, O_RDWR | O_SYNC | O_CLOEXEC);
	if (fd < 0) {
		err = -errno;
		goto close;
	}
	if (fstat(fd, &st)) {
		err = -errno;
	} else {
		bar = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (bar == MAP_FAILED)
			err = -errno;
		else
			pci->bar = bar;
		pci->size = st.st_size;
	}
	close(fd);
close:
	if (err)
		pci_close(pci);
	return err;
}

/*
 * Registers. What the CPU wrote to memory before a register write is there when
 * the device learns of it; what it reads from memory after a register read is
 * no older than that.
 */
static inline uint32_t pci_read32(const struct pci_dev *pci, uint32_t reg)
{
	uint32_t value = PCI_ONCE(uint32_t, pci->bar + reg);

	atomic_thread_fence(memory_order_seq_cst);
	return value;
}

static inline void pci_write32(struct pci_dev *pci, uint32_t reg, uint32_t value)
{
	atomic_thread_fence(memory_order_seq_cst);
	PCI_ONCE(uint32_t, pci->bar + reg) = value;
}

static inline uint64_t pci_read64(const struct pci_dev *pci, uint32_t reg)
{
	uint64_t value = PCI_ONCE(uint64_t, pci->bar + reg);

	atomic_thread_fence(memory_order_seq_cst);
	return value;
}

/* One access of 8 bytes, on machines that have one. */
static inline void pci_write64(struct pci_dev *pci, uint32_t reg, uint64_t value)
{
	atomic_thread_fence(memory_order_seq_cst);
	PCI_ONCE(uint64_t, pci->bar + reg) = value;
}

/* Nanoseconds of a clock that only goes forward, for timeouts. */
static inline uint64_t pci_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

/*
 * A buffer that a device can be pointed at: allocated, mapped and pinned.
 * @size: bytes that were granted, all of them mapped
 */
struct dma_buffer {
	int fd;
	int pinned;
	uint64_t handle;
	uint64_t address;
	uint64_t size;
	uint8_t *map;
};

/* Fine for one that is all zero: it was refused, or freed before. */
static inline void dma_free(struct dma_buffer *buf)
{
	if (buf->map)
		munmap(buf->map, buf->size);
	if (buf->pinned)
		rb_unpin(buf->fd, buf->handle);
	if (buf->handle)
		rb_free(buf->fd, buf->handle);
	memset(buf, 0, sizeof(*buf));
}

/* What *req asks for; *buf is all zero when it was refused. */
static inline int dma_take(struct dma_buffer *buf, int phys_fd, struct rust_buddy_alloc *req)
{
	void *map;
	int err;

	memset(buf, 0, sizeof(*buf));
	err = rb_alloc_req(phys_fd, req);
	/* More than the whole pool is no bad argument here: it is no room. */
	if (err == -EINVAL && req->hdr.reason == RUST_BUDDY_REASON_SIZE && req->size)
		err = -ENOSPC;
	if (err)
		return err;
	buf->fd = phys_fd;
	buf->handle = req->handle;
	buf->size = req->granted;
	map = rb_map(phys_fd, req, PROT_READ | PROT_WRITE);
	if (map == MAP_FAILED) {
		err = -errno;
	} else {
		buf->map = map;
		err = rb_pin(phys_fd, buf->handle, &buf->address);
		buf->pinned = !err;
	}
	if (err)
		dma_free(buf);
	return err;
}

/* One block of the allocator that holds so many bytes. */
static inline int dma_alloc(struct dma_buffer *buf, int phys_fd, uint64_t size, const char *name)
{
	struct rust_buddy_alloc req = { .size = size };

	snprintf(req.name, sizeof(req.name), "%s", name);
	return dma_take(buf, phys_fd, &req);
}

/* Refused because there is no room for it now, which is no fault of anybody's. */
static inline int dma_no_room(int err)
{
	return err == -ENOSPC || err == -ENOMEM;
}

#endif /* SELFTESTS_PCI_H */
