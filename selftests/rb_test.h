/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Helpers of the tests beyond rb.h: the state that a refused call must not change, and functions
 * that fill and check memory fast enough for an emulated machine.
 */
#ifndef SELFTESTS_RB_TEST_H
#define SELFTESTS_RB_TEST_H

#include <grp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "kselftest_harness.h"
#include "rb.h"

/* Timeout of tests with loops, in seconds: an emulated machine is some twenty times slower. */
#define SLOW	120

#define NOBODY	65534

#define RB_CMD(nr, size) \
	_IOC(_IOC_READ | _IOC_WRITE, RUST_BUDDY_IOC_MAGIC, (nr), (size))

/* Returns a number from the environment, which the runner lowers for kernels that are slow. */
static inline unsigned long env_number(const char *name, unsigned long otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoul(text, NULL, 0) : otherwise;
}

/* Prints a measurement as a line of JSON, which the run's summary repeats. */
static inline void figure_begin(const char *name)
{
	printf("# {\"figure\": \"%s\"", name);
}

static inline void figure_number(const char *name, uint64_t value)
{
	printf(", \"%s\": %llu", name, (unsigned long long)value);
}

static inline void figure_end(void)
{
	puts("}");
}

/* Writes to a file of sysfs, procfs or debugfs. Returns 0 or a negative errno. */
static inline int put_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), ret;

	if (fd < 0)
		return -errno;
	ret = write(fd, text, strlen(text)) < 0 ? -errno : 0;
	close(fd);
	return ret;
}

/*
 * Returns the number of faults that src/audit.rs has found since the module was loaded, or 0
 * without it.
 */
static inline uint64_t audit_faults(void)
{
	char text[512] = "";
	const char *line;
	int file;

	file = open("/sys/kernel/debug/rust_buddy/pool1/audit", O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return 0;
	if (read(file, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(file);
	line = strstr(text, "faults: ");
	return line ? strtoull(line + 8, NULL, 10) : 0;
}

/* Calls without rb_ioctl()'s check of hdr.ret, for tests that check it themselves. */
static inline int raw_ioctl(int fd, unsigned long cmd, void *arg)
{
	return ioctl(fd, cmd, arg) < 0 ? -errno : 0;
}

/* Skips the test if the node is missing. Any other error is a failure. */
#define OPEN_OR_SKIP(fd, path) do {						\
	const char *__path = (path);						\
	int __fd = rb_open(__path);						\
	if (__fd < 0 && (errno == ENOENT || errno == ENXIO))			\
		SKIP(return, "there is no %s: is rust_buddy loaded?", __path);	\
	if (__fd < 0 && (errno == EACCES || errno == EPERM) && geteuid())	\
		SKIP(return, "%s may not be opened: run this as root", __path);	\
	ASSERT_LE(0, __fd);							\
	(fd) = __fd;								\
} while (0)

/* Expects that a mapping fails. */
#define EXPECT_NO_MAP(err, map) do {						\
	EXPECT_TRUE((map) == MAP_FAILED);					\
	EXPECT_EQ((err), errno);						\
} while (0)

/* Returns the name of the first counter that differs, "" if none does. */
static inline const char *pool_diff(const struct rust_buddy_pool_info *a,
				    const struct rust_buddy_pool_info *b)
{
	if (a->buffers != b->buffers)
		return "buffers";
	if (a->requested != b->requested)
		return "requested";
	if (a->granted != b->granted)
		return "granted";
	if (a->free != b->free)
		return "free";
	if (memcmp(a->free_blocks, b->free_blocks, sizeof(a->free_blocks)))
		return "free_blocks";
	if (a->largest_free != b->largest_free)
		return "largest_free";
	if (a->size != b->size || a->unit != b->unit || a->max_order != b->max_order)
		return "size, unit or max_order";
	return "";
}

/* The counters of the pool, and the state of one buffer of the client (0 for none). */
struct state {
	struct rust_buddy_pool_info pool;
	struct rust_buddy_buffer_info buffer;
	int pool_ret;
	int buffer_ret;
};

static inline struct state state_of(int fd, uint64_t handle)
{
	struct state s;

	memset(&s, 0, sizeof(s));
	s.pool_ret = rb_pool_info(fd, 0, &s.pool);
	if (handle)
		s.buffer_ret = rb_buffer_info(fd, handle, &s.buffer);
	return s;
}

static inline const char *state_diff(const struct state *a, const struct state *b)
{
	if (a->pool_ret || b->pool_ret)
		return "POOL_INFO failed";
	if (a->buffer_ret != b->buffer_ret)
		return "the buffer's existence";
	if (memcmp(&a->buffer, &b->buffer, sizeof(a->buffer)))
		return "the buffer";
	return pool_diff(&a->pool, &b->pool);
}

#define EXPECT_UNCHANGED(fd, handle, before) do {				\
	struct state __now = state_of(fd, handle);				\
	EXPECT_STREQ("", state_diff(before, &__now));				\
} while (0)

#define EXPECT_POOL(fd, before) do {						\
	struct rust_buddy_pool_info __now;					\
	EXPECT_EQ(0, rb_pool_info(fd, 0, &__now));				\
	EXPECT_STREQ("", pool_diff(before, &__now));				\
} while (0)

/*
 * Waits until the kernel has torn down a process that has ended. wait() may return before its
 * memory is free.
 */
static inline const char *pool_settles(int fd, const struct rust_buddy_pool_info *want)
{
	struct rust_buddy_pool_info now;
	const char *diff = "POOL_INFO failed";
	int tries;

	for (tries = 0; tries < 500; tries++) {
		if (rb_pool_info(fd, 0, &now))
			return "POOL_INFO failed";
		diff = pool_diff(want, &now);
		if (!*diff)
			break;
		usleep(10000);
	}
	return diff;
}

/* Expects a refusal with this errno and reason that changes neither the pool nor the buffer. */
#define EXPECT_REFUSED(fd, handle, call, hdr, err, why) do {			\
	struct state __before = state_of(fd, handle);				\
	EXPECT_EQ((err), (call));						\
	EXPECT_EQ((__u32)(why), (hdr)->reason);					\
	EXPECT_UNCHANGED(fd, handle, &__before);				\
} while (0)

/* Expects that FREE fails. */
#define EXPECT_NO_FREE(fd, h, err, why) do {					\
	struct rust_buddy_free __req = { .handle = (h) };			\
	EXPECT_REFUSED(fd, h, rb_ioctl(fd, RUST_BUDDY_IOC_FREE, &__req),	\
		       &__req.hdr, err, why);					\
} while (0)

#ifdef __x86_64__
/* Calls as a 32-bit program does. @arg lies below 4 GiB. Returns 0 or a negative errno. */
static inline int ioctl_32(int fd, unsigned long cmd, void *arg)
{
	const long nr = 54;
	long ret;

	asm volatile("int $0x80"
		     : "=a" (ret)
		     : "a" (nr), "b" ((long)fd), "c" (cmd), "d" (arg)
		     : "memory", "cc", "r8", "r9", "r10", "r11");
	return (int)ret;
}

/* Maps a page below 4 GiB, for ioctl_32(). */
static inline void *page_below_4g(void)
{
	return mmap(NULL, 4096, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
}
#endif

/* Returns the address of a buffer, 0 if it is not reported. @fd is a client of the phys node. */
static inline uint64_t place_of(int fd, uint64_t handle)
{
	uint64_t address;

	if (rb_pin(fd, handle, &address))
		return 0;
	if (rb_unpin(fd, handle))
		return 0;
	return address;
}

/*
 * Returns a word that differs for every position and seed, and is not zero for a seed that is not.
 */
static inline uint64_t pattern(uint64_t seed, uint64_t word)
{
	return (seed << 40 | 1) ^ (word << 1);
}

static inline void fill(void *mem, uint64_t bytes, uint64_t seed)
{
	uint64_t *p = mem;
	uint64_t i;

	for (i = 0; i < bytes / 8; i++)
		p[i] = pattern(seed, i);
}

static inline bool filled(const void *mem, uint64_t bytes, uint64_t seed)
{
	const uint64_t *p = mem;
	uint64_t i;

	for (i = 0; i < bytes / 8; i++)
		if (p[i] != pattern(seed, i))
			return false;
	return true;
}

static inline bool zeroed(const void *mem, uint64_t bytes)
{
	const uint64_t *p = mem;
	uint64_t i, seen = 0;

	for (i = 0; i < bytes / 8; i++)
		seen |= p[i];
	return !seen;
}

/* A linear congruential generator: a fixed seed gives the same sequence on every machine. */
static inline uint32_t rnd(uint64_t *seed)
{
	*seed = *seed * 6364136223846793005ULL + 1442695040888963407ULL;
	return *seed >> 32;
}

/* Waits for a child. Returns its exit status, or 128 plus the signal that ended it. */
static inline int verdict(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Two processes synchronize over a socket: one sends a byte, and the other waits for it. */
static inline void say(int line)
{
	if (write(line, "", 1) != 1)
		_exit(99);
}

static inline void hear(int line)
{
	char byte;

	if (read(line, &byte, 1) != 1)
		_exit(98);
}

/* Sends a descriptor, and the result of an ALLOC that was made through it. */
static inline int send_fd(int line, int fd, const struct rust_buddy_alloc *req)
{
	union {
		struct cmsghdr hdr;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { .iov_base = (void *)req, .iov_len = sizeof(*req) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg;

	memset(&control, 0, sizeof(control));
	cmsg = CMSG_FIRSTHDR(&msg);
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	return sendmsg(line, &msg, 0) == (ssize_t)sizeof(*req) ? 0 : -1;
}

static inline int receive_fd(int line, struct rust_buddy_alloc *req)
{
	union {
		struct cmsghdr hdr;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { .iov_base = req, .iov_len = sizeof(*req) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg;
	int fd;

	if (recvmsg(line, &msg, MSG_CMSG_CLOEXEC | MSG_WAITALL) != (ssize_t)sizeof(*req))
		return -1;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (!cmsg || cmsg->cmsg_type != SCM_RIGHTS)
		return -1;
	memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
	return fd;
}

/* Drops root's privileges for good. The process is in one group afterwards, or (0) in none. */
static inline int become_nobody(gid_t group)
{
	if (setgroups(!!group, &group))
		return -errno;
	if (setresgid(NOBODY, NOBODY, NOBODY))
		return -errno;
	if (setresuid(NOBODY, NOBODY, NOBODY))
		return -errno;
	return 0;
}

static inline uint64_t round_up_to(uint64_t value, uint64_t unit)
{
	return (value + unit - 1) / unit * unit;
}

static inline uint64_t next_power(uint64_t value)
{
	uint64_t power = 1;

	while (power < value)
		power <<= 1;
	return power;
}

#endif /* SELFTESTS_RB_TEST_H */
