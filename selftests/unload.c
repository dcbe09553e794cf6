// SPDX-License-Identifier: GPL-2.0
/*
 * The module can't be unloaded while it is in use: by an open file of a node or of debugfs, or by a
 * mapping whose file was closed. (The runner tests that an unused module can be unloaded.)
 */
#include <sys/syscall.h>

#include "rb_test.h"

/* Returns 0 or a negative errno. 0 would mean that the module was unloaded. */
static int unload(void)
{
	return syscall(SYS_delete_module, "rust_buddy", O_NONBLOCK) < 0 ? -errno : 0;
}

FIXTURE(stays)
{
	int fd;
	struct rust_buddy_alloc buf;
};

FIXTURE_SETUP(stays)
{
	OPEN_OR_SKIP(self->fd, RB_DEV);
	if (geteuid())
		SKIP(return, "only root may unload modules");
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(16), 0, "unload", &self->buf));
}

FIXTURE_TEARDOWN(stays)
{
	if (self->fd >= 0)
		close(self->fd);
}

TEST_F(stays, while_open)
{
	EXPECT_EQ(-EAGAIN, unload());
	/* The attempt has not affected the client. */
	EXPECT_EQ(0, rb_free(self->fd, self->buf.handle));
}

TEST_F(stays, while_mapped)
{
	char *map = rb_map(self->fd, &self->buf, PROT_READ | PROT_WRITE);

	ASSERT_TRUE(map != MAP_FAILED);
	close(self->fd);
	self->fd = -1;
	EXPECT_EQ(-EAGAIN, unload());
	/* A fault after the attempt still finds its handler. */
	map[KiB(12)] = 7;
	EXPECT_EQ(7, map[KiB(12)]);
	EXPECT_EQ(0, munmap(map, self->buf.granted));
}

TEST_F(stays, while_a_child_has_it)
{
	void *map = rb_map(self->fd, &self->buf, PROT_READ | PROT_WRITE);
	int go[2], status;
	pid_t pid;
	char c;

	ASSERT_TRUE(map != MAP_FAILED);
	ASSERT_EQ(0, pipe(go));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(go[1]);
		_exit(read(go[0], &c, 1) != 0);
	}
	close(go[0]);
	close(self->fd);
	self->fd = -1;
	EXPECT_EQ(0, munmap(map, self->buf.granted));
	EXPECT_EQ(-EAGAIN, unload());
	close(go[1]);
	EXPECT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
}

/* Returns the number of references to the module, or -1. */
static int references(void)
{
	FILE *file = fopen("/sys/module/rust_buddy/refcnt", "r");
	int count = -1;

	if (!file)
		return -1;
	if (fscanf(file, "%d", &count) != 1)
		count = -1;
	fclose(file);
	return count;
}

#define DEBUGFS	"/sys/kernel/debug/rust_buddy/"

FIXTURE(debugfs)
{
	int fd;
	int before;
};

FIXTURE_VARIANT(debugfs)
{
	const char *path;
	int flags;
};

FIXTURE_VARIANT_ADD(debugfs, of_a_pool)
{
	.path = DEBUGFS "pool1/status",
	.flags = O_RDONLY,
};

FIXTURE_VARIANT_ADD(debugfs, of_all_pools)
{
	.path = DEBUGFS "reserved",
	.flags = O_RDONLY,
};

FIXTURE_VARIANT_ADD(debugfs, to_write)
{
	.path = DEBUGFS "pool1/release_quarantine",
	.flags = O_WRONLY,
};

FIXTURE_SETUP(debugfs)
{
	self->fd = -1;
	if (geteuid())
		SKIP(return, "only root may unload modules");
	self->before = references();
	if (self->before)
		SKIP(return, "the module is not there, or in use by another program");
	self->fd = open(variant->path, variant->flags | O_CLOEXEC);
	if (self->fd < 0)
		SKIP(return, "no %s: CONFIG_DEBUG_FS?", variant->path);
}

FIXTURE_TEARDOWN(debugfs)
{
	if (self->fd >= 0)
		close(self->fd);
}

/*
 * Closing the file calls its operations, which must still be loaded. Only the file holds the
 * module.
 */
TEST_F(debugfs, while_open)
{
	char byte = '1';

	EXPECT_EQ(1, references());
	EXPECT_EQ(-EAGAIN, unload());
	/* The file still works. */
	EXPECT_LE(0, variant->flags == O_WRONLY ? write(self->fd, &byte, 1)
						: read(self->fd, &byte, 1));
	EXPECT_EQ(0, close(self->fd));
	self->fd = -1;
	/* Nothing holds the module any longer, so it could be unloaded. */
	EXPECT_EQ(0, references());
}

TEST_HARNESS_MAIN
