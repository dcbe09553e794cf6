// SPDX-License-Identifier: GPL-2.0
/*
 * Permissions of the nodes. The plain node is open to members of the group that the administrator
 * gives it. The phys node is open to root only, independent of the group.
 */
#include <sys/stat.h>

#include "rb_test.h"

#define GROUP	4321
#define SIZE	KiB(64)

FIXTURE(node) {
	int fd;
	struct stat was;
	bool changed;
	struct rust_buddy_pool_info base;
};

FIXTURE_VARIANT(node) {
	mode_t mode;
	bool member;	/* is the user in the node's group? */
	int err;	/* of opening the plain node for reading and writing */
	int read_err;	/* of opening it for reading only */
};

FIXTURE_VARIANT_ADD(node, group_and_member) {
	.mode = 0660, .member = true,
};

FIXTURE_VARIANT_ADD(node, group_and_stranger) {
	.mode = 0660, .err = EACCES, .read_err = EACCES,
};

FIXTURE_VARIANT_ADD(node, readers_and_member) {
	.mode = 0640, .member = true, .err = EACCES,
};

FIXTURE_VARIANT_ADD(node, root_and_member) {
	.mode = 0600, .member = true, .err = EACCES, .read_err = EACCES,
};

FIXTURE_VARIANT_ADD(node, root_and_stranger) {
	.mode = 0600, .err = EACCES, .read_err = EACCES,
};

FIXTURE_SETUP(node)
{
	struct stat dev;

	self->fd = -1;
	if (geteuid())
		SKIP(return, "only root can give a node to a group");
	OPEN_OR_SKIP(self->fd, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	ASSERT_EQ(0, stat("/dev", &dev));
	if (!(dev.st_mode & 0001))
		SKIP(return, "/dev is closed to everybody but root");
	ASSERT_EQ(0, stat(RB_DEV, &self->was));
	self->changed = true;
	ASSERT_EQ(0, chown(RB_DEV, 0, GROUP));
	ASSERT_EQ(0, chmod(RB_DEV, variant->mode));
}

/* In the parent, so that the node's mode is restored however the test ended. */
FIXTURE_TEARDOWN_PARENT(node)
{
	if (!self->changed)
		return;
	EXPECT_EQ(0, chown(RB_DEV, self->was.st_uid, self->was.st_gid));
	EXPECT_EQ(0, chmod(RB_DEV, self->was.st_mode & 07777));
}

static int open_errno(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC);

	if (fd < 0)
		return errno;
	close(fd);
	return 0;
}

/* Uses every call that the plain node allows, and expects a refusal of the other ones. */
static int use_it(void)
{
	struct rust_buddy_pin pin = { .handle = 0 };
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc req;
	struct rust_buddy_info info;
	void *mem;
	int fd;

	fd = rb_open(RB_DEV);
	if (fd < 0)
		return 20;
	if (rb_info(fd, &info) || info.features & RUST_BUDDY_FEAT_PIN)
		return 21;
	if (rb_pool_info(fd, 0, &pool) || pool.phys_base != RUST_BUDDY_NO_ADDRESS)
		return 22;
	if (rb_alloc(fd, SIZE, 0, "of nobody", &req))
		return 23;
	mem = rb_map(fd, &req, PROT_READ | PROT_WRITE);
	if (mem == MAP_FAILED)
		return 24;
	if (!zeroed(mem, req.granted))
		return 25;
	fill(mem, req.granted, 1);
	if (!filled(mem, req.granted, 1))
		return 26;
	pin.handle = req.handle;
	if (rb_ioctl(fd, RUST_BUDDY_IOC_PIN, &pin) != -EPERM ||
	    pin.hdr.reason != RUST_BUDDY_REASON_PHYS_ACCESS || pin.address)
		return 27;
	if (munmap(mem, req.granted) || rb_free(fd, req.handle))
		return 28;
	/* A buffer that close has to free. */
	if (rb_alloc(fd, SIZE, 0, "of nobody", &req))
		return 29;
	close(fd);
	return 0;
}

TEST_F(node, opens)
{
	struct stat phys;
	pid_t pid;

	/* Checks the permissions that docs/abi.md documents before the test changes them. */
	if (!stat(RB_DEV_PHYS, &phys)) {
		EXPECT_EQ(0600U, phys.st_mode & 07777);
		EXPECT_EQ(0U, phys.st_uid);
	}
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (become_nobody(variant->member ? GROUP : 0))
			_exit(10);
		if (!setuid(0))
			_exit(11);
		if (open_errno(RB_DEV, O_RDWR) != variant->err)
			_exit(12);
		if (open_errno(RB_DEV, O_WRONLY) != variant->err)
			_exit(13);
		if (open_errno(RB_DEV, O_RDONLY) != variant->read_err)
			_exit(14);
		_exit(variant->err ? 0 : use_it());
	}
	EXPECT_EQ(0, verdict(pid));
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
}

/*
 * The phys node is closed to other users, with or without the plain node's group, even for reading.
 */
TEST_F(node, phys_stays_closed)
{
	pid_t pid;

	if (access(RB_DEV_PHYS, F_OK))
		SKIP(return, "there is no %s", RB_DEV_PHYS);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (become_nobody(variant->member ? GROUP : 0))
			_exit(10);
		if (open_errno(RB_DEV_PHYS, O_RDWR) != EACCES)
			_exit(12);
		if (open_errno(RB_DEV_PHYS, O_RDONLY) != EACCES)
			_exit(13);
		if (open_errno(RB_DEV_PHYS, O_WRONLY) != EACCES)
			_exit(14);
		_exit(0);
	}
	EXPECT_EQ(0, verdict(pid));
}

TEST_HARNESS_MAIN
