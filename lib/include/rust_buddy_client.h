/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Caches of small objects in rust_buddy's buffers: a descriptor costs no system
 * call, but for the one in so many that needs a buffer more.
 *
 * Link with librust_buddy_client.a (cargo build --release in lib/) and what that
 * needs: -lpthread -ldl. What a cache knows of its objects is never in their
 * memory. It has no lock: who shares one brings it.
 */
#ifndef RUST_BUDDY_CLIENT_H
#define RUST_BUDDY_CLIENT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct rb_cache;

/*
 * All sizes are bytes.
 * @size:     of an object, at least 1
 * @align:    a power of two that objects lie on multiples of
 * @boundary: a power of two that no object crosses a multiple of; 0 for none
 * @slab:     a power of two, at least a page; 0 for 64 KiB
 * @pinned:   not 0 if objects are to have addresses: on /dev/rust_buddy_phys
 * @name:     of its buffers, or NULL
 */
struct rb_cache_config {
	uint32_t size;
	uint32_t align;
	uint32_t boundary;
	uint32_t slab;
	uint32_t pinned;
	const char *name;
};

/*
 * @memory:  where this process sees it
 * @offset:  of its slab, for mmap() by the same client
 * @within:  bytes from there on
 * @address: what a device is told, all ones without @pinned
 * @slab:    the library's
 * @index:   the library's
 */
struct rb_object {
	void *memory;
	uint64_t offset;
	uint64_t within;
	uint64_t address;
	uint32_t slab;
	uint32_t index;
};

/*
 * @objects: that somebody has
 * @slabs:   each is a buffer of the module's
 * @bytes:   of all slabs
 */
struct rb_cache_stats {
	uint64_t objects;
	uint64_t slabs;
	uint64_t bytes;
};

/* A cache for the client of @fd, which it has a copy of; NULL, and errno says why. */
struct rb_cache *rb_cache_create(int fd, const struct rb_cache_config *config);

/* An object, with what its last user left in it: 0, or a negative errno if there is none. */
int rb_cache_alloc(struct rb_cache *cache, struct rb_object *object);

/* Takes one back: 0, or -EINVAL if nobody has it. Empty slabs but one go back to the pool. */
int rb_cache_free(struct rb_cache *cache, const struct rb_object *object);

void rb_cache_get_stats(const struct rb_cache *cache, struct rb_cache_stats *counts);

/* All of it goes, with the objects that somebody still has. NULL is none. */
void rb_cache_destroy(struct rb_cache *cache);

#ifdef __cplusplus
}
#endif

#endif /* RUST_BUDDY_CLIENT_H */
