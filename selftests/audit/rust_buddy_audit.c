// SPDX-License-Identifier: GPL-2.0
/*
 * Walks the user page tables of all processes. With it, rust_buddy checks that no process can reach
 * free memory. For tests only.
 *
 * The walk takes no mmap_lock. Like GUP-fast, it reads one table at a time with interrupts off,
 * which keeps page tables from being freed. So it may run while any mmap_lock is held, the caller's
 * own included. If a range changes during the walk, each entry is reported as it was when it was
 * read.
 */
#include <linux/export.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pgtable.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>

#include "rust_buddy_audit.h"

struct audit {
	struct mm_struct *mm;
	unsigned long first;
	unsigned long end;
	rust_buddy_audit_fn fn;
	void *data;
	unsigned long seen;
};

static void audit_leaf(struct audit *a, unsigned long addr, unsigned long pfn, unsigned long nr)
{
	if (pfn >= a->end || pfn + nr <= a->first)
		return;
	a->seen++;
	if (a->fn)
		a->fn(a->data, a->mm, addr, pfn, nr);
}

static unsigned long next_boundary(unsigned long addr, unsigned long size, unsigned long end)
{
	unsigned long next = (addr & ~(size - 1)) + size;

	return next && next < end ? next : end;
}

/*
 * Reports the entries of one last-level table, or one larger entry. Returns the address behind it.
 */
static unsigned long audit_step(struct audit *a, unsigned long addr, unsigned long end)
{
	pgd_t *pgdp = pgd_offset(a->mm, addr), pgd = pgdp_get(pgdp);
	unsigned long next;
	p4d_t *p4dp, p4d;
	pud_t *pudp, pud;
	pmd_t *pmdp, pmd;
	pte_t *ptep;

	if (pgd_none(pgd) || unlikely(pgd_bad(pgd)))
		return next_boundary(addr, PGDIR_SIZE, end);
	p4dp = p4d_offset_lockless(pgdp, pgd, addr);
	p4d = p4dp_get(p4dp);
	if (!p4d_present(p4d) || unlikely(p4d_bad(p4d)))
		return next_boundary(addr, P4D_SIZE, end);
	pudp = pud_offset_lockless(p4dp, p4d, addr);
	pud = pudp_get(pudp);
	if (!pud_present(pud))
		return next_boundary(addr, PUD_SIZE, end);
	if (pud_leaf(pud)) {
		audit_leaf(a, addr & PUD_MASK, pud_pfn(pud), PUD_SIZE >> PAGE_SHIFT);
		return next_boundary(addr, PUD_SIZE, end);
	}
	pmdp = pmd_offset_lockless(pudp, pud, addr);
	pmd = pmdp_get_lockless(pmdp);
	next = next_boundary(addr, PMD_SIZE, end);
	if (!pmd_present(pmd))
		return next;
	if (pmd_leaf(pmd)) {
		audit_leaf(a, addr & PMD_MASK, pmd_pfn(pmd), PMD_SIZE >> PAGE_SHIFT);
		return next;
	}
	if (unlikely(pmd_bad(pmd)))
		return next;
	for (ptep = pte_offset_kernel(&pmd, addr); addr < next; ptep++, addr += PAGE_SIZE) {
		pte_t pte = ptep_get_lockless(ptep);

		if (pte_present(pte))
			audit_leaf(a, addr, pte_pfn(pte), 1);
	}
	return next;
}

static void audit_walk(struct audit *a, unsigned long addr, unsigned long end)
{
	unsigned long flags;

	while (addr < end) {
		local_irq_save(flags);
		addr = audit_step(a, addr, end);
		local_irq_restore(flags);
	}
}

/*
 * Returns the mm of the next user process from pid *nr on, and sets *nr to the pid behind it. With
 * @users the reference is one of mmget(), and keeps the address space until mmput(). Otherwise it
 * is one of mmgrab(), and keeps only the root of the page tables until mmdrop().
 */
static struct mm_struct *audit_next(int *nr, bool users)
{
	struct mm_struct *mm = NULL;
	struct task_struct *task, *thread;
	struct pid *pid;

	rcu_read_lock();
	while (!mm) {
		pid = find_ge_pid(*nr, &init_pid_ns);
		if (!pid)
			break;
		*nr = pid_nr(pid) + 1;
		task = pid_task(pid, PIDTYPE_TGID);
		if (!task || task->flags & PF_KTHREAD)
			continue;
		/* The first thread may have exited while more threads run. */
		for_each_thread(task, thread) {
			task_lock(thread);
			mm = thread->mm;
			if (mm && (!users || mmget_not_zero(mm))) {
				if (!users)
					mmgrab(mm);
				task_unlock(thread);
				break;
			}
			mm = NULL;
			task_unlock(thread);
		}
	}
	rcu_read_unlock();
	return mm;
}

/**
 * rust_buddy_audit_pfns() - Finds page frames in the page tables of all processes.
 * @first: First page frame.
 * @nr: Number of page frames.
 * @fn: Called with interrupts off for each entry that maps any of the frames, or NULL.
 * @data: First argument of @fn.
 *
 * Context: Process context. The caller may hold any sleeping lock.
 * Return: The number of entries that map any of the frames.
 */
unsigned long rust_buddy_audit_pfns(unsigned long first, unsigned long nr,
				    rust_buddy_audit_fn fn, void *data)
{
	struct audit a = { .first = first, .end = first + nr, .fn = fn, .data = data };
	int pid = 1;

	while ((a.mm = audit_next(&pid, false))) {
		audit_walk(&a, 0, TASK_SIZE_MAX);
		mmdrop(a.mm);
	}
	return a.seen;
}
EXPORT_SYMBOL_GPL(rust_buddy_audit_pfns);

/**
 * rust_buddy_audit_range() - Finds page frames in an address range of one process.
 * @mm: Address space, on which the caller holds a reference.
 * @start: First address.
 * @end: Address behind the range.
 * @first: First page frame.
 * @nr: Number of page frames.
 * @fn: As for rust_buddy_audit_pfns().
 * @data: First argument of @fn.
 *
 * Return: The number of entries that map any of the frames.
 */
unsigned long rust_buddy_audit_range(struct mm_struct *mm, unsigned long start, unsigned long end,
				     unsigned long first, unsigned long nr,
				     rust_buddy_audit_fn fn, void *data)
{
	struct audit a = { .mm = mm, .first = first, .end = first + nr, .fn = fn, .data = data };

	audit_walk(&a, start, end);
	return a.seen;
}
EXPORT_SYMBOL_GPL(rust_buddy_audit_range);

/**
 * rust_buddy_audit_vmas() - Calls a function for each VMA of each process.
 * @fn: Called with the mmap_lock held for reading.
 * @data: First argument of @fn.
 *
 * Context: Process context. The caller holds no mmap_lock, and no lock that is taken inside one.
 * Return: 0, or -EINTR if a fatal signal ended the walk.
 */
long rust_buddy_audit_vmas(void (*fn)(void *data, struct vm_area_struct *vma), void *data)
{
	struct vm_area_struct *vma;
	struct mm_struct *mm;
	int pid = 1;

	while ((mm = audit_next(&pid, true))) {
		VMA_ITERATOR(vmi, mm, 0);

		if (mmap_read_lock_killable(mm)) {
			mmput(mm);
			return -EINTR;
		}
		for_each_vma(vmi, vma)
			fn(data, vma);
		mmap_read_unlock(mm);
		mmput(mm);
		cond_resched();
	}
	return 0;
}
EXPORT_SYMBOL_GPL(rust_buddy_audit_vmas);

MODULE_AUTHOR("The rust_buddy maintainers");
MODULE_DESCRIPTION("Finds page frames in the page tables of all processes, for tests");
MODULE_LICENSE("GPL");
