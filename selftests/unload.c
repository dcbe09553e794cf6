// SPDX-License-Identifier: GPL-2.0
/*
 * The module stays while anything of it is in use: an open file, or a mapping
 * whose file is long closed. (That it goes when nothing is, the runner tests.)
 */
#include <sys/syscall.h>

#include "rb_test.h"

/* 0 or a negative errno; 0 would mean that the module is gone. */
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
	/* Having tried has broken nothing. */
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

TEST_HARNESS_MAIN
