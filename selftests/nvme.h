/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A small NVMe driver in user space, and the content of the test disk.
 *
 * The driver runs one command at a time and polls for its completion. A transfer of any length is
 * one command with one SGL data block descriptor, which requires contiguous memory. The numbers are
 * those of the NVM Express Base and NVM Command Set specifications.
 *
 *	struct nvme n;
 *
 *	if (nvme_open(&n, phys_fd))
 *		puts(n.why);
 *	nvme_rw(&n, NVME_READ, lba, address, bytes);
 *	nvme_close(&n);
 *
 * The driver accepts only QEMU's NVMe controller with the serial number NVME_SERIAL, since the
 * tests write to the disk:
 *
 *	-drive if=none,id=rb,format=raw,file=FILE
 *	-device nvme,serial=rb,drive=rb,mdts=9
 */
#ifndef SELFTESTS_NVME_H
#define SELFTESTS_NVME_H

#include <inttypes.h>

#include "pci.h"

/*
 * The test disk consists of 8-byte little-endian words that encode their position. The tests read
 * the first half, and write one region for each of nvme_sizes in [NVME_SCRATCH, NVME_FREE). From
 * NVME_FREE on the disk may be written freely.
 */
#define NVME_IMAGE	MiB(64)
#define NVME_SCRATCH	MiB(32)
#define NVME_FREE	MiB(48)

#define NVME_SIZES	3

static const uint64_t nvme_sizes[NVME_SIZES] = { KiB(64), MiB(2), MiB(8) };

/* Returns the disk offset that a transfer of @bytes reads: one for each size, in the first half. */
static inline uint64_t nvme_read_offset(uint64_t bytes)
{
	return bytes;
}

/*
 * Returns the disk offset that a transfer of @bytes writes. The regions of nvme_sizes are disjoint.
 */
static inline uint64_t nvme_write_offset(uint64_t bytes)
{
	return NVME_SCRATCH + bytes;
}

/* Returns the word at a byte offset of the disk as it was created. */
static inline uint64_t nvme_made_word(uint64_t offset)
{
	return offset * 0x9E3779B97F4A7C15ULL + 1;
}

/* Returns the word at a byte offset after a test has written it. */
static inline uint64_t nvme_written_word(uint64_t offset)
{
	return (offset ^ 0xA5A5A5A5A5A5A5A5ULL) * 0x9E3779B97F4A7C15ULL + 1;
}

typedef uint64_t nvme_word(uint64_t offset);

/* Generates the content of [offset, offset + bytes), either as created or as a test writes it. */
static inline void nvme_fill(void *to, uint64_t offset, uint64_t bytes, nvme_word *word)
{
	for (uint64_t at = 0; at < bytes; at += sizeof(uint64_t)) {
		uint64_t value = word(offset + at);

		memcpy((char *)to + at, &value, sizeof(value));
	}
}

/* Returns how many bytes from the start of [offset, offset + bytes) are as expected. */
static inline uint64_t nvme_compare(const void *from, uint64_t offset, uint64_t bytes,
				    nvme_word *word)
{
	for (uint64_t at = 0; at < bytes; at += sizeof(uint64_t)) {
		uint64_t value;

		memcpy(&value, (const char *)from + at, sizeof(value));
		if (value != word(offset + at))
			return at;
	}
	return bytes;
}

/* The IDs of the controller that the tests may write to. */
#define NVME_VENDOR	0x1b36
#define NVME_DEVICE	0x0010
#define NVME_CLASS	0x010802
#define NVME_SERIAL	"rb"

/*
 * The value of CC.MPS: memory pages of 1 << (12 + 2) = 16 KiB, which allow transfers of 8 MiB. QEMU
 * 10.0 takes an mdts of 1 to 9 only, and counts MDTS in pages of this size: 16 KiB << 9 is 8 MiB.
 * The specification means CAP.MPSMIN, which is 4 KiB in QEMU. A controller that follows the
 * specification refuses transfers of this size with status 0x002, and the tests report that.
 */
#define NVME_MPS	2
#define NVME_PAGE	(4096u << NVME_MPS)
#define NVME_DEPTH	16
#define NVME_TIMEOUT_NS	(30 * 1000000000ULL)

/* Registers. */
#define NVME_CAP	0x00
#define NVME_CC		0x14
#define NVME_CSTS	0x1c
#define NVME_AQA	0x24
#define NVME_ASQ	0x28
#define NVME_ACQ	0x30
#define NVME_DOORBELLS	0x1000

/* The NVM command set, and queue entries of 1 << 6 and 1 << 4 bytes. */
#define NVME_CC_ENABLE		1u
#define NVME_CC_SETTINGS	(NVME_MPS << 7 | 6u << 16 | 4u << 20)
#define NVME_CC_SHUTDOWN	0x4000u
#define NVME_CSTS_READY		1u
#define NVME_CSTS_SHUTDOWN	(3u << 2)
#define NVME_CSTS_IS_SHUT	(2u << 2)

/* Commands. */
#define NVME_ADMIN_CREATE_SQ	0x01
#define NVME_ADMIN_LOG_PAGE	0x02
#define NVME_ADMIN_CREATE_CQ	0x05
#define NVME_ADMIN_IDENTIFY	0x06

enum nvme_dir {
	NVME_WRITE = 0x01,
	NVME_READ = 0x02,
};

#define NVME_PSDT_SGL		0x4000u
#define NVME_SGL_DATA_BLOCK	0x00
#define NVME_LOG_SMART		2
#define NVME_NSID		1
#define NVME_NSID_ALL		0xffffffffu

/* Status, as in struct nvme.status: type << 8 | code. */
#define NVME_STATUS_MASK		0x7ff
#define NVME_STATUS_LBA_OUT_OF_RANGE	0x080

struct nvme_command {
	uint32_t op;
	uint32_t nsid;
	uint64_t reserved;
	uint64_t metadata;
	/* PRP 1 and 2, or one SGL descriptor: an address, its length, its type. */
	uint64_t address;
	union {
		uint64_t prp2;
		struct {
			uint32_t length;
			uint8_t zero[3];
			uint8_t type;
		} sgl;
	};
	uint32_t dw10;
	uint32_t dw11;
	uint32_t dw12;
	uint32_t dw13;
	uint32_t dw14;
	uint32_t dw15;
};

struct nvme_completion {
	uint32_t result;
	uint32_t reserved;
	uint16_t sq_head;
	uint16_t sq_id;
	uint16_t cid;
	uint16_t status;	/* bit 0 is the phase */
};

static_assert(sizeof(struct nvme_command) == 64, "IOSQES is 6");
static_assert(sizeof(struct nvme_completion) == 16, "IOCQES is 4");

/* A submission queue and the completion queue of the same number. */
struct nvme_queue {
	struct nvme_command *sq;
	struct nvme_completion *cq;
	uint16_t id;
	uint16_t tail;
	uint16_t head;
	uint16_t phase;
};

/*
 * @model:      as reported by the controller, without trailing blanks
 * @serial:     likewise
 * @blocks:     of namespace 1
 * @block_size: bytes
 * @max_bytes:  the most that one command can transfer
 * @commands:   the number of commands given to the I/O queue so far
 * @status:     of the last command: 0, or type << 8 | code
 * @why:        after any error, a sentence that describes it
 */
struct nvme {
	char model[41];
	char serial[21];
	uint64_t blocks;
	uint32_t block_size;
	uint64_t max_bytes;
	uint64_t commands;
	uint16_t status;
	char why[192];

	/* Private to the driver. */
	struct pci_dev pci;
	struct dma_buffer queues;
	struct nvme_queue admin;
	struct nvme_queue io;
	uint32_t stride;
	uint32_t align;
	uint16_t cid;
	int running;
};

/*
 * The pages of the only buffer that the controller always knows. A queue starts on a page boundary.
 */
enum nvme_page {
	NVME_PAGE_ADMIN_SQ,
	NVME_PAGE_ADMIN_CQ,
	NVME_PAGE_IO_SQ,
	NVME_PAGE_IO_CQ,
	NVME_PAGE_DATA,
	NVME_PAGES,
};

/* Stores the description of an error, and evaluates to the error code. */
#define nvme_fail(n, err, ...) \
	(snprintf((n)->why, sizeof((n)->why), __VA_ARGS__), (err))

static inline uint64_t nvme_page_address(const struct nvme *n, enum nvme_page page)
{
	return n->queues.address + (uint64_t)page * NVME_PAGE;
}

static inline uint8_t *nvme_page_map(const struct nvme *n, enum nvme_page page)
{
	return n->queues.map + (size_t)page * NVME_PAGE;
}

/* Waits until these bits of CSTS have this value. */
static inline int nvme_wait_csts(struct nvme *n, uint32_t mask, uint32_t value)
{
	uint64_t start = pci_now();
	uint32_t csts;

	while (((csts = pci_read32(&n->pci, NVME_CSTS)) & mask) != value) {
		/* The registers of a removed device read as all ones. */
		if (csts == ~0u)
			return nvme_fail(n, -ENODEV, "the controller %s is gone", n->pci.name);
		if (pci_now() - start > NVME_TIMEOUT_NS)
			return nvme_fail(n, -ETIMEDOUT,
					 "CSTS is 0x%x after 30 s, bits 0x%x should be 0x%x",
					 csts, mask, value);
		usleep(100);
	}
	return 0;
}

/*
 * Stops the controller, which does not access memory afterwards. A controller that does not respond
 * can't access it either, since bus mastering is off.
 */
static inline void nvme_stop(struct nvme *n)
{
	n->running = 0;
	if (n->pci.bar && pci_read32(&n->pci, NVME_CC) & NVME_CC_ENABLE) {
		pci_write32(&n->pci, NVME_CC, NVME_CC_SETTINGS);
		nvme_wait_csts(n, NVME_CSTS_READY, 0);
	}
	if (n->pci.config >= 0)
		pci_master_off(&n->pci);
}

static inline void nvme_ring(struct nvme *n, const struct nvme_queue *q, int completion,
			     uint16_t value)
{
	pci_write32(&n->pci, NVME_DOORBELLS + (2 * q->id + completion) * n->stride, value);
}

/* Runs one command from submission to completion. */
static inline int nvme_run(struct nvme *n, struct nvme_queue *q, struct nvme_command *cmd)
{
	struct nvme_completion *done = &q->cq[q->head];
	uint64_t start = pci_now();
	uint16_t status, cid, sq_head;

	if (!n->running)
		return nvme_fail(n, -ENODEV, "the controller was stopped");
	n->cid++;
	cmd->op |= (uint32_t)n->cid << 16;
	q->sq[q->tail] = *cmd;
	q->tail = (q->tail + 1) % NVME_DEPTH;
	nvme_ring(n, q, 0, q->tail);

	while (((status = PCI_ONCE(uint16_t, &done->status)) & 1) != q->phase) {
		if (pci_now() - start > NVME_TIMEOUT_NS) {
			uint32_t csts = pci_read32(&n->pci, NVME_CSTS);

			/*
			 * The command might complete later, and write to memory that has another
			 * owner then.
			 */
			nvme_stop(n);
			return nvme_fail(n, -ETIMEDOUT,
					 "no completion of command 0x%02x in 30 s, CSTS is 0x%x",
					 cmd->op & 0xff, csts);
		}
		usleep(20);
	}
	/* Reads the rest of the entry, and the data, after the phase bit. */
	atomic_thread_fence(memory_order_seq_cst);
	cid = done->cid;
	sq_head = done->sq_head;
	q->head = (q->head + 1) % NVME_DEPTH;
	if (!q->head)
		q->phase ^= 1;
	nvme_ring(n, q, 1, q->head);

	n->status = (status >> 1) & NVME_STATUS_MASK;
	if (cid != n->cid || sq_head != q->tail)
		return nvme_fail(n, -EPROTO, "completion of command %u, head %u; sent %u, tail %u",
				 cid, sq_head, n->cid, q->tail);
	if (n->status)
		return nvme_fail(n, -EIO, "command 0x%02x of queue %u: status type %u, code 0x%02x",
				 cmd->op & 0xff, q->id, n->status >> 8, n->status & 0xff);
	return 0;
}

/* Runs an admin command that fills one page, at NVME_PAGE_DATA. */
static inline int nvme_get_page(struct nvme *n, uint8_t op, uint32_t nsid, uint32_t dw10)
{
	struct nvme_command cmd = {
		.op = op,
		.nsid = nsid,
		.address = nvme_page_address(n, NVME_PAGE_DATA),
		.dw10 = dw10,
	};

	memset(nvme_page_map(n, NVME_PAGE_DATA), 0, NVME_PAGE);
	return nvme_run(n, &n->admin, &cmd);
}

static inline uint32_t nvme_get32(const uint8_t *from)
{
	uint32_t value;

	memcpy(&value, from, sizeof(value));
	return value;
}

static inline uint64_t nvme_get64(const uint8_t *from)
{
	uint64_t value;

	memcpy(&value, from, sizeof(value));
	return value;
}

/* Copies text of a fixed size without the blanks that pad it. */
static inline void nvme_get_text(char *to, const uint8_t *from, size_t size)
{
	memcpy(to, from, size);
	while (size && (to[size - 1] == ' ' || to[size - 1] == '\0'))
		size--;
	to[size] = '\0';
}

static inline void nvme_queue_init(struct nvme *n, struct nvme_queue *q, uint16_t id,
				   enum nvme_page sq, enum nvme_page cq)
{
	q->sq = (void *)nvme_page_map(n, sq);
	q->cq = (void *)nvme_page_map(n, cq);
	q->id = id;
	q->tail = 0;
	q->head = 0;
	q->phase = 1;
}

/* Brings the controller from any state to one in which it accepts admin commands. */
static inline int nvme_enable(struct nvme *n, int phys_fd)
{
	uint64_t cap = pci_read64(&n->pci, NVME_CAP);
	int err;

	n->stride = 4u << ((cap >> 32) & 0xf);
	if ((cap & 0xffff) + 1 < NVME_DEPTH || (cap >> 48 & 0xf) > NVME_MPS ||
	    (cap >> 52 & 0xf) < NVME_MPS)
		return nvme_fail(n, -EOPNOTSUPP, "%s: no queues of %u entries in pages of %u bytes",
				 n->pci.name, NVME_DEPTH, NVME_PAGE);
	if (NVME_DOORBELLS + 4 * n->stride > n->pci.size)
		return nvme_fail(n, -EOPNOTSUPP, "%s: the doorbells lie beyond BAR 0", n->pci.name);

	if (pci_read32(&n->pci, NVME_CC) & NVME_CC_ENABLE)
		pci_write32(&n->pci, NVME_CC, 0);
	err = nvme_wait_csts(n, NVME_CSTS_READY, 0);
	if (err)
		return err;

	err = dma_alloc(&n->queues, phys_fd, NVME_PAGES * NVME_PAGE, "nvme queues");
	if (err)
		return nvme_fail(n, err, "no buffer for the queues: %s", strerror(-err));
	/* The phase bits of an empty completion queue are 0. */
	memset(n->queues.map, 0, n->queues.size);
	nvme_queue_init(n, &n->admin, 0, NVME_PAGE_ADMIN_SQ, NVME_PAGE_ADMIN_CQ);
	nvme_queue_init(n, &n->io, 1, NVME_PAGE_IO_SQ, NVME_PAGE_IO_CQ);

	pci_write32(&n->pci, NVME_AQA, (NVME_DEPTH - 1) << 16 | (NVME_DEPTH - 1));
	pci_write64(&n->pci, NVME_ASQ, nvme_page_address(n, NVME_PAGE_ADMIN_SQ));
	pci_write64(&n->pci, NVME_ACQ, nvme_page_address(n, NVME_PAGE_ADMIN_CQ));
	err = pci_master_on(&n->pci);
	if (err)
		return nvme_fail(n, err, "%s: cannot set COMMAND: %s", n->pci.name,
				 strerror(-err));
	pci_write32(&n->pci, NVME_CC, NVME_CC_SETTINGS | NVME_CC_ENABLE);
	err = nvme_wait_csts(n, NVME_CSTS_READY, NVME_CSTS_READY);
	n->running = !err;
	return err;
}

/* Reads the controller's identity, limits and namespace. -ENODEV if it is not the test disk. */
static inline int nvme_identify(struct nvme *n)
{
	const uint8_t *page = nvme_page_map(n, NVME_PAGE_DATA);
	unsigned int shift, format;
	uint32_t sgls;
	int err;

	err = nvme_get_page(n, NVME_ADMIN_IDENTIFY, 0, 1);
	if (err)
		return err;
	nvme_get_text(n->serial, page + 4, 20);
	nvme_get_text(n->model, page + 24, 40);
	if (strcmp(n->serial, NVME_SERIAL))
		return nvme_fail(n, -ENODEV, "%s has the serial number '%s', not '%s'",
				 n->pci.name, n->serial, NVME_SERIAL);
	/* 0 means no limit. The 16 bits of NLB limit a transfer, too. */
	n->max_bytes = page[77] && page[77] < 32 ? (uint64_t)NVME_PAGE << page[77] : UINT64_MAX;
	sgls = nvme_get32(page + 536);
	if (!(sgls & 3))
		return nvme_fail(n, -EOPNOTSUPP, "%s knows no SGLs, SGLS is 0x%x", n->pci.name,
				 sgls);
	n->align = (sgls & 3) == 2 ? 4 : 1;

	err = nvme_get_page(n, NVME_ADMIN_IDENTIFY, NVME_NSID, 0);
	if (err)
		return err;
	n->blocks = nvme_get64(page);
	format = (page[26] & 0xf) | (page[26] >> 1 & 0x30);
	shift = page[128 + 4 * format + 2];
	if (!n->blocks || shift < 9 || shift > 16 || nvme_get32(page + 128 + 4 * format) & 0xffff)
		return nvme_fail(n, -EOPNOTSUPP,
				 "namespace 1: %" PRIu64 " blocks of 1 << %u bytes, or metadata",
				 n->blocks, shift);
	n->block_size = 1u << shift;
	if (n->max_bytes > (uint64_t)n->block_size << 16)
		n->max_bytes = (uint64_t)n->block_size << 16;
	return 0;
}

/*
 * Creates the completion queue first, since the submission queue refers to it. Neither interrupts.
 */
static inline int nvme_create_queues(struct nvme *n)
{
	struct nvme_command cq = {
		.op = NVME_ADMIN_CREATE_CQ,
		.address = nvme_page_address(n, NVME_PAGE_IO_CQ),
		.dw10 = (NVME_DEPTH - 1) << 16 | n->io.id,
		.dw11 = 1,
	};
	struct nvme_command sq = {
		.op = NVME_ADMIN_CREATE_SQ,
		.address = nvme_page_address(n, NVME_PAGE_IO_SQ),
		.dw10 = (NVME_DEPTH - 1) << 16 | n->io.id,
		.dw11 = (uint32_t)n->io.id << 16 | 1,
	};
	int err = nvme_run(n, &n->admin, &cq);

	return err ? err : nvme_run(n, &n->admin, &sq);
}

/*
 * Stops the controller before the memory that it knows is freed. Afterwards the caller can free its
 * own buffers. Does nothing to a struct nvme that is all zero, or that nvme_open() failed on.
 */
static inline void nvme_close(struct nvme *n)
{
	if (n->running) {
		pci_write32(&n->pci, NVME_CC,
			    NVME_CC_SETTINGS | NVME_CC_ENABLE | NVME_CC_SHUTDOWN);
		nvme_wait_csts(n, NVME_CSTS_SHUTDOWN, NVME_CSTS_IS_SHUT);
	}
	if (n->pci.bar) {
		nvme_stop(n);
		pci_close(&n->pci);
	}
	n->running = 0;
	dma_free(&n->queues);
}

/*
 * Returns whether a kernel driver uses the device and it is not the test disk. While the nvme
 * driver has the device, only the kernel knows its serial number. A device of another driver is
 * never the test disk.
 */
static inline int nvme_is_foreign(const char *name)
{
	char path[PCI_PATH_LEN], serial[32] = "";
	struct dirent *entry;
	int found = 0;
	ssize_t got;
	DIR *dir;
	int fd;

	if (!pci_has_driver(name))
		return 0;
	pci_path(path, name, "nvme");
	dir = opendir(path);
	if (!dir)
		return 1;
	while (!found && (entry = readdir(dir)))
		found = !strncmp(entry->d_name, "nvme", 4);
	if (found) {
		char file[64];

		snprintf(file, sizeof(file), "nvme/%.32s/serial", entry->d_name);
		pci_path(path, name, file);
	}
	closedir(dir);
	fd = found ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return 1;
	got = read(fd, serial, sizeof(serial) - 1);
	close(fd);
	if (got < 0)
		return 1;
	/* Strips the padding of blanks, and the newline. */
	while (got && strchr("\n ", serial[got - 1]))
		serial[--got] = '\0';
	return !!strcmp(serial, NVME_SERIAL);
}

/*
 * Opens the test disk. Returns -ENODEV if this machine has none, or the error of rb_alloc() if the
 * pool has no room for the queues. An error leaves everything as it was, except that a kernel
 * driver which used the disk is unbound.
 */
static inline int nvme_open(struct nvme *n, int phys_fd)
{
	const struct pci_match match = {
		.vendor = NVME_VENDOR,
		.device = NVME_DEVICE,
		.class = NVME_CLASS,
	};
	char name[PCI_NAME_LEN];
	int err;

	for (unsigned int nth = 0; ; nth++) {
		memset(n, 0, sizeof(*n));
		n->pci.config = -1;
		err = pci_find(&match, nth, name);
		if (err == -ENODEV)
			return nvme_fail(n, err,
					 "no NVMe test disk: start QEMU with -device nvme,serial=%s,drive=...,mdts=9",
					 NVME_SERIAL);
		if (err)
			return nvme_fail(n, err, "%s: %s", PCI_SYSFS, strerror(-err));
		if (nvme_is_foreign(name))
			continue;
		err = pci_open(&n->pci, name);
		if (err)
			return nvme_fail(n, err, "cannot take %s: %s", name, strerror(-err));
		err = nvme_enable(n, phys_fd);
		if (!err)
			err = nvme_identify(n);
		if (!err)
			err = nvme_create_queues(n);
		if (!err)
			return 0;
		nvme_close(n);
		if (err != -ENODEV)
			return err;
	}
}

/*
 * Transfers all of the data with one command.
 *
 * @address: physical, of any alignment or, if the controller requires it, of 4 bytes
 * @bytes:   whole blocks
 *
 * Returns -EINVAL for arguments that a command can't express, and -EFBIG for more than one command
 * can transfer. Returns -EIO with n->status if the controller refuses, and -ETIMEDOUT after 30 s.
 */
static inline int nvme_rw(struct nvme *n, enum nvme_dir dir, uint64_t lba, uint64_t address,
			  uint32_t bytes)
{
	struct nvme_command cmd = {
		.op = dir | NVME_PSDT_SGL,
		.nsid = NVME_NSID,
		.address = address,
		.sgl = { .length = bytes, .type = NVME_SGL_DATA_BLOCK },
		.dw10 = (uint32_t)lba,
		.dw11 = lba >> 32,
	};

	n->status = 0;
	if (!n->running)
		return nvme_fail(n, -ENODEV, "the controller was stopped");
	if (!bytes || bytes % n->block_size || address % n->align)
		return nvme_fail(n, -EINVAL,
				 "%u bytes at 0x%" PRIx64 ": not whole blocks, or unaligned",
				 bytes, address);
	if (bytes > n->max_bytes)
		return nvme_fail(n, -EFBIG, "%u bytes are more than a command's %" PRIu64,
				 bytes, n->max_bytes);
	cmd.dw12 = bytes / n->block_size - 1;
	n->commands++;
	return nvme_run(n, &n->io, &cmd);
}

/* Reads the controller's own count of reads or writes. */
static inline int nvme_counted(struct nvme *n, enum nvme_dir dir, uint64_t *commands)
{
	int err = nvme_get_page(n, NVME_ADMIN_LOG_PAGE, NVME_NSID_ALL,
				(512 / 4 - 1) << 16 | NVME_LOG_SMART);

	if (!err)
		*commands = nvme_get64(nvme_page_map(n, NVME_PAGE_DATA) +
				       (dir == NVME_READ ? 64 : 80));
	return err;
}

#endif /* SELFTESTS_NVME_H */
