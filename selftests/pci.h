/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A minimal PCI driver in user space for tests with device models. It finds a device, takes it from
 * the kernel's driver, accesses its registers, enables DMA, and gives it buffers of the pool. All
 * of this goes through sysfs, as root.
 *
 * Every function returns 0 or a negative errno. The device gets the physical address of a struct
 * dma_buffer. With an IOMMU between device and memory, a test has to PIN for the device itself.
 */
#ifndef SELFTESTS_PCI_H
#define SELFTESTS_PCI_H

#include <assert.h>
#include <dirent.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <time.h>

#include "rb.h"

/* Registers, descriptors and test patterns are used in the CPU's byte order. */
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

/* Makes exactly one access, at this point, to memory that the device reads or writes, too. */
#define PCI_ONCE(type, at)	(*(__volatile__ type *)(at))

/* The properties of a device to find. 0 matches any value. */
struct pci_match {
	uint32_t vendor;
	uint32_t device;
	uint32_t class;
};

/*
 * A device that this driver has taken.
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

/* Writes the name that PIN uses for the device. */
static inline void pci_rb_name(char text[RUST_BUDDY_DEVICE_LEN], const char *name)
{
	snprintf(text, RUST_BUDDY_DEVICE_LEN, "pci/%.*s", PCI_NAME_LEN - 1, name);
}

/* Writes a word to a file of sysfs. */
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

/* Reads a sysfs file with one number in it. */
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

	/* The device may be removed at this moment, and does not match then. */
	if (pci_read_number(name, "vendor", &vendor) ||
	    pci_read_number(name, "device", &device) ||
	    pci_read_number(name, "class", &class))
		return 0;
	return (!match->vendor || match->vendor == vendor) &&
	       (!match->device || match->device == device) &&
	       (!match->class || match->class == class);
}

/* Finds the nth device (from 0) that matches. -ENODEV if there are not that many. */
static inline int pci_find(const struct pci_match *match, unsigned int nth,
			   char name[PCI_NAME_LEN])
{
	DIR *dir = opendir(PCI_SYSFS);
	struct dirent *entry;
	int err = -ENODEV;

	/* A kernel or a machine without PCI has no matching device either. */
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

/* Returns 1 if a kernel driver has the device, else 0. */
static inline int pci_has_driver(const char *name)
{
	char path[PCI_PATH_LEN];

	pci_path(path, name, "driver");
	return !access(path, F_OK);
}

/* Unbinds the device from the kernel's driver, if it has one. */
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

/* Lets the device read and write memory. */
static inline int pci_master_on(struct pci_dev *pci)
{
	return pci_command(pci, 0, PCI_COMMAND_MASTER);
}

/* Stops the device's access to memory, even for transfers in progress. */
static inline int pci_master_off(struct pci_dev *pci)
{
	return pci_command(pci, PCI_COMMAND_MASTER, 0);
}

/*
 * Leaves the device unbound and without access to memory. So the buffers that it knows can be freed
 * afterwards.
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
 * Takes the device of that name, and enables its registers. DMA is off until pci_master_on(), since
 * the firmware may have left it on with its own addresses. Interrupts stay off, as they have no
 * handler.
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
 * Registers. Memory that the CPU wrote before a register write is visible to the device when it
 * sees the write. Memory that the CPU reads after a register read is no older than the register's
 * value.
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

/* Makes one access of 8 bytes, on machines that have one. */
static inline void pci_write64(struct pci_dev *pci, uint32_t reg, uint64_t value)
{
	atomic_thread_fence(memory_order_seq_cst);
	PCI_ONCE(uint64_t, pci->bar + reg) = value;
}

/* Returns the nanoseconds of a monotonic clock, for timeouts. */
static inline uint64_t pci_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

/*
 * A buffer for a device: allocated, mapped and pinned.
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

/* Frees the buffer. Does nothing if *buf is all zero, after a refusal or an earlier free. */
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

/* Allocates, maps and pins a buffer as *req requests. *buf is all zero on an error. */
static inline int dma_take(struct dma_buffer *buf, int phys_fd, struct rust_buddy_alloc *req)
{
	void *map;
	int err;

	memset(buf, 0, sizeof(*buf));
	err = rb_alloc_req(phys_fd, req);
	/* A size that exceeds the whole pool counts as lack of space here. */
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

/* Allocates one block of at least @size bytes. */
static inline int dma_alloc(struct dma_buffer *buf, int phys_fd, uint64_t size, const char *name)
{
	struct rust_buddy_alloc req = { .size = size };

	snprintf(req.name, sizeof(req.name), "%s", name);
	return dma_take(buf, phys_fd, &req);
}

/* Returns whether an error means that there is no space at the moment. */
static inline int dma_no_room(int err)
{
	return err == -ENOSPC || err == -ENOMEM;
}

#endif /* SELFTESTS_PCI_H */
