// SPDX-License-Identifier: GPL-2.0

//! Module parameters.
//!
//! This declares the parameters that `module!` can't: words, strings, and numbers that root can
//! change. It also checks the values of all parameters. An invalid value fails the load, and the
//! log names the valid ones.

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

/// The largest pool in MiB: the allocator manages at most 2^30 units.
const MAX_SIZE_MB: u64 = (1 << 30) / (1 << 20) * mm::PAGE_SIZE;

/// The values of `source=`; the first is the default.
const SOURCES: [(&CStr, Source); 4] = [
    (c"auto", Source::Auto),
    (c"contig", Source::Contig),
    (c"cma", Source::Cma),
    (c"range", Source::Range),
];

/// The values of `memtype=`; the first is the default.
const MEMTYPES: [(&CStr, Option<MemType>); 4] = [
    (c"", None),
    (c"wb", Some(MemType::WriteBack)),
    (c"wc", Some(MemType::WriteCombining)),
    (c"uc", Some(MemType::Uncached)),
];

/// A parameter whose value is one of several words.
trait Words {
    /// The value that a word stands for.
    type Value: Copy + 'static;

    /// The words and their values; the first is the default.
    const ALL: &'static [(&'static CStr, Self::Value)];

    /// The log message for an invalid word.
    const RULE: &'static str;

    /// Returns the index in `ALL` of the current word. Atomic, since sysfs may read it at any time.
    fn index() -> &'static Atomic<u32>;

    /// Returns the current word and its value.
    fn chosen() -> (&'static CStr, Self::Value) {
        *Self::ALL
            .get(Self::index().load(Relaxed) as usize)
            .unwrap_or(&Self::ALL[0])
    }

    /// Sets the word. Called by the kernel, at load.
    ///
    /// # Safety
    ///
    /// `value` must be null, or a C string that is valid and unchanged during the call.
    unsafe extern "C" fn set(value: *const c_char, _param: *const bindings::kernel_param) -> c_int {
        if value.is_null() {
            return EINVAL.to_errno();
        }
        // SAFETY: `value` is not null, so it is a C string that is valid and unchanged during this
        // call, by this function's requirements. The `CStr` is not used afterwards.
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

    /// Prints the word, for sysfs. Called by the kernel.
    ///
    /// # Safety
    ///
    /// `buffer` must be valid for writes of a page.
    unsafe extern "C" fn get(buffer: *mut c_char, _param: *const bindings::kernel_param) -> c_int {
        let word = Self::chosen().0.as_char_ptr();
        // SAFETY: The format takes one string, and `word` is a C string. A word is shorter than a
        // page, for which `buffer` is valid, by this function's requirements.
        unsafe { bindings::sprintf(buffer, c"%s\n".as_char_ptr(), word) }
    }
}

/// Declares the parameter `$name`, with the type `$words` for its trait [`Words`].
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

/// The operations of a parameter, in a type that is `Sync`.
#[repr(transparent)]
struct ParamOps(bindings::kernel_param_ops);

// SAFETY: The operations are constants: function pointers and flags that are never written.
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

/// A pointer to a string parameter, which the kernel sets before the module's init function runs.
///
/// It points to a C string that lives as long as the module. Sysfs can't write it.
#[repr(transparent)]
struct Text(core::cell::UnsafeCell<*const c_char>);

// SAFETY: The kernel writes the pointer only before the init function runs, so no read of this
// module races with the write.
unsafe impl Sync for Text {}

/// The parameter `heap_name`.
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

/// Returns the name of the dma-heap, or `None` if there is to be none.
///
/// # Errors
///
/// `EINVAL` for an invalid name, with the reason and the remedy in the log.
pub(crate) fn heap_name() -> Result<Option<&'static CStr>> {
    // SAFETY: `HEAP_NAME` points to a C string that lives as long as the module, see `Text`. The
    // kernel does not write pointer or string after the init function has begun.
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

/// Declares a number that root may change at any time. The kernel writes it to `$number`.
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

/// Declares a line for modinfo(8).
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
    "parm=source:Source of the pool's memory: auto (default), contig, cma or range\0"
);
modinfo!(HEAP_NAME_TYPE, "parmtype=heap_name:charp\0");
modinfo!(
    HEAP_NAME_TEXT,
    "parm=heap_name:Name of the dma-heap, in /dev/dma_heap (default rust_buddy; empty: none)\0"
);
modinfo!(MEMTYPE_TYPE, "parmtype=memtype:charp\0");
modinfo!(
    MEMTYPE_TEXT,
    "parm=memtype:Memory type of the whole pool, for source=range only: wb (default), wc or uc\0"
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
    "parm=zero_cpu_percent:Percentage of one CPU for zeroing in the background (default 25)\0"
);

/// Checks the parameters of the region, and returns its properties.
///
/// # Errors
///
/// `EINVAL` for invalid parameters, with the reason and the remedy in the log.
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

/// Checks `quarantine_ms`, and returns how long memory of a dead client stays in quarantine.
///
/// # Errors
///
/// `EINVAL` for an invalid period, with the valid ones in the log.
pub(crate) fn quarantine(ms: i64) -> Result<QuarantinePeriod> {
    /// One day.
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

/// Checks the watermarks, in per cent of the pool, and returns them in this order.
///
/// # Errors
///
/// `EINVAL` if they are not in ascending order or above 90, with the reason in the log.
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

/// Checks `compact_threshold`, in per cent, and returns it in units of 1/1000.
///
/// The pool is compacted while its unusable free space index exceeds the threshold.
///
/// # Errors
///
/// `EINVAL` for more than 100 per cent, with the valid values in the log.
pub(crate) fn compact_threshold(per_cent: u32) -> Result<u32> {
    if per_cent <= 100 {
        return Ok(per_cent * 10);
    }
    pr_err!("compact_threshold={} must be 0 to 100\n", per_cent);
    Err(EINVAL)
}
