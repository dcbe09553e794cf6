// SPDX-License-Identifier: GPL-2.0

//! Module parameters beyond what `module!` can declare, and the check of all of them.

use crate::memtype::MemType;
use crate::mm;
use crate::pool;
use crate::quarantine::QuarantinePeriod;
use crate::quota;
use crate::region::{
    RegionSpec,
    Source,
    Trust, //
};
use kernel::{
    bindings,
    module_param::KernelParam,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// The largest pool in MiB: 2^30 units are what the allocator manages.
const MAX_SIZE_MB: u64 = (1 << 30) / (1 << 20) * mm::PAGE_SIZE;

/// The values that `source=` takes, each at the place of its number.
const SOURCES: [(&CStr, Source); 4] = [
    (c"auto", Source::Auto),
    (c"contig", Source::Contig),
    (c"cma", Source::Cma),
    (c"range", Source::Range),
];

/// The values that `memtype=` takes; the first is the default.
const MEMTYPES: [(&CStr, Option<MemType>); 4] = [
    (c"", None),
    (c"wb", Some(MemType::WriteBack)),
    (c"wc", Some(MemType::WriteCombining)),
    (c"uc", Some(MemType::Uncached)),
];

/// A parameter that takes one of some words.
trait Words {
    /// What goes with a word.
    type Value: Copy + 'static;

    /// The words; the first is the default.
    const ALL: &'static [(&'static CStr, Self::Value)];

    /// What the log says to other words.
    const RULE: &'static str;

    /// Which one is chosen. Atomic, since sysfs may read while it is set.
    fn index() -> &'static Atomic<u32>;

    /// The word that is chosen, and what goes with it.
    fn chosen() -> (&'static CStr, Self::Value) {
        *Self::ALL
            .get(Self::index().load(Relaxed) as usize)
            .unwrap_or(&Self::ALL[0])
    }

    /// Sets it, at load.
    ///
    /// # Safety
    ///
    /// `value` must be null or a string that lives through this call.
    unsafe extern "C" fn set(value: *const c_char, _param: *const bindings::kernel_param) -> c_int {
        if value.is_null() {
            return EINVAL.to_errno();
        }
        // SAFETY: Not null, and so a string by this function's requirements.
        let value = unsafe { CStr::from_char_ptr(value) };
        match (0..).zip(Self::ALL).find(|(_, (name, _))| *name == value) {
            Some((index, _)) => {
                Self::index().store(index, Relaxed);
                0
            }
            None => {
                pr_err!("{}\n", Self::RULE);
                EINVAL.to_errno()
            }
        }
    }

    /// Shows it in sysfs.
    ///
    /// # Safety
    ///
    /// `buffer` must have room for a page.
    unsafe extern "C" fn get(buffer: *mut c_char, _param: *const bindings::kernel_param) -> c_int {
        let word = Self::chosen().0.as_char_ptr();
        // SAFETY: There is room for a page, of which this writes a word.
        unsafe { bindings::sprintf(buffer, c"%s\n".as_char_ptr(), word) }
    }
}

/// A parameter of `$words`.
macro_rules! words_parameter {
    ($words:ident, $value:ty, $all:expr, $param:ident, $name:literal, $rule:literal) => {
        struct $words;

        impl Words for $words {
            type Value = $value;

            const ALL: &'static [(&'static CStr, Self::Value)] = &$all;
            const RULE: &'static str = $rule;

            fn index() -> &'static Atomic<u32> {
                static INDEX: Atomic<u32> = Atomic::new(0);
                &INDEX
            }
        }

        #[link_section = "__param"]
        #[used]
        static $param: KernelParam = KernelParam::new(bindings::kernel_param {
            name: kernel::str::as_char_ptr_in_const_context($name),
            mod_: &raw mut bindings::__this_module,
            ops: {
                static OPS: ParamOps = ParamOps(bindings::kernel_param_ops {
                    flags: 0,
                    set: Some(<$words as Words>::set),
                    get: Some(<$words as Words>::get),
                    free: None,
                });
                &raw const OPS.0
            },
            perm: 0o444,
            level: -1,
            flags: 0,
            __bindgen_anon_1: bindings::kernel_param__bindgen_ty_1 {
                arg: core::ptr::null_mut(),
            },
        });
    };
}

#[repr(transparent)]
struct ParamOps(bindings::kernel_param_ops);

// SAFETY: Function pointers, never written.
unsafe impl Sync for ParamOps {}

words_parameter!(
    SourceWords,
    Source,
    SOURCES,
    SOURCE_PARAM,
    c"source",
    "source= must be auto, contig, cma or range"
);
words_parameter!(
    MemTypeWords,
    Option<MemType>,
    MEMTYPES,
    MEMTYPE_PARAM,
    c"memtype",
    "memtype= must be wb, wc or uc"
);

/// A string that the kernel keeps: null, or what was given at load, never changed afterwards.
#[repr(transparent)]
struct Text(core::cell::UnsafeCell<*const c_char>);

// SAFETY: Written by the kernel before the module's first function runs, and never again.
unsafe impl Sync for Text {}

static HEAP_NAME: Text = Text(core::cell::UnsafeCell::new(
    kernel::str::as_char_ptr_in_const_context(c"rust_buddy"),
));

#[link_section = "__param"]
#[used]
static HEAP_NAME_PARAM: KernelParam = KernelParam::new(bindings::kernel_param {
    name: kernel::str::as_char_ptr_in_const_context(c"heap_name"),
    mod_: &raw mut bindings::__this_module,
    ops: &raw const bindings::param_ops_charp,
    perm: 0o444,
    level: -1,
    flags: 0,
    __bindgen_anon_1: bindings::kernel_param__bindgen_ty_1 {
        arg: HEAP_NAME.0.get().cast(),
    },
});

/// The name of the dma-heap, if there is to be one.
///
/// # Errors
///
/// `EINVAL`, with the reason and the remedy in the log.
pub(crate) fn heap_name() -> Result<Option<&'static CStr>> {
    // SAFETY: By `Text`'s promise; the string lives as long as the module.
    let name = unsafe { CStr::from_char_ptr(*HEAP_NAME.0.get()) };
    let plain = |&byte: &u8| byte.is_ascii_alphanumeric() || b"_-,.".contains(&byte);
    match name.to_bytes() {
        [] => Ok(None),
        [first, ..] if *first == b'.' => Err(()),
        bytes if bytes.len() > 63 || !bytes.iter().all(plain) => Err(()),
        _ => Ok(Some(name)),
    }
    .map_err(|()| {
        pr_err!(
            "heap_name= must be at most 63 letters, digits and _-,. not beginning with a dot, or \
             empty for none\n"
        );
        EINVAL
    })
}

/// A number that root may change at any time: the kernel writes the number where `$number` is.
macro_rules! writable_parameter {
    ($name:ident, $text:literal, $number:expr) => {
        #[link_section = "__param"]
        #[used]
        static $name: KernelParam = KernelParam::new(bindings::kernel_param {
            name: kernel::str::as_char_ptr_in_const_context($text),
            mod_: &raw mut bindings::__this_module,
            ops: &raw const bindings::param_ops_ullong,
            perm: 0o644,
            level: -1,
            flags: 0,
            __bindgen_anon_1: bindings::kernel_param__bindgen_ty_1 {
                arg: (&raw const $number).cast_mut().cast(),
            },
        });
    };
}

writable_parameter!(CLIENT_BYTES, c"quota_client_bytes", quota::CLIENT.bytes);
writable_parameter!(
    CLIENT_HANDLES,
    c"quota_client_handles",
    quota::CLIENT.handles
);
writable_parameter!(USER_BYTES, c"quota_uid_bytes", quota::USER.bytes);
writable_parameter!(USER_HANDLES, c"quota_uid_handles", quota::USER.handles);
writable_parameter!(
    ZERO_CPU_PERCENT,
    c"zero_cpu_percent",
    pool::ZERO_CPU_PERCENT
);

/// A line for modinfo(8).
macro_rules! modinfo {
    ($name:ident, $text:literal) => {
        #[link_section = ".modinfo"]
        #[used]
        static $name: [u8; $text.len()] = {
            let mut bytes = [0; $text.len()];
            let mut i = 0;
            while i < bytes.len() {
                bytes[i] = $text.as_bytes()[i];
                i += 1;
            }
            bytes
        };
    };
}

modinfo!(SOURCE_TYPE, "parmtype=source:charp\0");
modinfo!(
    SOURCE_TEXT,
    "parm=source:Where the pool comes from: auto (default), contig, cma or range\0"
);
modinfo!(HEAP_NAME_TYPE, "parmtype=heap_name:charp\0");
modinfo!(
    HEAP_NAME_TEXT,
    "parm=heap_name:Name of the dma-heap, in /dev/dma_heap (default rust_buddy; empty: none)\0"
);
modinfo!(MEMTYPE_TYPE, "parmtype=memtype:charp\0");
modinfo!(
    MEMTYPE_TEXT,
    "parm=memtype:Memory type of all of the pool, with source=range: wb (default), wc or uc\0"
);
modinfo!(CLIENT_BYTES_TYPE, "parmtype=quota_client_bytes:ullong\0");
modinfo!(
    CLIENT_BYTES_TEXT,
    "parm=quota_client_bytes:Bytes that one open file may hold (default 0: no limit)\0"
);
modinfo!(
    CLIENT_HANDLES_TYPE,
    "parmtype=quota_client_handles:ullong\0"
);
modinfo!(
    CLIENT_HANDLES_TEXT,
    "parm=quota_client_handles:Handles that one open file may hold (default 0: no limit)\0"
);
modinfo!(USER_BYTES_TYPE, "parmtype=quota_uid_bytes:ullong\0");
modinfo!(
    USER_BYTES_TEXT,
    "parm=quota_uid_bytes:Bytes that one user's files may hold (default 0: no limit)\0"
);
modinfo!(USER_HANDLES_TYPE, "parmtype=quota_uid_handles:ullong\0");
modinfo!(
    USER_HANDLES_TEXT,
    "parm=quota_uid_handles:Handles that one user's files may hold (default 262144; 0: no limit)\0"
);
modinfo!(ZERO_CPU_PERCENT_TYPE, "parmtype=zero_cpu_percent:ullong\0");
modinfo!(
    ZERO_CPU_PERCENT_TEXT,
    "parm=zero_cpu_percent:Per cent of one CPU's time for zeroing free memory ahead (default 25)\0"
);

/// What the parameters ask for.
///
/// # Errors
///
/// `EINVAL`, with the reason and the remedy in the log.
pub(crate) fn region_spec(
    size_mb: u64,
    phys_start: u64,
    assume_memory: u8,
    node: i32,
    max_buffers: u32,
) -> Result<RegionSpec> {
    if max_buffers == 0 {
        pr_err!("max_buffers=0 would let nobody have a buffer: leave it out, or say how many\n");
        return Err(EINVAL);
    }
    if size_mb == 0 || size_mb > MAX_SIZE_MB {
        pr_err!("size_mb={} must be 1 to {}\n", size_mb, MAX_SIZE_MB);
        return Err(EINVAL);
    }
    let source = SourceWords::chosen().1;
    if phys_start != 0 && source != Source::Range {
        pr_err!("phys_start= goes with source=range only\n");
        return Err(EINVAL);
    }
    let memtype = MemTypeWords::chosen().1;
    if memtype.is_some() && source != Source::Range {
        pr_err!("memtype= goes with source=range only; elsewhere ALLOC's flags choose it\n");
        return Err(EINVAL);
    }
    let trust = match assume_memory {
        0 => Trust::Tables,
        1 if source == Source::Range => Trust::Assume,
        1 => {
            pr_err!("assume_memory= goes with source=range only\n");
            return Err(EINVAL);
        }
        _ => {
            pr_err!("assume_memory={} must be 0 or 1\n", assume_memory);
            return Err(EINVAL);
        }
    };
    let node = match node {
        -1 => None,
        _ if mm::is_memory_node(node) => Some(node),
        _ => {
            pr_err!("node={} has no memory, or there is no such node\n", node);
            return Err(EINVAL);
        }
    };
    Ok(RegionSpec {
        source,
        pages: (size_mb << 20) / mm::PAGE_SIZE,
        start: phys_start,
        node,
        memtype: memtype.unwrap_or(MemType::WriteBack),
        trust,
    })
}

/// Checks for how long memory that a dead client had pinned stays in quarantine.
///
/// # Errors
///
/// `EINVAL`, with the reason and the remedy in the log.
pub(crate) fn quarantine(ms: i64) -> Result<QuarantinePeriod> {
    /// A day.
    const MAX_MS: u32 = 86_400_000;

    match (ms, u32::try_from(ms)) {
        (-1, _) => Ok(QuarantinePeriod::UntilReleased),
        (0, _) => Ok(QuarantinePeriod::Off),
        (_, Ok(ms)) if ms <= MAX_MS => Ok(QuarantinePeriod::Millis(ms)),
        _ => {
            pr_err!("quarantine_ms={} must be -1 to {}\n", ms, MAX_MS);
            Err(EINVAL)
        }
    }
}

/// The watermarks, in per cent of the pool.
///
/// # Errors
///
/// `EINVAL`, with the reason and the remedy in the log.
pub(crate) fn watermarks(min: u32, low: u32, high: u32) -> Result<[u32; 3]> {
    if min <= low && low <= high && high <= 90 {
        return Ok([min, low, high]);
    }
    pr_err!(
        "watermark_min={} watermark_low={} watermark_high={} must not fall, nor be above 90\n",
        min,
        low,
        high
    );
    Err(EINVAL)
}

/// The unusable free space index from which on the pool is compacted, of 1000.
///
/// # Errors
///
/// `EINVAL`, with the reason and the remedy in the log.
pub(crate) fn compact_threshold(per_cent: u32) -> Result<u32> {
    if per_cent <= 100 {
        return Ok(per_cent * 10);
    }
    pr_err!("compact_threshold={} must be 0 to 100\n", per_cent);
    Err(EINVAL)
}
