#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Loading and unloading: parameters, sources, messages of refusals, and that all memory is free
# again. Requires a kernel booted with cma=256M memmap=64M$0x40000000.
. qemu/guest/lib.sh
. selftests/ktap.sh
. selftests/refused.sh

meminfo() { sed -n "s/^$1: *\([0-9]*\).*/\1/p" /proc/meminfo; }

# Runs a check that requires a CMA area or a reserved range, or skips it where there is none.
with_cma() {
	if [ "$(meminfo CmaTotal)" -gt 0 ] 2>/dev/null; then
		check "$@"
	else
		skip "$1" "the kernel has no CMA area: CONFIG_CMA=y and cma=256M"
	fi
}
with_debugfs() {
	if mountpoint -q /sys/kernel/debug; then
		check "$@"
	else
		skip "$1" "the kernel has no debugfs: CONFIG_DEBUG_FS=y"
	fi
}

# Checks that the log names source, node, range, time, and the capabilities of the buffers.
said() {
	local words=$1
	shift
	echo "said: $*" >/dev/kmsg
	load "$@" || return 1
	local rest
	rest=$(dmesg | tac | sed '/said: /q')
	rmmod rust_buddy || return 1
	grep -qE "rust_buddy: .*$words" <<<"$rest" || {
		sed 's/^/# /' <<<"$rest"
		return 1
	}
}

# Loads and unloads fifty times, and compares the free memory before and after. That value also
# varies without the module, since the kernel lends CMA pages to caches. 8 MiB is an eighth of one
# pool, and 160 KiB for each load.
loads=${RB_LOADS:-50}
again_and_again() {
	local field=$1 slack=$2 before after i
	shift 2
	# Loads once first, so that memory that the kernel caches on the first load does not count.
	load "$@" && rmmod rust_buddy || return 1
	sync
	echo 3 >/proc/sys/vm/drop_caches
	before=$(meminfo "$field")
	for i in $(seq "$loads"); do
		load "$@" || { echo "# load $i failed"; return 1; }
		rmmod rust_buddy || { echo "# unload $i failed"; return 1; }
	done
	sync
	echo 3 >/proc/sys/vm/drop_caches
	after=$(meminfo "$field")
	echo "# $field: $before kB before, $after kB after"
	[ $((before - after)) -le "$slack" ]
}

# Checks that free memory is less by the pool's size while the module is loaded.
takes() {
	local field=$1 before after
	shift
	before=$(meminfo "$field")
	load "$@" || return 1
	after=$(meminfo "$field")
	rmmod rust_buddy || return 1
	echo "# $field: $((before - after)) kB less for 64 MiB"
	[ $((before - after)) -ge 60000 ] && [ $((before - after)) -le 72000 ]
}

held_open() {
	load || return 1
	exec 5<>/dev/rust_buddy
	if rmmod rust_buddy 2>/dev/null; then
		echo "# it was unloaded under an open file"
		return 1
	fi
	exec 5>&-
	rmmod rust_buddy
}

second_user() {
	load source=range phys_start=0x40000000 || return 1
	local ok=1
	grep -q '40000000-43ffffff : rust_buddy' /proc/iomem && ok=0
	rmmod rust_buddy || return 1
	grep -q rust_buddy /proc/iomem && return 1
	return $ok
}

shows_source() {
	load source=cma || return 1
	local word
	word=$(cat /sys/module/rust_buddy/parameters/source)
	rmmod rust_buddy
	[ "$word" = cma ]
}

# Checks a range's memory type in the kernel's mapping and its record, in the log and in sysfs.
has_memtype() {
	local mode=$1 type=$2
	load source=range phys_start=0x40000000 "memtype=$mode" || return 1
	local shown list run
	shown=$(cat /sys/module/rust_buddy/parameters/memtype)
	list=$(grep -i 'mem 0x0*40000000-0x0*44000000' /sys/kernel/debug/x86/pat_memtype_list)
	run=$(cut -d' ' -f1-3 "$debug/pool1/memtype")
	rmmod rust_buddy || return 1
	echo "# $mode: $list; '$run'"
	[ "$shown" = "$mode" ] && [ "${list##* }" = "$type" ] || return 1
	if [ "$mode" = wb ]; then
		[ -z "$run" ]
	else
		[ "$run" = "0 67108864 $mode" ]
	fi
}
has_memtypes() {
	has_memtype wb write-back && has_memtype wc write-combining &&
		has_memtype uc uncached-minus && has_memtype wb write-back &&
		! grep -qi 'mem 0x0*40000000-' /sys/kernel/debug/x86/pat_memtype_list
}
with_pat() {
	if [ -e /sys/kernel/debug/x86/pat_memtype_list ]; then
		check "$@"
	else
		skip "$1" "the kernel has no PAT, or does not show it: CONFIG_X86_PAT=y, CONFIG_DEBUG_FS=y"
	fi
}

describes_itself() {
	local p
	for p in size_mb source memtype phys_start assume_memory node max_buffers quarantine_ms \
		watermark_min watermark_low watermark_high compact_threshold heap_name quota_client_bytes \
		quota_client_handles quota_uid_bytes quota_uid_handles zero_cpu_percent; do
		modinfo -F parm "$RB_KO" | grep -q "^$p:" || { echo "# no $p"; return 1; }
	done
}

nodes_are_roots() {
	load || return 1
	local modes
	modes=$(stat -c '%a %U %t' /dev/rust_buddy /dev/rust_buddy_phys | sort -u)
	rmmod rust_buddy
	echo "# $modes"
	[ "$modes" = "600 root a" ]
}

# Tests the rule in dist with a group that every system has, by asking udev for each node's mode.
rules=/run/udev/rules.d/60-rust_buddy.rules
# A mutant of the rule lies beside the mutated module.
dist=$RB_BUILD/dist
[ -d "$dist" ] || dist=dist
udev_says() {
	local said
	said=$(SYSTEMD_LOG_LEVEL=debug udevadm test --action=add "/sys/class/misc/$1" 2>&1)
	if grep -q '0660' <<<"$said"; then echo 660; else echo none; fi
}
udev_rule() {
	local opened="" name
	load heap_name=cam.0 || return 1
	mkdir -p "${rules%/*}"
	sed 's/GROUP="rust_buddy"/GROUP="daemon"/' "$dist/60-rust_buddy.rules" >"$rules"
	for name in rust_buddy rust_buddy_heap rust_buddy_phys; do
		opened+="$name:$(udev_says "$name") "
	done
	[ "$(stat -c %t:%T /dev/dma_heap/cam.0)" = \
		"$(awk -F: '{ printf "%x:%x", $1, $2 }' /sys/class/misc/rust_buddy_heap/dev)" ] ||
		opened+="another device"
	rm "$rules"
	rmmod rust_buddy
	echo "# $opened"
	[ "$opened" = "rust_buddy:660 rust_buddy_heap:660 rust_buddy_phys:none " ]
}

with_udev() {
	if command -v udevadm >/dev/null; then
		check "$@"
	else
		skip "$1" "there is no udevadm"
	fi
}

size_is_kept() {
	load size_mb=3 || return 1
	local size
	size=$(sed -n 's/^size: //p' "$debug/pool1/status")
	rmmod rust_buddy
	[ "$size" = $((3 << 20)) ]
}

readme_example() {
	load quarantine_ms=0 || return 1
	local said
	said=$("$RB_BUILD/selftests/example")
	rmmod rust_buddy
	echo "# $said"
	grep -qE '^tell the device 0x[0-9a-f]+000, 65536 bytes$' <<<"$said"
}

# within TENTHS COMMAND...: repeats COMMAND until it succeeds, for at most TENTHS tenths of a
# second.
within() {
	local tenths=$1
	shift
	until "$@"; do
		[ $((tenths--)) -gt 0 ] || return 1
		sleep 0.1
	done
}

# The example exits without UNPIN. The period is longer than that takes on any machine.
waits_out_the_quarantine() {
	load quarantine_ms=6000 || return 1
	"$RB_BUILD/selftests/example" >/dev/null
	if rmmod rust_buddy 2>/dev/null; then
		echo "# it was unloaded although a device may still write"
		return 1
	fi
	within 200 rmmod rust_buddy 2>/dev/null
}

docs_examples() {
	local program failed=0
	load quarantine_ms=0 || return 1
	for program in "$RB_BUILD"/selftests/example-*; do
		[ -x "$program" ] || continue
		"$program" | sed 's/^/# /'
		# The kernel may drop its references to pages that O_DIRECT has read into some time
		# later.
		if [ "${PIPESTATUS[0]}" -ne 0 ] || ! within 50 grep -qx 'buffers: 0' "$debug/pool1/status"; then
			echo "# $program failed, or left a buffer"
			failed=1
		fi
	done
	rmmod rust_buddy && [ "$failed" -eq 0 ]
}

# The range equals a whole entry of another user. A refused claim must not release that entry.
whole_entry() {
	local first last start size
	while IFS='- :' read -r first last _; do
		start=$((16#$first))
		size=$((16#$last + 1 - start))
		[ $((start % 4096 + size % (1 << 20))) -eq 0 ] || continue
		refused_as EBUSY 'in use, see /proc/iomem' \
			source=range "phys_start=$start" "size_mb=$((size >> 20))"
		return
	done < <(grep -E '^[0-9a-f]+-[0-9a-f]+ : System RAM' /proc/iomem)
	echo "# no entry of RAM has a size in MiB"
	refused_as EBUSY 'in use, see /proc/iomem' source=range phys_start=0x10000000 size_mb=1
}

# An address at which /proc/iomem has a hole.
nothing_there() {
	local mode
	for mode in wb uc; do
		refused_as ENXIO 'no memory that the kernel knows of' \
			source=range "phys_start=$1" "memtype=$mode" || return 1
	done
	# An address range that devices may use.
	refused_as ENXIO '(no memory that the kernel knows of|belongs to a device)' \
		source=range phys_start=0x300000000
}

# Prints 5/8 of the largest piece of RAM beside the kernel and the CMA area, in MiB. The kernel
# allocates the CMA area last. A pool of this size fits, wherever it begins. The guest's memory has
# no multiple of this size, or few.
most_of_a_stretch() {
	awk -F '[- :]+' -v "cma=$(meminfo CmaTotal)" '
		function hex(text,  i, value) {
			for (i = 1; i <= length(text); i++)
				value = value * 16 + index("0123456789abcdef", substr(text, i, 1)) - 1
			return value
		}
		function piece(from, to) {
			if (from < 16 * 1048576)
				from = 16 * 1048576
			if (to - from > most)
				most = to - from
		}
		/^[0-9a-f].*System RAM/ { if (end) piece(start, end); start = hex($1); end = hex($2) }
		/^ .*Kernel code/ { piece(start, hex($2)) }
		/^ .*Kernel bss/ { start = hex($3) }
		END { piece(start, end - cma * 1024); printf "%d\n", most / 1048576 * 5 / 8 }' /proc/iomem
}
finds_a_stretch() {
	local size
	size=$(most_of_a_stretch)
	echo 3 >/proc/sys/vm/drop_caches
	load source=contig "size_mb=$size" || { echo "# no $size MiB"; return 1; }
	dmesg | grep -E 'rust_buddy: (about|[0-9]+ MiB)' | tail -n 2 | sed 's/^/# /'
	rmmod rust_buddy
}
# An aligned place is chosen if it is as empty as another place, so the largest block is the pool.
is_aligned() {
	load source=contig size_mb=64 || return 1
	local largest
	largest=$(sed -n 's/^largest_free: //p' "$debug/pool1/status")
	rmmod rust_buddy
	echo "# the largest block has $largest bytes"
	[ "$largest" = $((64 << 20)) ]
}

# Memory that is claimed for a device: the registers for the configuration of PCI devices.
device=$(sed -n 's/^ *\([0-9a-f]*\)-[0-9a-f]* : PCI ECAM.*/\1/p' /proc/iomem | head -n 1)
with_device() {
	if [ -n "$device" ]; then
		check "$@"
	else
		skip "$1" "no registers of PCI are in memory"
	fi
}

# A range that the firmware reserves, without a claim. No kernel command line names it.
reserved=$(awk -F'[- ]' '/^[0-9a-f]+-[0-9a-f]+ : .*[Rr]eserved/ && length($1) > 8 { print $1; exit }' /proc/iomem)
with_reserved() {
	if [ -n "$reserved" ]; then
		check "$@"
	else
		skip "$1" "the firmware reserves nothing above 4 GiB"
	fi
}
firmwares_own() {
	refused_as ENXIO 'is reserved by the firmware' \
		source=range "phys_start=0x$reserved" size_mb=1 &&
		refused_as ENXIO 'does not keep what is written' \
			source=range "phys_start=0x$reserved" size_mb=1 assume_memory=1
}

# The registers of the firmware's chip: in the table without a claim, and not memory.
registers() {
	refused_as ENXIO '(is reserved by the firmware|no memory that the kernel knows of|belongs to)' \
		source=range phys_start=0xffc00000 size_mb=1 memtype=uc
}

# A word that was written through /dev/mem is unchanged after a load. The test of the memory
# restores it, and ALLOC does the zeroing.
keeps_contents() {
	load source=range phys_start=0x40000000 zero_cpu_percent=0 || return 1
	rmmod rust_buddy
	printf 'kept' | dd of=/dev/mem bs=4 seek=$((0x40000000 / 4)) conv=notrunc status=none 2>/dev/null || {
		echo "# SKIP /dev/mem is closed"
		return 0
	}
	load source=range phys_start=0x40000000 zero_cpu_percent=0 || return 1
	rmmod rust_buddy
	[ "$(dd if=/dev/mem bs=4 skip=$((0x40000000 / 4)) count=1 status=none | tr -d '\0')" = kept ]
}

plan module 52
check "refuses a size of 0" refused 'size_mb=0 must be 1 to 4194304' size_mb=0
check "refuses a size beyond the allocator" refused 'must be 1 to 4194304' size_mb=4194305
check "refuses an unknown source" refused 'source= must be auto, contig, cma or range' source=disk
check "refuses an unknown memory type" refused 'memtype= must be wb, wc or uc' \
	source=range phys_start=0x40000000 memtype=wt
check "refuses a memory type for contig" refused 'memtype= goes with source=range only' \
	source=contig memtype=wc
check "refuses a memory type for auto, wb too" refused 'memtype= goes with source=range only' \
	memtype=wb
with_pat "gives a range the memory type asked for" has_memtypes
check "refuses a client without buffers" refused 'max_buffers=0 would let nobody' max_buffers=0
check "refuses a quarantine below -1" refused 'quarantine_ms=-2 must be -1 to 86400000' quarantine_ms=-2
check "refuses a quarantine of more than a day" refused 'must be -1 to 86400000' \
	quarantine_ms=86400001
check "refuses a heap name that is none" \
	refused 'heap_name= must be at most 63 letters' heap_name=a/b
check "refuses phys_start without source=range" \
	refused 'phys_start= goes with source=range' phys_start=0x40000000
check "refuses a range without phys_start" refused 'needs phys_start=.*memmap=64M' source=range
check "refuses an unaligned range" refused 'on a page boundary' source=range phys_start=0x40000800
check "refuses a range in RAM, each time" refused_as EBUSY \
	'in use, see /proc/iomem: boot with memmap=64M' source=range phys_start=0x10000000
check "refuses all of an entry of RAM, each time" whole_entry
with_device "refuses a range in use by a device, without advice" refused_as EBUSY \
	'in use, see /proc/iomem: take another phys_start=' \
	source=range "phys_start=0x$device" size_mb=1
check "refuses a range without memory, in any mode" nothing_there 0x1000000000
check "refuses a range that only begins in memory" refused_as EBUSY \
	'in use, see /proc/iomem: take another' source=range phys_start=0x40000000 size_mb=128
with_reserved "refuses a range that the firmware reserves" firmwares_own
check "refuses registers, also against the administrator's word" registers
check "believes the administrator only where memory answers" \
	refused_as ENXIO 'does not keep what is written at 0x1000000000' \
	source=range phys_start=0x1000000000 assume_memory=1
check "refuses the administrator's word for other sources" \
	refused 'assume_memory= goes with source=range' source=contig assume_memory=1
check "refuses an address beyond the CPU's" refused_as ENXIO 'beyond what the CPU can address' \
	source=range phys_start=0x100000000000000
check "leaves the content of a range as it is" keeps_contents
check "refuses a range that wraps" refused 'needs phys_start=' \
	source=range phys_start=0xffffffffff000000
check "refuses watermarks that fall" \
	refused 'watermark_min=0 watermark_low=30 watermark_high=20 must not fall' watermark_low=30
check "refuses watermarks for all of the pool" \
	refused 'watermark_high=91 must not fall, nor be above 90' watermark_high=91
check "refuses to compact above more than all" refused 'compact_threshold=101 must be 0 to 100' \
	compact_threshold=101
check "refuses a node that is not there" refused 'node=9 has no memory' node=9
check "refuses a node below -1" refused 'node=-7 has no memory' node=-7
check "refuses a range on a node" refused 'load without node=' \
	source=range phys_start=0x40000000 node=0
check "refuses more than there is" refused 'boot with cma=6000M .*or take a smaller size_mb=' \
	size_mb=3000 source=contig
with_cma "refuses more than the CMA area" refused 'boot with cma=1000M .*or take a smaller size_mb=' \
	size_mb=500 source=cma
check "logs its memory from contig" said '64 MiB from contig on node 0, \[0x[0-9a-f]+-0x[0-9a-f]+\], taken in [0-9]+ us' source=contig
with_cma "logs its memory from cma" said '64 MiB from cma on node 0, ' source=cma
check "logs its memory from a range" said '64 MiB from range on node -1, \[0x40000000-0x43ffffff\]' \
	source=range phys_start=0x40000000
with_cma "says that CMA pages can't be pinned" said 'CMA pages refuse long-term pins' source=cma
check "takes contig memory once, at load" takes MemFree source=contig
check "finds a stretch of contig memory wherever it begins" finds_a_stretch
check "takes an aligned place for a pool if one is as empty" is_aligned
with_cma "takes CMA memory once, at load" takes CmaFree source=cma
check "claims a range while it has it" second_user
check "gives contig memory back, $loads times" again_and_again MemFree 8192 source=contig
with_cma "gives CMA memory back, $loads times" again_and_again CmaFree 4096 source=cma
check "is not unloaded while a file is open" held_open
with_debugfs "shows and describes its parameters" eval "shows_source && describes_itself && size_is_kept"
check "makes nodes that are root's" nodes_are_roots
with_udev "gives the group the heap too, whatever its name" udev_rule
check "is not unloaded while a pinned buffer waits" waits_out_the_quarantine
check "runs the README's example" readme_example
with_debugfs "runs the examples in docs" docs_examples
finish
