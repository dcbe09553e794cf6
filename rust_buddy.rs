// SPDX-License-Identifier: GPL-2.0

//! Contiguous, DMA-capable buffers out of a region that is taken once, at load.
//!
//! The way of a request, each layer knowing only the ones after it: `device` (nodes, clients,
//! commands), `buffer`, `pool`, `buddy` (the allocator) and `region` (the memory).

#[path = "src/bell.rs"]
mod bell;
#[path = "src/buddy/mod.rs"]
pub mod buddy;
#[path = "src/buffer/mod.rs"]
mod buffer;
#[path = "src/cache.rs"]
mod cache;
#[path = "src/debugfs.rs"]
mod debugfs;
#[path = "src/device/mod.rs"]
mod device;
#[path = "src/linger.rs"]
mod linger;
#[path = "src/memory.rs"]
mod memory;
#[path = "src/mm.rs"]
mod mm;
#[path = "src/params.rs"]
mod params;
#[path = "src/pgtable.rs"]
mod pgtable;
#[path = "src/pool.rs"]
mod pool;
#[path = "src/quarantine.rs"]
mod quarantine;
#[path = "src/quota.rs"]
mod quota;
#[path = "src/region/mod.rs"]
mod region;
#[path = "src/uapi/mod.rs"]
pub mod uapi;
#[path = "src/wait.rs"]
mod wait;

use device::{
    Addresses,
    HeapNode,
    Hub,
    Node, //
};
use kernel::{
    debugfs::Dir,
    prelude::*,
    sync::Arc, //
};
use pool::{
    Pool,
    DEFAULT_POOL, //
};
use quota::Users;
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
        start: u64 {
            default: 0,
            description: "Physical address of the pool, with source=range",
        },
        node: i32 {
            default: -1,
            description: "NUMA node the pool must be on (default -1: any)",
        },
        max_buffers: u32 {
            default: 65536,
            description: "Buffers that one open file may hold (default 65536)",
        },
        quarantine_ms: i64 {
            default: 5000,
            description: "For how long pinned memory of the dead waits (default 5000; -1: ever)",
        },
    },
}

/// All that the module owns. Fields go from the top: the nodes first, the memory last.
#[pin_data(PinnedDrop)]
struct RustBuddy {
    #[pin]
    plain: Node,
    #[pin]
    phys: Node,
    heap: Option<Pin<KBox<HeapNode>>>,
    files: debugfs::PoolFiles,
    users: debugfs::UsersFile,
    pool: Arc<Pool>,
}

#[pinned_drop]
impl PinnedDrop for RustBuddy {
    fn drop(self: Pin<&mut Self>) {
        self.pool.flush();
    }
}

impl kernel::InPlaceModule for RustBuddy {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(|| {
            let wanted = params::wanted(
                module_parameters::size_mb.value(),
                module_parameters::start.value(),
                module_parameters::node.value(),
                module_parameters::max_buffers.value(),
            )?;
            let term = params::quarantine(module_parameters::quarantine_ms.value())?;
            let pool = Pool::new(DEFAULT_POOL, Region::take(&wanted)?, term)?;
            let users = Users::new(module_parameters::max_buffers.value().into())?;
            let root = Dir::new(c"rust_buddy");
            let files = debugfs::show(&root, pool.clone())?;
            let hub = Hub::new(pool.clone(), users.clone())?;
            let users = debugfs::show_users(&root, users)?;
            let heap = match params::heap()? {
                Some(name) => Some(HeapNode::new(hub.clone(), name)?),
                None => None,
            };
            Ok(try_pin_init!(Self {
                plain <- Node::new(hub.clone(), Addresses::Hidden),
                phys <- Node::new(hub, Addresses::Shown),
                heap,
                files,
                users,
                pool,
            }))
        })
    }
}
