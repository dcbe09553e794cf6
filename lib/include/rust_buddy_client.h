/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Caches of small objects in rust_buddy's buffers. A descriptor costs no system call, except when
 * the cache needs another buffer.
 *
 * Link with librust_buddy_client.a (cargo build --release in lib/) and its dependencies: -lpthread
 * -ldl. The state of a cache lies outside of the objects' memory. A cache has no lock, so threads
 * that share one have to serialize its use.
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
 * @align:    a power of two; objects start at multiples of it
 * @boundary: a power of two; no object crosses a multiple of it; 0 for none
 * @slab:     a power of two, at least a page; 0 for 64 KiB
 * @pinned:   not 0 if objects need addresses: on /dev/rust_buddy_phys only
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
 * @memory:  the object's address in this process
 * @offset:  of its slab, for mmap() by the same client
 * @within:  the object's position in the slab, in bytes
 * @address: for a device; all ones without @pinned
 * @slab:    private to the library
 * @index:   private to the library
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
 * @objects: number of allocated objects
 * @slabs:   number of slabs, each of which is a buffer of the module
 * @bytes:   of all slabs
 */
struct rb_cache_stats {
	uint64_t objects;
	uint64_t slabs;
	uint64_t bytes;
};

/*
 * Creates a cache for the client of @fd, which it duplicates. Returns NULL and sets errno on an
 * error.
 */
struct rb_cache *rb_cache_create(int fd, const struct rb_cache_config *config);

/*
 * Allocates an object, which still has the content of its last use. Returns 0 or a negative errno.
 */
int rb_cache_alloc(struct rb_cache *cache, struct rb_object *object);

/*
 * Frees an object. Returns 0, or -EINVAL if it is not allocated. The pool gets back empty slabs but
 * one.
 */
int rb_cache_free(struct rb_cache *cache, const struct rb_object *object);

void rb_cache_get_stats(const struct rb_cache *cache, struct rb_cache_stats *counts);

/* Frees the cache with all of its objects. Does nothing for NULL. */
void rb_cache_destroy(struct rb_cache *cache);

#ifdef __cplusplus
}
#endif

#endif /* RUST_BUDDY_CLIENT_H */
