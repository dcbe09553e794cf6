/* SPDX-License-Identifier: GPL-2.0 */
#ifndef SELFTESTS_RUST_BUDDY_AUDIT_H
#define SELFTESTS_RUST_BUDDY_AUDIT_H

#include <linux/types.h>

struct mm_struct;
struct vm_area_struct;

/* Called with interrupts off for an entry at @addr of @mm that maps @nr frames from @pfn on. */
typedef void (*rust_buddy_audit_fn)(void *data, struct mm_struct *mm, unsigned long addr,
				    unsigned long pfn, unsigned long nr);

unsigned long rust_buddy_audit_pfns(unsigned long first, unsigned long nr,
				    rust_buddy_audit_fn fn, void *data);
unsigned long rust_buddy_audit_range(struct mm_struct *mm, unsigned long start, unsigned long end,
				     unsigned long first, unsigned long nr,
				     rust_buddy_audit_fn fn, void *data);
long rust_buddy_audit_vmas(void (*fn)(void *data, struct vm_area_struct *vma), void *data);

#endif /* SELFTESTS_RUST_BUDDY_AUDIT_H */
