// SPDX-License-Identifier: GPL-2.0
/*
 * Buffers that migrate and change their size while they are in use. PIN and UNPIN on the phys node
 * report where a buffer is. Mappings of every kind show that its content is preserved.
 */
#include <pthread.h>
#include <sys/stat.h>

#include "rb_test.h"

/* The number of migrations while other threads write to the buffer. */
#define MOVES	env_number("RB_MOVES", 3000)

FIXTURE(move) {
	int fd;
	struct rust_buddy_pool_info base;
};

FIXTURE_SETUP(move)
{
	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	if (!(self->base.caps & RUST_BUDDY_CAP_MOVABLE))
		SKIP(return, "the buffers of this pool never move");
}

FIXTURE_TEARDOWN(move)
{
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
}

/* A refused call has the expected errno and reason, and changes nothing. */
#define EXPECT_REASON(handle, call, hdr, err, why) do {				\
	struct state __was = state_of(self->fd, handle);			\
	EXPECT_EQ(err, call);							\
	EXPECT_EQ((uint32_t)(why), (hdr).reason);				\
	EXPECT_UNCHANGED(self->fd, handle, &__was);				\
} while (0)

static void counters_of(struct __test_metadata *_metadata, int fd,
			struct rust_buddy_pool_info *pool)
{
	ASSERT_EQ(0, rb_pool_info(fd, 0, pool));
}

TEST_F(move, contents_and_names_stay)
{
	static const uint64_t sizes[] = { KiB(4), KiB(20), KiB(64), MiB(2), MiB(6) };
	struct rust_buddy_pool_info before, after;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct rust_buddy_buffer_info was, is;
		struct rust_buddy_migrate to;
		struct rust_buddy_alloc buf;
		uint64_t from;
		void *map;

		ASSERT_EQ(0,
			  rb_alloc(self->fd, sizes[i], RUST_BUDDY_ALLOC_BOTTOMUP, "moves", &buf));
		map = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
		ASSERT_TRUE(map != MAP_FAILED);
		fill(map, buf.granted, 7 + i);
		from = place_of(self->fd, buf.handle);
		ASSERT_EQ(0, rb_buffer_info(self->fd, buf.handle, &was));
		counters_of(_metadata, self->fd, &before);
		EXPECT_EQ(0, rb_migrate(self->fd, buf.handle, RUST_BUDDY_ALLOC_TOPDOWN, 0, 0, &to));
		counters_of(_metadata, self->fd, &after);
		EXPECT_EQ(before.migrations + 1, after.migrations);
		EXPECT_EQ(before.migrated + buf.granted, after.migrated);
		EXPECT_NE(from, place_of(self->fd, buf.handle));
		EXPECT_TRUE(filled(map, buf.granted, 7 + i));
		/* Data that is written after the migration is preserved by the next one, too. */
		fill(map, buf.granted, 8 + i);
		EXPECT_EQ(0,
			  rb_migrate(self->fd, buf.handle, RUST_BUDDY_ALLOC_BOTTOMUP, 0, 0, &to));
		EXPECT_EQ(from, place_of(self->fd, buf.handle));
		EXPECT_TRUE(filled(map, buf.granted, 8 + i));
		EXPECT_EQ(2ULL, to.generation);
		/* Everything else about the buffer is unchanged. */
		ASSERT_EQ(0, rb_buffer_info(self->fd, buf.handle, &is));
		EXPECT_EQ(2ULL, is.generation);
		is.generation = was.generation;
		EXPECT_EQ(0, memcmp(&was, &is, sizeof(was)));
		munmap(map, buf.granted);
		ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	}
}

/* A migration to an exact place or into a range. A place that is taken is refused. */
TEST_F(move, goes_where_it_is_told)
{
	struct rust_buddy_migrate to;
	struct rust_buddy_alloc buf, other;
	uint64_t base = self->base.phys_base, half = self->base.size / 2;

	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64), RUST_BUDDY_ALLOC_BOTTOMUP, "moves", &buf));
	EXPECT_EQ(0, rb_migrate(self->fd, buf.handle, RUST_BUDDY_ALLOC_AT, half, 0, &to));
	EXPECT_EQ(base + half, place_of(self->fd, buf.handle));
	/* To a place that is not aligned to the buffer's size. */
	EXPECT_EQ(0, rb_migrate(self->fd, buf.handle, RUST_BUDDY_ALLOC_AT, KiB(4), 0, &to));
	EXPECT_EQ(base + KiB(4), place_of(self->fd, buf.handle));
	EXPECT_EQ(0, rb_migrate(self->fd, buf.handle, RUST_BUDDY_ALLOC_RANGE, half,
				half + KiB(128), &to));
	EXPECT_LE(base + half, place_of(self->fd, buf.handle));
	EXPECT_GE(base + half + KiB(64), place_of(self->fd, buf.handle));

	memset(&other, 0, sizeof(other));
	other.size = KiB(4);
	other.flags = RUST_BUDDY_ALLOC_AT;
	other.lo = MiB(1);
	ASSERT_EQ(0, rb_alloc_req(self->fd, &other));
	EXPECT_REASON(buf.handle, rb_migrate(self->fd, buf.handle, RUST_BUDDY_ALLOC_AT,
					     MiB(1) - KiB(32), 0, &to),
		      to.hdr, -EBUSY, RUST_BUDDY_REASON_RANGE_BUSY);
	/* The target overlaps the buffer itself. */
	EXPECT_REASON(buf.handle, rb_migrate(self->fd, buf.handle, RUST_BUDDY_ALLOC_AT,
					     place_of(self->fd, buf.handle) - base + KiB(32), 0,
					     &to),
		      to.hdr, -EBUSY, RUST_BUDDY_REASON_RANGE_BUSY);
	ASSERT_EQ(0, rb_free(self->fd, other.handle));
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
}

TEST_F(move, refusals)
{
	const uint64_t page = self->base.unit;
	struct rust_buddy_migrate to;
	struct rust_buddy_resize size;
	struct rust_buddy_import in;
	struct rust_buddy_alloc buf, all;
	uint64_t address;
	int dmabuf, ro;

	memset(&buf, 0, sizeof(buf));
	buf.size = KiB(64);
	buf.max_size = KiB(256);
	ASSERT_EQ(0, rb_alloc_req(self->fd, &buf));
#define MOVE(flags, lo, hi) rb_migrate(self->fd, buf.handle, flags, lo, hi, &to)
	EXPECT_REASON(buf.handle, MOVE(RUST_BUDDY_ALLOC_EXACT, 0, 0), to.hdr, -EINVAL,
		      RUST_BUDDY_REASON_FLAGS);
	EXPECT_REASON(buf.handle, MOVE(RUST_BUDDY_ALLOC_BOTTOMUP | RUST_BUDDY_ALLOC_TOPDOWN, 0, 0),
		      to.hdr, -EINVAL, RUST_BUDDY_REASON_FLAGS);
	EXPECT_REASON(buf.handle, MOVE(1U << 31, 0, 0), to.hdr, -EINVAL, RUST_BUDDY_REASON_FLAGS);
	EXPECT_REASON(buf.handle, MOVE(0, page, 0), to.hdr, -EINVAL, RUST_BUDDY_REASON_RANGE);
	EXPECT_REASON(buf.handle, MOVE(RUST_BUDDY_ALLOC_AT, page / 2, 0), to.hdr, -EINVAL,
		      RUST_BUDDY_REASON_RANGE);
	EXPECT_REASON(buf.handle, MOVE(RUST_BUDDY_ALLOC_AT, self->base.size - KiB(32), 0), to.hdr,
		      -EINVAL, RUST_BUDDY_REASON_RANGE);
	EXPECT_REASON(buf.handle, MOVE(RUST_BUDDY_ALLOC_RANGE, 0, KiB(32)), to.hdr, -EINVAL,
		      RUST_BUDDY_REASON_RANGE);
	EXPECT_REASON(buf.handle, rb_migrate(self->fd, buf.handle + 1, 0, 0, 0, &to), to.hdr,
		      -ENOENT,
		      RUST_BUDDY_REASON_UNKNOWN_HANDLE);
	memset(&to, 0, sizeof(to));
	to.handle = buf.handle;
	to.pool = 77;
	EXPECT_REASON(buf.handle, rb_ioctl(self->fd, RUST_BUDDY_IOC_MIGRATE, &to), to.hdr, -ENOENT,
		      RUST_BUDDY_REASON_UNKNOWN_POOL);
#define RESIZE(bytes, flags) rb_resize(self->fd, buf.handle, bytes, flags, &size)
	EXPECT_REASON(buf.handle, RESIZE(0, 0), size.hdr, -EINVAL, RUST_BUDDY_REASON_SIZE);
	EXPECT_REASON(buf.handle, RESIZE(self->base.size + 1, 0), size.hdr, -EINVAL,
		      RUST_BUDDY_REASON_SIZE);
	EXPECT_REASON(buf.handle, RESIZE(KiB(256) + 1, 0), size.hdr, -EINVAL,
		      RUST_BUDDY_REASON_MAX_SIZE);
	EXPECT_REASON(buf.handle, RESIZE(KiB(4), 2), size.hdr, -EINVAL, RUST_BUDDY_REASON_FLAGS);
	EXPECT_REASON(buf.handle, rb_resize(self->fd, buf.handle + 1, 1, 0, &size), size.hdr,
		      -ENOENT,
		      RUST_BUDDY_REASON_UNKNOWN_HANDLE);

	/* A pinned buffer can't move, since its address was reported. */
	ASSERT_EQ(0, rb_pin(self->fd, buf.handle, &address));
	EXPECT_REASON(buf.handle, MOVE(0, 0, 0), to.hdr, -EBUSY, RUST_BUDDY_REASON_PINNED);
	EXPECT_REASON(buf.handle, RESIZE(KiB(4), 0), size.hdr, -EBUSY, RUST_BUDDY_REASON_PINNED);
	ASSERT_EQ(0, rb_unpin(self->fd, buf.handle));
	EXPECT_EQ(0, MOVE(0, 0, 0));

	/*
	 * An importer relies on the size, so RESIZE is refused. Migration is not, as no device maps
	 * it.
	 */
	dmabuf = rb_export(self->fd, buf.handle, 0, 0, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, dmabuf);
	EXPECT_REASON(buf.handle, RESIZE(KiB(4), 0), size.hdr, -EBUSY, RUST_BUDDY_REASON_SHARED);
	ASSERT_EQ(0, rb_import(self->fd, dmabuf, &in));
	EXPECT_REASON(in.handle, rb_migrate(self->fd, in.handle, 0, 0, 0, &to), to.hdr, -EBUSY,
		      RUST_BUDDY_REASON_SHARED);
	EXPECT_REASON(in.handle, rb_resize(self->fd, in.handle, KiB(4), 0, &size), size.hdr, -EBUSY,
		      RUST_BUDDY_REASON_SHARED);
	close(dmabuf);
	EXPECT_REASON(buf.handle, RESIZE(KiB(4), 0), size.hdr, -EBUSY, RUST_BUDDY_REASON_SHARED);
	EXPECT_EQ(0, MOVE(0, 0, 0));
	ASSERT_EQ(0, rb_free(self->fd, in.handle));
	EXPECT_EQ(0, RESIZE(KiB(4), 0));
	EXPECT_EQ(KiB(4), size.granted);

	/* No free block is as large as the buffer, unless the pool has more than one. */
	ASSERT_EQ(0, rb_alloc(self->fd, self->base.largest_free / 2, 0, "half", &all));
	memset(&to, 0, sizeof(to));
	to.handle = all.handle;
	if (rb_ioctl(self->fd, RUST_BUDDY_IOC_MIGRATE, &to)) {
		EXPECT_EQ(-ENOSPC, to.hdr.ret);
		EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_NO_SPACE, to.hdr.reason);
	}
	ASSERT_EQ(0, rb_free(self->fd, all.handle));

	/* A client that was opened read-only. */
	ro = open(RB_DEV_PHYS, O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, ro);
	EXPECT_EQ(-EACCES, rb_migrate(ro, buf.handle, 0, 0, 0, &to));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_READ_ONLY_FILE, to.hdr.reason);
	EXPECT_EQ(-EACCES, rb_resize(ro, buf.handle, 1, 0, &size));
	close(ro);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));

	/*
	 * mmap fills the page tables of PREFAULT before the mapping can be found, so the buffer
	 * can't move.
	 */
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64), RUST_BUDDY_ALLOC_PREFAULT, "filled", &buf));
	EXPECT_REASON(buf.handle, MOVE(0, 0, 0), to.hdr, -EOPNOTSUPP,
		      RUST_BUDDY_REASON_UNMOVABLE_BUFFER);
	EXPECT_REASON(buf.handle, RESIZE(KiB(4), 0), size.hdr, -EOPNOTSUPP,
		      RUST_BUDDY_REASON_UNMOVABLE_BUFFER);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));

	/* Pages of GUP buffers may have references that the module does not know of. */
	if (!(self->base.caps & RUST_BUDDY_CAP_LONGTERM_PIN))
		return;
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64), RUST_BUDDY_ALLOC_GUP, "gup", &buf));
	EXPECT_REASON(buf.handle, MOVE(0, 0, 0), to.hdr, -EOPNOTSUPP,
		      RUST_BUDDY_REASON_UNMOVABLE_BUFFER);
	EXPECT_REASON(buf.handle, RESIZE(KiB(4), 0), size.hdr, -EOPNOTSUPP,
		      RUST_BUDDY_REASON_UNMOVABLE_BUFFER);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
}

/*
 * Two threads write continuously, each to its own words, and each checks every word before it
 * writes it again. The buffer is migrated in the meantime.
 */
#define WORDS	512

struct writer {
	volatile uint64_t *words;	/* every second word from here on */
	volatile bool *stop;
	uint64_t rounds;
	uint64_t lost;
};

static void *hammer(void *arg)
{
	struct writer *w = arg;
	uint64_t value = 0;
	int i;

	while (!*w->stop) {
		for (i = 0; i < WORDS; i++) {
			/* Spreads the accesses over all pages. */
			volatile uint64_t *at = w->words + 2 * 61 * i;

			if (*at != value)
				w->lost++;
			*at = value + 1;
		}
		value++;
	}
	w->rounds = value;
	for (i = 0; i < WORDS; i++)
		if (w->words[2 * 61 * i] != value)
			w->lost++;
	return NULL;
}

TEST_F_TIMEOUT(move, no_store_is_lost, 600)
{
	const uint64_t bytes = MiB(1);
	struct rust_buddy_migrate to;
	struct rust_buddy_alloc buf;
	struct writer writers[2];
	pthread_t threads[2];
	volatile bool stop = false;
	uint64_t moves = 0;
	unsigned int i;
	uint64_t *map;

	ASSERT_EQ(0, rb_alloc(self->fd, bytes, 0, "hammered", &buf));
	map = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(map != MAP_FAILED);
	memset(writers, 0, sizeof(writers));
	for (i = 0; i < 2; i++) {
		writers[i].words = map + i;
		writers[i].stop = &stop;
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, hammer, &writers[i]));
	}
	while (moves < MOVES) {
		ASSERT_EQ(0, rb_migrate(self->fd, buf.handle, 0, 0, 0, &to));
		moves++;
	}
	stop = true;
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_join(threads[i], NULL));
	printf("# {\"figure\": \"hammer\", \"moves\": %ju, \"bytes\": %ju, \"stores\": %ju, ",
	       (uintmax_t)moves, (uintmax_t)bytes,
	       (uintmax_t)((writers[0].rounds + writers[1].rounds) * WORDS));
	printf("\"lost\": %ju}\n", (uintmax_t)(writers[0].lost + writers[1].lost));
	EXPECT_EQ(0ULL, writers[0].lost);
	EXPECT_EQ(0ULL, writers[1].lost);
	EXPECT_LT(0ULL, writers[0].rounds);
	EXPECT_LT(0ULL, writers[1].rounds);
	EXPECT_EQ(moves, to.generation);
	munmap(map, bytes);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
}

/*
 * A migration changes every mapping: a child's, a dma-buf's, and another client's on another node.
 */
TEST_F(move, every_mapping_moves)
{
	const uint64_t bytes = KiB(64);
	struct rust_buddy_migrate to;
	struct rust_buddy_import in;
	struct rust_buddy_alloc buf = {
		.size = bytes, .flags = RUST_BUDDY_ALLOC_AT, .lo = MiB(4), .name = "shared",
	};
	struct rust_buddy_alloc next = {
		.size = bytes, .flags = RUST_BUDDY_ALLOC_AT, .lo = MiB(4), .name = "next",
	};
	int dmabuf, other, go[2], done[2];
	volatile uint64_t *map, *shown, *imported, *left;
	char node[64], byte;
	struct stat stat_buf;
	uint64_t i;
	pid_t pid;

	ASSERT_EQ(0, rb_alloc_req(self->fd, &buf));
	map = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE((void *)map != MAP_FAILED);
	dmabuf = rb_export(self->fd, buf.handle, 0, 0, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, dmabuf);
	shown = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, dmabuf, 0);
	ASSERT_TRUE((void *)shown != MAP_FAILED);
	/* A device node with another inode. */
	snprintf(node, sizeof(node), "/tmp/rust_buddy.%d", getpid());
	ASSERT_EQ(0, stat(RB_DEV, &stat_buf));
	ASSERT_EQ(0, mknod(node, S_IFCHR | 0600, stat_buf.st_rdev));
	other = rb_open(node);
	unlink(node);
	if (other < 0)
		SKIP(goto out, "devices can't be opened in /tmp");
	ASSERT_EQ(0, rb_import(other, dmabuf, &in));
	imported = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, other, in.offset);
	ASSERT_TRUE((void *)imported != MAP_FAILED);
	ASSERT_EQ(0, pipe(go));
	ASSERT_EQ(0, pipe(done));

	map[0] = 1;
	EXPECT_EQ(1ULL, shown[0]);
	EXPECT_EQ(1ULL, imported[0]);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		/* Was touched before the migration, and is touched after it. */
		bool good = map[0] == 1;

		if (write(done[1], "x", 1) != 1 || read(go[0], &byte, 1) != 1)
			_exit(2);
		good &= map[0] == 2 && shown[0] == 2 && imported[0] == 2;
		map[1] = 3;
		_exit(good ? 0 : 1);
	}
	ASSERT_EQ(1, read(done[0], &byte, 1));
	ASSERT_EQ(0, rb_migrate(self->fd, buf.handle, RUST_BUDDY_ALLOC_AT, MiB(8), 0, &to));
	/* A mapping that still shows the old place would show this buffer's content. */
	ASSERT_EQ(0, rb_alloc_req(self->fd, &next));
	left = rb_map(self->fd, &next, PROT_READ | PROT_WRITE);
	ASSERT_TRUE((void *)left != MAP_FAILED);
	left[0] = 9;
	EXPECT_EQ(1ULL, map[0]);
	map[0] = 2;
	EXPECT_EQ(9ULL, left[0]);
	EXPECT_EQ(2ULL, shown[0]);
	EXPECT_EQ(2ULL, imported[0]);
	ASSERT_EQ(1, write(go[1], "x", 1));
	EXPECT_EQ(0, verdict(pid));
	EXPECT_EQ(3ULL, shown[1]);
	shown[2] = 4;
	imported[3] = 5;
	EXPECT_EQ(4ULL, map[2]);
	EXPECT_EQ(5ULL, map[3]);
	EXPECT_EQ(9ULL, left[0]);
	for (i = 1; i < bytes / sizeof(*left); i++)
		EXPECT_EQ(0ULL, left[i]);
	munmap((void *)left, bytes);
	EXPECT_EQ(0, rb_free(self->fd, next.handle));
	munmap((void *)imported, bytes);
	close(other);
out:
	munmap((void *)map, bytes);
	munmap((void *)shown, bytes);
	close(dmabuf);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
}

/* Processes map, fork and unmap a buffer while it migrates. */
TEST_F_TIMEOUT(move, while_processes_come_and_go, 600)
{
	const uint64_t bytes = KiB(256);
	struct rust_buddy_migrate to;
	struct rust_buddy_alloc buf;
	unsigned int i, n;
	uint64_t moves = 0;
	pid_t pid[3];
	void *map;

	ASSERT_EQ(0, rb_alloc(self->fd, bytes, 0, "forked", &buf));
	map = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(map != MAP_FAILED);
	fill(map, bytes, 5);
	for (i = 0; i < ARRAY_SIZE(pid); i++) {
		pid[i] = fork();
		ASSERT_LE(0, pid[i]);
		if (pid[i])
			continue;
		for (n = 0; n < 100; n++) {
			void *more = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
			pid_t child;

			if (more == MAP_FAILED || !filled(more, bytes, 5))
				_exit(1);
			child = fork();
			if (!child)
				_exit(!filled(map, bytes, 5) || !filled(more, bytes, 5));
			if (child < 0 || verdict(child))
				_exit(2);
			munmap(more, bytes);
		}
		_exit(0);
	}
	for (n = 0; n < ARRAY_SIZE(pid);) {
		int status;

		ASSERT_EQ(0, rb_migrate(self->fd, buf.handle, 0, 0, 0, &to));
		moves++;
		if (waitpid(-1, &status, WNOHANG) > 0) {
			EXPECT_EQ(0, status);
			n++;
		}
	}
	TH_LOG("moved %ju times meanwhile", (uintmax_t)moves);
	EXPECT_LT(0ULL, moves);
	EXPECT_TRUE(filled(map, bytes, 5));
	munmap(map, bytes);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
}

static int alloc_with_room(int fd, uint64_t bytes, uint64_t room, uint32_t flags, uint64_t lo,
			   struct rust_buddy_alloc *req)
{
	memset(req, 0, sizeof(*req));
	req->size = bytes;
	req->max_size = room;
	req->flags = flags;
	req->lo = lo;
	return rb_alloc_req(fd, req);
}

/* A buffer grows in place while its neighbour is free. Else it grows elsewhere, if allowed to. */
TEST_F(move, grows)
{
	struct rust_buddy_pool_info before, after;
	struct rust_buddy_resize size;
	struct rust_buddy_alloc buf, next;
	unsigned char *map;
	uint64_t at;

	/* At a place from which it can grow to the end of its mmap space. */
	ASSERT_EQ(0, alloc_with_room(self->fd, KiB(64), MiB(1), 0, 0, &buf));
	EXPECT_EQ(0, rb_resize(self->fd, buf.handle, KiB(64), 0, &size));
	EXPECT_EQ(KiB(64), size.granted);
	map = mmap(NULL, MiB(1), PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, buf.offset);
	ASSERT_TRUE(map != MAP_FAILED);
	fill(map, KiB(64), 3);
	counters_of(_metadata, self->fd, &before);
	EXPECT_EQ(0, rb_resize(self->fd, buf.handle, KiB(200), RUST_BUDDY_RESIZE_MAY_MOVE, &size));
	EXPECT_EQ(KiB(256), size.granted);
	EXPECT_EQ(6U, size.order);
	EXPECT_TRUE(filled(map, KiB(64), 3));
	EXPECT_TRUE(zeroed(map + KiB(64), KiB(256 - 64)));
	counters_of(_metadata, self->fd, &after);
	EXPECT_EQ(before.grows + before.grows_moved + 1, after.grows + after.grows_moved);
	EXPECT_EQ(before.granted + KiB(192), after.granted);
	EXPECT_EQ(before.requested + KiB(136), after.requested);

	/* The right buddy is taken, so the buffer can't grow in place. */
	fill(map, KiB(256), 4);
	at = place_of(self->fd, buf.handle) - self->base.phys_base;
	if (!alloc_with_room(self->fd, KiB(4), 0, RUST_BUDDY_ALLOC_AT, at + KiB(256), &next)) {
		EXPECT_REASON(buf.handle, rb_resize(self->fd, buf.handle, KiB(512), 0, &size),
			      size.hdr, -ENOSPC, RUST_BUDDY_REASON_NO_SPACE);
		EXPECT_LE(KiB(512), size.largest_free);
		counters_of(_metadata, self->fd, &before);
		EXPECT_EQ(0, rb_resize(self->fd, buf.handle, KiB(512), RUST_BUDDY_RESIZE_MAY_MOVE,
				       &size));
		counters_of(_metadata, self->fd, &after);
		EXPECT_EQ(before.grows_moved + 1, after.grows_moved);
		EXPECT_EQ(before.grows, after.grows);
		EXPECT_LT(0ULL, size.generation);
		ASSERT_EQ(0, rb_free(self->fd, next.handle));
	} else {
		EXPECT_EQ(0, rb_resize(self->fd, buf.handle, KiB(512), RUST_BUDDY_RESIZE_MAY_MOVE,
				       &size));
	}
	EXPECT_EQ(KiB(512), size.granted);
	EXPECT_TRUE(filled(map, KiB(256), 4));
	EXPECT_TRUE(zeroed(map + KiB(256), KiB(256)));
	munmap(map, MiB(1));
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
}

TEST_F(move, grows_in_place)
{
	struct rust_buddy_pool_info before, after;
	struct rust_buddy_resize size;
	struct rust_buddy_alloc buf;
	unsigned char *map;
	uint64_t address, again, n;

	/* Starts at a large boundary in an empty pool, so that no other buffer is in the way. */
	ASSERT_EQ(0, alloc_with_room(self->fd, KiB(4), MiB(2), RUST_BUDDY_ALLOC_AT,
				     self->base.size / 2, &buf));
	map = mmap(NULL, MiB(2), PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, buf.offset);
	ASSERT_TRUE(map != MAP_FAILED);
	/* Growing in place keeps the address, so a pinned buffer may do it. */
	ASSERT_EQ(0, rb_pin(self->fd, buf.handle, &address));
	counters_of(_metadata, self->fd, &before);
	for (n = 1; n < 256; n = 2 * n + 1) {
		fill(map, n * KiB(4), n);
		ASSERT_EQ(0, rb_resize(self->fd, buf.handle, (2 * n + 1) * KiB(4), 0, &size));
		EXPECT_EQ((2 * n + 1) * KiB(4), size.granted);
		EXPECT_EQ(0ULL, size.generation);
		EXPECT_TRUE(filled(map, n * KiB(4), n));
		EXPECT_TRUE(zeroed(map + n * KiB(4), (n + 1) * KiB(4)));
		ASSERT_EQ(0, rb_pin(self->fd, buf.handle, &again));
		EXPECT_EQ(address, again);
		ASSERT_EQ(0, rb_unpin(self->fd, buf.handle));
	}
	counters_of(_metadata, self->fd, &after);
	EXPECT_EQ(before.grows + 8, after.grows);
	EXPECT_EQ(before.grows_moved, after.grows_moved);
	ASSERT_EQ(0, rb_unpin(self->fd, buf.handle));
	munmap(map, MiB(2));
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
}

/* The pages that shrinking cuts off leave every page table before they can be allocated again. */
TEST_F(move, shrinks)
{
	struct rust_buddy_pool_info before, after;
	struct rust_buddy_buffer_info info;
	struct rust_buddy_resize size;
	struct rust_buddy_alloc buf, rest;
	unsigned char *map, *other;
	uint64_t at;
	pid_t pid;

	ASSERT_EQ(0, rb_alloc(self->fd, MiB(1), 0, "shrinks", &buf));
	map = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(map != MAP_FAILED);
	fill(map, MiB(1), 9);
	at = place_of(self->fd, buf.handle);
	counters_of(_metadata, self->fd, &before);
	ASSERT_EQ(0, rb_resize(self->fd, buf.handle, KiB(100), 0, &size));
	EXPECT_EQ(KiB(128), size.granted);
	EXPECT_EQ(0ULL, size.generation);
	EXPECT_EQ(at, place_of(self->fd, buf.handle));
	counters_of(_metadata, self->fd, &after);
	EXPECT_EQ(before.shrinks + 1, after.shrinks);
	EXPECT_EQ(before.free + KiB(1024 - 128), after.free);
	ASSERT_EQ(0, rb_buffer_info(self->fd, buf.handle, &info));
	EXPECT_EQ(KiB(100), info.size);
	EXPECT_EQ(KiB(128), info.granted);
	EXPECT_EQ(MiB(1), info.max_size);
	EXPECT_TRUE(filled(map, KiB(128), 9));
	pid = fork();
	if (!pid) {
		*(volatile unsigned char *)(map + KiB(128));
		_exit(0);
	}
	EXPECT_EQ(128 + SIGBUS, verdict(pid));

	/*
	 * Another buffer owns the pages now, and the first one does not show them when it grows
	 * again.
	 */
	ASSERT_EQ(0, alloc_with_room(self->fd, KiB(512), 0, RUST_BUDDY_ALLOC_AT,
				     at - self->base.phys_base + KiB(512), &rest));
	other = rb_map(self->fd, &rest, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(other != MAP_FAILED);
	EXPECT_TRUE(zeroed(other, KiB(512)));
	memset(other, 0xee, KiB(512));
	ASSERT_EQ(0, rb_resize(self->fd, buf.handle, MiB(1), RUST_BUDDY_RESIZE_MAY_MOVE, &size));
	EXPECT_LT(0ULL, size.generation);
	EXPECT_TRUE(filled(map, KiB(128), 9));
	EXPECT_TRUE(zeroed(map + KiB(128), KiB(1024 - 128)));
	munmap(other, KiB(512));
	ASSERT_EQ(0, rb_free(self->fd, rest.handle));
	munmap(map, MiB(1));
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
}

/*
 * A RESIZE with a request that can't be written to changes nothing. This includes a migrated buffer
 * that has more or fewer pages than ALLOC would grant for its size.
 */
TEST_F(move, unwritable_request)
{
	struct rust_buddy_alloc bufs[2] = {
		{ .size = 52020, .max_size = KiB(128), .flags = RUST_BUDDY_ALLOC_AT },
		{ .size = 52020, .max_size = KiB(128) },
	};
	static const uint64_t sizes[] = { 1, 40000, 52020, 53248, 65000, 65536, 100000, KiB(128) };
	struct rust_buddy_resize *req;
	struct rust_buddy_migrate to;
	struct rust_buddy_resize size;
	size_t i, j;

	req = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(req != MAP_FAILED);
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, rb_alloc_req(self->fd, &bufs[i]));
		EXPECT_EQ(i ? KiB(64) : KiB(52), bufs[i].granted);
		/*
		 * The first buffer was allocated at an exact place, and the second one migrates to
		 * one.
		 */
		ASSERT_EQ(0, rb_migrate(self->fd, bufs[i].handle, i ? RUST_BUDDY_ALLOC_AT : 0,
					i ? MiB(4) : 0, 0, &to));
		for (j = 0; j < 2 * ARRAY_SIZE(sizes); j++) {
			struct state was = state_of(self->fd, bufs[i].handle);

			memset(req, 0, sizeof(*req));
			req->handle = bufs[i].handle;
			req->size = sizes[j / 2];
			req->flags = j % 2 ? RUST_BUDDY_RESIZE_MAY_MOVE : 0;
			ASSERT_EQ(0, mprotect(req, 4096, PROT_READ));
			EXPECT_EQ(-EFAULT, raw_ioctl(self->fd, RUST_BUDDY_IOC_RESIZE, req));
			ASSERT_EQ(0, mprotect(req, 4096, PROT_READ | PROT_WRITE));
			EXPECT_UNCHANGED(self->fd, bufs[i].handle, &was);
		}
	}
	/* A buffer that was granted an exact size keeps that property. */
	ASSERT_EQ(0, rb_resize(self->fd, bufs[0].handle, 60000, RUST_BUDDY_RESIZE_MAY_MOVE, &size));
	EXPECT_EQ(KiB(60), size.granted);
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, rb_free(self->fd, bufs[i].handle));
	munmap(req, 4096);
}

/* A buffer with large page-table entries has them after the migration, too. */
TEST_F(move, by_large_entries)
{
	struct rust_buddy_migrate to;
	struct rust_buddy_alloc buf;
	unsigned char *map;
	unsigned int i;

	ASSERT_EQ(0, rb_alloc(self->fd, MiB(4), 0, "large", &buf));
	map = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(map != MAP_FAILED);
	for (i = 0; i < 20; i++) {
		fill(map, MiB(4), i);
		ASSERT_EQ(0, rb_migrate(self->fd, buf.handle, 0, 0, 0, &to));
		EXPECT_TRUE(filled(map, MiB(4), i));
	}
	munmap(map, MiB(4));
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
}

/* A migrated buffer keeps its memory type. */
TEST_F(move, keeps_its_memory_type)
{
	struct rust_buddy_migrate to;
	struct rust_buddy_resize size;
	struct rust_buddy_alloc buf;
	unsigned char *map;

	if (!(self->base.caps & RUST_BUDDY_CAP_WC))
		SKIP(return, "no write-combining here");
	ASSERT_EQ(0, alloc_with_room(self->fd, KiB(64), KiB(256), RUST_BUDDY_ALLOC_WC, 0, &buf));
	map = mmap(NULL, KiB(256), PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, buf.offset);
	ASSERT_TRUE(map != MAP_FAILED);
	fill(map, KiB(64), 1);
	ASSERT_EQ(0, rb_migrate(self->fd, buf.handle, 0, 0, 0, &to));
	EXPECT_TRUE(filled(map, KiB(64), 1));
	/* It can't grow in place, since the page tables would have to change while it is mapped. */
	EXPECT_REASON(buf.handle, rb_resize(self->fd, buf.handle, KiB(128), 0, &size), size.hdr,
		      -ENOSPC, RUST_BUDDY_REASON_NO_SPACE);
	EXPECT_REASON(buf.handle, rb_resize(self->fd, buf.handle, KiB(4), 0, &size), size.hdr,
		      -EOPNOTSUPP, RUST_BUDDY_REASON_MEMTYPE);
	ASSERT_EQ(0, rb_resize(self->fd, buf.handle, KiB(128), RUST_BUDDY_RESIZE_MAY_MOVE, &size));
	EXPECT_TRUE(filled(map, KiB(64), 1));
	EXPECT_TRUE(zeroed(map + KiB(64), KiB(64)));
	munmap(map, KiB(256));
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
}

/*
 * The pages of a range may be in use outside of page tables, unknown to the module: no migration.
 */
TEST(pools_that_do_not_move)
{
	struct rust_buddy_pool_info pool;
	struct rust_buddy_migrate to;
	struct rust_buddy_alloc buf;
	int fd;

	OPEN_OR_SKIP(fd, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(fd, 0, &pool));
	EXPECT_EQ(pool.source != RUST_BUDDY_SOURCE_RANGE, !!(pool.caps & RUST_BUDDY_CAP_MOVABLE));
	if (pool.caps & RUST_BUDDY_CAP_MOVABLE)
		SKIP(return, "the buffers of this pool move");
	ASSERT_EQ(0, rb_alloc(fd, KiB(64), 0, "stays", &buf));
	EXPECT_EQ(-EOPNOTSUPP, rb_migrate(fd, buf.handle, 0, 0, 0, &to));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_UNMOVABLE_BUFFER, to.hdr.reason);
	ASSERT_EQ(0, rb_free(fd, buf.handle));
	close(fd);
}

TEST_HARNESS_MAIN
