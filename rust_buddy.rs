// SPDX-License-Identifier: GPL-2.0

//! Allocates contiguous, DMA-capable buffers from a region that the module takes when it is loaded.
//!
//! A request passes the layers in this order: `device` (nodes, clients, commands), `buffer`,
//! `pool`, `buddy` (the allocator) and `region` (the memory). Each layer uses only those after it.

#[path = "src/audit.rs"]
mod audit;
#[path = "src/buddy/mod.rs"]
pub mod buddy;
#[path = "src/buffer/mod.rs"]
mod buffer;
#[path = "src/compact_target.rs"]
pub mod compact_target;
#[path = "src/debug_file.rs"]
mod debug_file;
#[path = "src/debugfs.rs"]
mod debugfs;
#[path = "src/deferred_free.rs"]
mod deferred_free;
#[path = "src/device/mod.rs"]
mod device;
#[path = "src/magazine/mod.rs"]
pub mod magazine;
#[path = "src/memory.rs"]
mod memory;
#[path = "src/memtype.rs"]
mod memtype;
#[path = "src/mm.rs"]
mod mm;
#[path = "src/params.rs"]
mod params;
#[path = "src/pgtable.rs"]
mod pgtable;
#[path = "src/poll_wait.rs"]
mod poll_wait;
#[path = "src/pool/mod.rs"]
mod pool;
#[path = "src/quarantine.rs"]
mod quarantine;
#[path = "src/quota.rs"]
mod quota;
#[path = "src/region/mod.rs"]
mod region;
#[path = "src/sums.rs"]
pub mod sums;
#[path = "src/sys/mod.rs"]
mod sys;
#[path = "src/uapi/mod.rs"]
pub mod uapi;
#[path = "src/wait.rs"]
mod wait;

use device::{
    DeviceContext,
    Gate,
    HeapNode,
    Node, //
    PhysAccess,
};
use kernel::prelude::*;
use pool::{
    Background,
    Hibernation,
    Policy,
    Pool,
    DEFAULT_POOL, //
};
use quota::UserAccounts;
use region::Region;

module! {
    type: RustBuddy,
    name: "rust_buddy",
    authors: ["The rust_buddy maintainers"],
    description: "Contiguous DMA buffers from a buddy allocator over a region taken at load",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
    params: {
        size_mb: u64 {
            default: 64,
            description: "Size of the pool in MiB (default 64)",
        },
        phys_start: u64 {
            default: 0,
            description: "Physical address of the pool's first byte, with source=range",
        },
        assume_memory: u8 {
            default: 0,
            description: "1: trust that phys_start= is unused memory (default 0)",
        },
        node: i32 {
            default: -1,
            description: "NUMA node of the pool's memory (default -1: any)",
        },
        max_buffers: u32 {
            default: 65536,
            description: "Handles that one open file may hold (default 65536)",
        },
        watermark_min: u32 {
            default: 0,
            description: "Percentage of the pool that only high priority may take (default 0)",
        },
        watermark_low: u32 {
            default: 10,
            description: "Percentage of the pool that low priority leaves free (default 10)",
        },
        watermark_high: u32 {
            default: 20,
            description: "Percentage of the pool that must be free to end pressure (default 20)",
        },
        compact_threshold: u32 {
            default: 50,
            description: "Percentage of free memory in small blocks that starts compaction (50)",
        },
        quarantine_ms: i64 {
            default: 5000,
            description: "Milliseconds of quarantine for a dead client's pins (5000; -1: no limit)",
        },
    },
}

/// The state of the module.
///
/// Fields are dropped in their order. The nodes are first, so that no request can arrive any more,
/// and the memory is last.
#[pin_data]
struct RustBuddy {
    #[pin]
    plain: Node,
    #[pin]
    phys: Node,
    heap: Option<Pin<KBox<HeapNode>>>,
    gate: Gate,
    files: debugfs::Files,
    hibernation: Option<Pin<KBox<Hibernation>>>,
    background: Background,
    _oracle: audit::Oracle,
}

impl kernel::InPlaceModule for RustBuddy {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(|| {
            let spec = params::region_spec(
                module_parameters::size_mb.value(),
                module_parameters::phys_start.value(),
                module_parameters::assume_memory.value(),
                module_parameters::node.value(),
                module_parameters::max_buffers.value(),
            )?;
            let policy = Policy {
                quarantine_period: params::quarantine(module_parameters::quarantine_ms.value())?,
                watermarks: params::watermarks(
                    module_parameters::watermark_min.value(),
                    module_parameters::watermark_low.value(),
                    module_parameters::watermark_high.value(),
                )?,
                compact_threshold: params::compact_threshold(
                    module_parameters::compact_threshold.value(),
                )?,
            };
            // The oracle checks every allocation and every free. So it is created before the pool
            // and dropped after it.
            let oracle = audit::Oracle::find();
            let pool = Pool::new(DEFAULT_POOL, Region::new(&spec)?, policy)?;
            // If a later step fails, dropping this stops the pool's background work.
            let background = Background::begin(pool.clone());
            let users = UserAccounts::new(module_parameters::max_buffers.value().into())?;
            let context = DeviceContext::new(pool.clone(), users.clone())?;
            let files = debugfs::Files::new(pool.clone(), context.clone(), users)?;
            let hibernation = if pool.region().is_saved() {
                None
            } else {
                Some(Hibernation::new(pool.clone())?)
            };
            let heap = params::heap_name()?;
            // From here on only the registrations of the nodes can fail. The node that most
            // programs open is registered last.
            let gate = Gate::new(context.clone());
            Ok(try_pin_init!(Self {
                heap: match heap {
                    Some(name) => Some(HeapNode::new(context.clone(), name)?),
                    None => None,
                },
                phys <- Node::new(context.clone(), PhysAccess::Granted),
                plain <- Node::new(context, PhysAccess::Denied),
                gate: gate.opened(),
                files: files.shown(),
                hibernation,
                background,
                _oracle: oracle,
            }))
        })
    }
}
