#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# boot.sh NAME [OPTION...] [-- SCRIPT ARGS...]: boots the kernel in QEMU through virtme-ng, with the
# files of this machine or of the toolchain root, and runs SCRIPT in it as root. Without SCRIPT it
# opens a prompt.
#
#   --append WORDS   more on the kernel command line
#   --nvme FILE      an NVMe controller with FILE as its disk
#   --icount         one CPU whose clock counts instructions: every boot is the same
#   --iommu          an IOMMU between devices and memory, which translates
#   --timeout S      give up after S seconds (default 900)
#   --quiet          the guest's output goes to the log only
#   RB_MEMORY=, RB_CPU=  (environment) memory and CPU model other than 2G and QEMU's
#
# .cache/out/NAME receives log (the output of SCRIPT), console (the kernel's log), and files that
# SCRIPT writes there. The guest passes only if SCRIPT exits with 0 and a word comes back that the
# guest does not know beforehand.
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"

name=$1
shift
append=
nvme=
iommu=
icount=
limit=900
quiet=
while [ $# -gt 0 ]; do
	case $1 in
	--append) append=$2; shift 2 ;;
	--nvme) nvme=$2; shift 2 ;;
	--iommu) iommu=1; shift ;;
	--icount) icount=1; shift ;;
	--timeout) limit=$2; shift 2 ;;
	--quiet) quiet=1; shift ;;
	--) shift; break ;;
	*) die "boot.sh: unknown option $1" ;;
	esac
done

kernel=${KERNEL:-/usr/lib/modules/$(krel)/vmlinuz}
out=$RB_CACHE/out/$name
rm -rf "$out"
mkdir -p "$out"

# The guest's path of that folder, which virtme-ng requires below one of its overlays.
shared=/tmp/rust_buddy-out
# virtme-ng discards the console, which has the messages of a crashing kernel.
opts="-no-reboot ${RB_CPU:+-cpu $RB_CPU }-device edu,dma_mask=0xffffffffffffffff -set chardev.console.path=$out/console"
if [ -n "$nvme" ]; then
	# The largest transfer that QEMU allows: 2^9 pages of the size that the driver sets.
	opts+=" -drive if=none,id=rb,format=raw,file=$nvme -device nvme,serial=rb,drive=rb,mdts=9"
fi
if [ -n "$iommu" ]; then
	# Strict: a device loses access to unmapped memory at once, and not some ms later.
	opts+=" -device intel-iommu"
	append+=" intel_iommu=on iommu.strict=1"
fi
cpus=2
if [ -n "$icount" ]; then
	cpus=1
	opts+=" -icount shift=0,sleep=off -rtc base=2026-01-01,clock=vm -seed 1"
	append+=" nokaslr randomize_kstack_offset=off random.trust_cpu=off"
fi
args=(--run "$kernel" --user root --memory "${RB_MEMORY:-2G}" --cpus "$cpus" "--rwdir=$shared=$out" --qemu-opts="$opts"
	--append "panic=-1 hung_task_panic=1 softlockup_panic=1 $append")
accel=TCG
if [ -z "$icount" ] && "$here/kvm.sh" "${KERNEL:-$RB_KERNEL/usr/lib/modules/$(krel)/vmlinuz}"; then
	accel=KVM
else
	args+=(--disable-kvm)
fi

if [ -n "$iommu" ]; then
	args+=(--disable-microvm)
fi

if [ $# -eq 0 ]; then
	# At a prompt the kernel's messages are left to dmesg.
	exec "$here/enter.sh" vng "${args[@]}"
fi

args+=(--append ignore_loglevel)
word=$RANDOM$RANDOM$RANDOM
{
	printf 'echo >%q\n' "$shared/begun"
	printf 'cd %q\nexport RB_OUT=%q RB_BUILD=%q\n' "$RB_TOP" "$shared" "$RB_BUILD"
	printf '%q ' "$@"
	printf '\nrc=$?\ndmesg >%q\n' "$shared/dmesg"
	printf '[ $rc -eq 0 ] && echo "the guest is done, %s" >%q\n' "$word" "$shared/done"
	# virtme-ng powers off by ending init, which looks like a crash. complaints.awk stops at
	# this line.
	printf 'echo "rust_buddy: end of script" >/dev/kmsg\nsync\nexit $rc\n'
} >"$out/run.sh"
say "booting $(basename "$(dirname "$kernel")") under $accel, at most $limit s ..."
start=$SECONDS
run() {
	# virtme-ng before 1.41 can hang without a terminal of its own. setsid prevents that.
	timeout -k 10 "$limit" "$here/enter.sh" setsid -w vng "${args[@]}" \
		-e "bash $shared/run.sh" </dev/null 2>&1 |
		if [ -n "$quiet" ]; then cat >"$out/log"; else tee "$out/log"; fi
	rc=${PIPESTATUS[0]}
}
run
if [ ! -e "$out/begun" ] && [ "$rc" -ne 124 ] && [ "$rc" -ne 137 ]; then
	# The kernel never started the script: TCG can lose a timer of a CPU that has just started.
	say "  the guest did not come up (exit $rc): once more"
	tail -n 5 "$out/console" >&2
	run
fi
say "  the guest ran for $((SECONDS - start)) s"

bad=
if [ "$rc" -eq 124 ] || [ "$rc" -eq 137 ]; then
	bad="the guest did not finish within $limit s"
elif ! grep -q "the guest is done, $word" "$out/done" 2>/dev/null; then
	bad="the guest stopped before its script was done, or that failed (exit $rc)"
fi
# Messages of the kernel about errors.
complaints='BUG:|WARNING:|Oops|Call Trace|general protection|Kernel panic|[Bb]ad page|INFO: (task|rcu)'
complaints+='|possible (circular|recursive) lock|inconsistent lock state|sleeping function'
complaints+='|refcount_t:|list_(add|del) corruption|unable to handle|soft lockup|UBSAN:|DMA-API:.*(error|warn|leak)'
complaints+='|Trying to free nonexistent resource|bad p[gu4m]d '
if awk -f "$here/complaints.awk" "$out"/dmesg* "$out/console" | grep -E "$complaints" >"$out/complaints"; then
	bad="${bad:+$bad; }the kernel complained: $(head -n 1 "$out/complaints" | cut -c 1-120)"
fi
if [ -n "$bad" ]; then
	sed '/rust_buddy: end of script/,$d' "$out/console" | tail -n 30 >&2
	printf '%s\n' "$bad" >"$out/bad"
	die "$bad (see $out)"
fi
