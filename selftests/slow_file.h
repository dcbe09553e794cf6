/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Files whose page faults take up to SLOW_US: a FUSE server in a process of its own.
 *
 * An unprivileged program can get these files from FUSE in a user namespace, even if it may not use
 * userfaultfd. The server delays its answer to each READ, and makes the kernel drop the pages at
 * random times. So any access to a shared mapping of a file may block, and the process holds no
 * lock while it does.
 */
#ifndef SLOW_FILE_H
#define SLOW_FILE_H

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SLOW_FILES	16
#define SLOW_PAGE	4096
#define SLOW_WRITE	(64 * 1024)
#define SLOW_US		5000	/* the longest delay of a READ, in microseconds */

struct slow_files {
	pid_t server;
	char dir[32];
};

/* The server's data: each file has one page, and its inode number is the file's number plus 2. */
static char slow_page[SLOW_FILES][SLOW_PAGE];
static int slow_dev;

static void slow_nap(unsigned int *rng, unsigned int us)
{
	struct timespec t = { .tv_nsec = 1000L * (rand_r(rng) % us) };

	nanosleep(&t, NULL);
}

/* Sends the answer to a request. FORGET and INTERRUPT have none. */
static bool slow_reply(uint64_t unique, int err, const void *data, size_t size)
{
	struct fuse_out_header out = {
		.len = sizeof(out) + (err ? 0 : size), .error = -err, .unique = unique,
	};
	struct iovec v[] = { { &out, sizeof(out) }, { (void *)data, err ? 0 : size } };

	/* ENOENT: the request was interrupted before the answer. */
	return writev(slow_dev, v, 2) >= 0 || errno == ENOENT;
}

static struct fuse_attr slow_attr(uint64_t inode)
{
	bool root = inode == FUSE_ROOT_ID;

	return (struct fuse_attr) {
		.ino = inode,
		.size = root ? 0 : SLOW_PAGE,
		.blocks = root ? 0 : SLOW_PAGE / 512,
		.mode = root ? S_IFDIR | 0700 : S_IFREG | 0600,
		.nlink = 1,
		.blksize = SLOW_PAGE,
	};
}

/* Returns the data of a file at @offset, or NULL. Limits *@size to the bytes that follow it. */
static char *slow_at(uint64_t inode, uint64_t offset, uint32_t *size)
{
	if (inode < 2 || inode - 2 >= SLOW_FILES || offset >= SLOW_PAGE)
		return NULL;
	if (*size > SLOW_PAGE - offset)
		*size = SLOW_PAGE - offset;
	return slow_page[inode - 2] + offset;
}

static bool slow_serve(const struct fuse_in_header *in, const void *arg, unsigned int *rng)
{
	union {
		struct fuse_init_out init;
		struct fuse_entry_out entry;
		struct fuse_attr_out attr;
		struct fuse_open_out open;
		struct fuse_write_out write;
	} u = { 0 };
	const struct fuse_read_in *r = arg;
	const struct fuse_write_in *w = arg;
	uint32_t size;
	char *at;

	switch (in->opcode) {
	case FUSE_INIT:
		u.init.major = FUSE_KERNEL_VERSION;
		u.init.minor = FUSE_KERNEL_MINOR_VERSION;
		u.init.max_write = SLOW_PAGE;
		return slow_reply(in->unique, 0, &u, sizeof(u.init));
	case FUSE_LOOKUP:
		u.entry.nodeid = 2 + strtoul(arg, NULL, 10);
		u.entry.entry_valid = 3600;
		u.entry.attr_valid = 3600;
		u.entry.attr = slow_attr(u.entry.nodeid);
		return slow_reply(in->unique, 0, &u, sizeof(u.entry));
	case FUSE_GETATTR:
	case FUSE_SETATTR:
		u.attr.attr_valid = 3600;
		u.attr.attr = slow_attr(in->nodeid);
		return slow_reply(in->unique, 0, &u, sizeof(u.attr));
	case FUSE_OPEN:
		return slow_reply(in->unique, 0, &u, sizeof(u.open));
	case FUSE_READ:
		slow_nap(rng, SLOW_US);
		size = r->size;
		at = slow_at(in->nodeid, r->offset, &size);
		return slow_reply(in->unique, 0, at, at ? size : 0);
	case FUSE_WRITE:
		size = w->size;
		at = slow_at(in->nodeid, w->offset, &size);
		if (at)
			memcpy(at, w + 1, size);
		u.write.size = w->size;
		return slow_reply(in->unique, 0, &u, sizeof(u.write));
	case FUSE_FLUSH:
	case FUSE_RELEASE:
	case FUSE_FSYNC:
		return slow_reply(in->unique, 0, NULL, 0);
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return true;
	default:
		return slow_reply(in->unique, ENOSYS, NULL, 0);
	}
}

/*
 * Makes the kernel drop the page of one file after the other. The kernel waits for a READ of the
 * page to end first.
 */
static void *slow_forget(void *unused)
{
	unsigned int rng = 1, i;

	for (i = 0;; i = (i + 1) % SLOW_FILES) {
		struct fuse_notify_inval_inode_out inval = { .ino = 2 + i };
		struct fuse_out_header out = {
			.len = sizeof(out) + sizeof(inval), .error = FUSE_NOTIFY_INVAL_INODE,
		};
		struct iovec v[] = { { &out, sizeof(out) }, { &inval, sizeof(inval) } };

		/* ENOENT: no process has looked up the file yet. */
		if (writev(slow_dev, v, 2) < 0 && errno != ENOENT)
			slow_nap(&rng, SLOW_US);
		slow_nap(&rng, 500);
	}
	return unused;
}

static void slow_run(void)
{
	static char buf[SLOW_WRITE + SLOW_PAGE] __attribute__((aligned(8)));
	const struct fuse_in_header *in = (const void *)buf;
	unsigned int rng = 2;
	pthread_t thread;
	ssize_t got;

	if (pthread_create(&thread, NULL, slow_forget, NULL))
		_exit(1);
	for (;;) {
		got = read(slow_dev, buf, sizeof(buf));
		if (got < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT))
			continue;
		/* The file system has been unmounted, or the answer could not be sent. */
		if (got < (ssize_t)sizeof(*in) || !slow_serve(in, in + 1, &rng))
			_exit(0);
	}
}

/*
 * Starts the server. Returns 0, or a negative errno if the kernel has no FUSE or if the caller may
 * not mount it.
 */
static int slow_files_start(struct slow_files *files)
{
	char options[96];
	int err;

	files->server = 0;
	snprintf(files->dir, sizeof(files->dir), "/tmp/slow-XXXXXX");
	slow_dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (slow_dev < 0)
		return -errno;
	if (!mkdtemp(files->dir)) {
		err = -errno;
		close(slow_dev);
		return err;
	}
	snprintf(options, sizeof(options), "fd=%d,rootmode=40700,user_id=%u,group_id=%u", slow_dev,
		 getuid(), getgid());
	if (mount("slow", files->dir, "fuse", MS_NOSUID | MS_NODEV, options)) {
		err = -errno;
		rmdir(files->dir);
		close(slow_dev);
		return err;
	}
	files->server = fork();
	if (!files->server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		slow_run();
	}
	err = files->server < 0 ? -errno : 0;
	close(slow_dev);
	return err;
}

/* Maps the page of file @number. Returns MAP_FAILED on errors. */
static char *slow_file_map(const struct slow_files *files, unsigned int number)
{
	char path[64], *at;
	int fd;

	snprintf(path, sizeof(path), "%s/%u", files->dir, number);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return MAP_FAILED;
	at = mmap(NULL, SLOW_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return at;
}

/* Stops the server. The caller must not access any mapping of the files afterwards. */
static void slow_files_stop(struct slow_files *files)
{
	umount2(files->dir, MNT_DETACH);
	if (files->server > 0) {
		kill(files->server, SIGKILL);
		waitpid(files->server, NULL, 0);
	}
	rmdir(files->dir);
}

#endif
