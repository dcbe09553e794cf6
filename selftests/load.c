// SPDX-License-Identifier: GPL-2.0
/*
 * Files that are opened while the module is being loaded. If an open succeeded before the last node
 * is registered, and registering that one failed, the file would outlive the module. So open fails
 * until all nodes are registered. The same holds for the files in debugfs.
 *
 * The test loads the module repeatedly, and leaves it unloaded. RB_KO is the module's path. The
 * default is the path of the build, beside this program's folder.
 */
#include <dirent.h>
#include <libgen.h>
#include <limits.h>
#include <linux/magic.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#include "rb_test.h"

#define HEAP	"/dev/dma_heap/rust_buddy_load"
#define LOADED	"size_mb=16 heap_name=rust_buddy_load"

#define STATUS	"/sys/kernel/debug/rust_buddy/pool1/status"

/* The first node that is registered, then the other ones. */
static const char * const nodes[] = { HEAP, RB_DEV_PHYS, RB_DEV };

struct opener {
	pthread_t thread;
	const char *node;
	int flags;
	int refused;
	int early;
	int err;
};

/* Files that are opened while the module is being loaded. The last one requires debugfs. */
static const struct opener early[] = {
	{ .node = HEAP, .flags = O_RDWR },
	{ .node = RB_DEV_PHYS, .flags = O_RDWR },
	{ .node = STATUS, .flags = O_RDONLY },
};

/* Opens a file as soon as it can be opened. All nodes must exist then. */
static void *open_early(void *arg)
{
	struct opener *opener = arg;
	int first;

	do {
		first = open(opener->node, opener->flags | O_CLOEXEC);
		if (first < 0 && errno == EAGAIN)
			opener->refused++;
		else if (first < 0 && errno != ENOENT && errno != ENODEV && errno != ENXIO)
			opener->err = errno;
	} while (first < 0 && !opener->err);
	/* Looks for the nodes first, since an open waits for a registration in progress. */
	for (size_t i = ARRAY_SIZE(nodes); i > 0; i--)
		opener->early += !!access(nodes[i - 1], F_OK);
	for (size_t i = 0; i < ARRAY_SIZE(nodes); i++) {
		int fd = open(nodes[i], O_RDWR | O_CLOEXEC);

		opener->early += fd < 0;
		if (fd >= 0)
			close(fd);
	}
	if (first >= 0)
		close(first);
	return NULL;
}

/*
 * Threads that keep all CPUs busy, and devtmpfs's kernel thread with the lowest priority. Each
 * registration of a node waits for that thread. So a load takes long between two registrations, and
 * an opener observes each intermediate state.
 */
#define HOGS	16

struct slow {
	pthread_t hog[HOGS];
	unsigned int hogs;
	pid_t maker;
	bool stop;
};

static void *hog(void *arg)
{
	struct slow *slow = arg;

	while (!__atomic_load_n(&slow->stop, __ATOMIC_RELAXED))
		;
	return NULL;
}

/* Returns the PID of the kernel thread of that name, or 0. */
static pid_t kernel_thread(const char *name)
{
	struct dirent *entry;
	DIR *proc = opendir("/proc");
	char path[PATH_MAX], comm[32];
	pid_t found = 0;
	FILE *file;

	while (proc && !found && (entry = readdir(proc))) {
		snprintf(path, sizeof(path), "/proc/%s/comm", entry->d_name);
		file = fopen(path, "r");
		if (!file)
			continue;
		if (fgets(comm, sizeof(comm), file) && !strncmp(comm, name, strlen(name)))
			found = atoi(entry->d_name);
		fclose(file);
	}
	if (proc)
		closedir(proc);
	return found;
}

static bool set_policy(pid_t pid, int policy)
{
	struct sched_param param = { 0 };

	return !sched_setscheduler(pid, policy, &param);
}

/* Returns whether loads are slow now. */
static bool slow_down(struct slow *slow)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	memset(slow, 0, sizeof(*slow));
	slow->maker = kernel_thread("kdevtmpfs");
	if (!slow->maker || cpus > HOGS || !set_policy(slow->maker, SCHED_IDLE))
		return false;
	while (slow->hogs < cpus && !pthread_create(&slow->hog[slow->hogs], NULL, hog, slow))
		slow->hogs++;
	return true;
}

static void end_slow_down(struct slow *slow)
{
	__atomic_store_n(&slow->stop, true, __ATOMIC_RELAXED);
	while (slow->hogs)
		pthread_join(slow->hog[--slow->hogs], NULL);
	if (slow->maker)
		set_policy(slow->maker, SCHED_OTHER);
}

FIXTURE(load)
{
	void *image;
	size_t size;
	struct slow slow;
};

FIXTURE_SETUP(load)
{
	char self_path[PATH_MAX] = "", path[PATH_MAX + 32];
	const char *ko = getenv("RB_KO");
	struct stat st;
	int fd;

	if (geteuid())
		SKIP(return, "loading takes root");
	if (!ko) {
		ASSERT_LT(0, readlink("/proc/self/exe", self_path, sizeof(self_path) - 1));
		snprintf(path, sizeof(path), "%s/../module/rust_buddy.ko", dirname(self_path));
		ko = path;
	}
	fd = open(ko, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		SKIP(return, "RB_KO names no module that can be read");
	if (!access(RB_DEV, F_OK) && syscall(SYS_delete_module, "rust_buddy", O_NONBLOCK))
		SKIP(return, "the module is in use");
	ASSERT_EQ(0, fstat(fd, &st));
	self->size = st.st_size;
	self->image = malloc(self->size);
	ASSERT_EQ((ssize_t)self->size, read(fd, self->image, self->size));
	close(fd);
}

FIXTURE_TEARDOWN(load)
{
	end_slow_down(&self->slow);
	free(self->image);
}

TEST_F_TIMEOUT(load, no_file_before_all_nodes_are_there, 300)
{
	int round, refused = 0, kinds = 2;
	time_t begin = time(NULL);
	struct statfs fs;

	if (!statfs("/sys/kernel/debug", &fs) && fs.f_type == DEBUGFS_MAGIC)
		kinds = 3;
	if (!slow_down(&self->slow))
		TH_LOG("loads are not slowed down");
	/* A load takes seconds in a kernel with debug options. */
	for (round = 0; round < 24 && time(NULL) - begin < 60; round++) {
		struct opener opener = early[round % kinds];

		ASSERT_EQ(0, pthread_create(&opener.thread, NULL, open_early, &opener));
		ASSERT_EQ(0, syscall(SYS_init_module, self->image, self->size, LOADED));
		pthread_join(opener.thread, NULL);
		EXPECT_EQ(0, opener.err);
		EXPECT_EQ(0, opener.early) TH_LOG("%s, load %d", opener.node, round);
		refused += opener.refused;
		ASSERT_EQ(0, syscall(SYS_delete_module, "rust_buddy", O_NONBLOCK));
	}
	TH_LOG("%d loads, %d opens were too early", round, refused);
}

TEST_HARNESS_MAIN
