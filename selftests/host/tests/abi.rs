// SPDX-License-Identifier: GPL-2.0

//! Checks that the ABI's mirror agrees with the header. The C compiler compares every constant, and
//! the size and offset of every field.

use rust_buddy_host::uapi;
use std::fmt::Write;
use std::path::Path;
use std::process::{
    Command,
    Output,
    Stdio, //
};

const UAPI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../src/uapi");

/// Compiles `source` together with the header.
fn compile(source: &str, flags: &[&str]) -> Output {
    let mut cc = Command::new("cc")
        .args([
            "-std=gnu11",
            "-Wall",
            "-Werror",
            "-fsyntax-only",
            "-xc",
            "-",
        ])
        .arg(format!("-I{UAPI}"))
        .args(flags)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a C compiler is installed");
    std::io::Write::write_all(cc.stdin.as_mut().unwrap(), source.as_bytes()).unwrap();
    cc.wait_with_output().unwrap()
}

/// Returns a C source that compiles only if header and mirror agree.
fn assertions() -> String {
    let mut c = String::from("#include <stddef.h>\n#include <linux/rust_buddy.h>\n");
    for (name, value) in uapi::CONSTANTS {
        writeln!(
            c,
            "_Static_assert(RUST_BUDDY_{name} == {value}ULL, \"{name}\");"
        )
        .unwrap();
    }
    writeln!(
        c,
        "_Static_assert(RUST_BUDDY_IOC_MAGIC == {} && RUST_BUDDY_NAME_LEN == {} && \
         RUST_BUDDY_DEVICE_LEN == {} && RUST_BUDDY_ORDERS == {}, \"limits\");",
        uapi::MAGIC,
        uapi::NAME_LEN,
        uapi::DEVICE_LEN,
        uapi::ORDERS
    )
    .unwrap();
    for (name, size, fields) in uapi::LAYOUTS {
        writeln!(
            c,
            "_Static_assert(sizeof(struct {name}) == {size}, \"size of {name}\");"
        )
        .unwrap();
        for (field, offset, size) in *fields {
            writeln!(
                c,
                "_Static_assert(offsetof(struct {name}, {field}) == {offset} && \
                 sizeof(((struct {name} *)0)->{field}) == {size}, \"{name}.{field}\");"
            )
            .unwrap();
        }
    }
    for (nr, name, size) in uapi::COMMANDS {
        // BufferInfo -> BUFFER_INFO
        let c_name: String = name
            .char_indices()
            .flat_map(|(i, ch)| {
                let gap = (i > 0 && ch.is_uppercase()).then_some('_');
                gap.into_iter().chain(ch.to_uppercase())
            })
            .collect();
        writeln!(
            c,
            "_Static_assert(RUST_BUDDY_IOC_{c_name} == _IOC(_IOC_READ | _IOC_WRITE, {}, {nr}, \
             {size}), \"{c_name}\");",
            uapi::MAGIC
        )
        .unwrap();
    }
    c
}

#[test]
fn mirror_is_the_header() {
    let output = compile(&assertions(), &[]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_difference_is_seen() {
    let place = "offsetof(struct rust_buddy_alloc, name) == ";
    let broken = assertions().replace(place, &format!("{place}1 + "));
    assert_ne!(broken, assertions());
    assert!(!compile(&broken, &[]).status.success());
}

#[test]
fn layout_is_one_for_32_and_64_bit() {
    // Only if the compiler has 32-bit headers. The guest's abi32 test makes real 32-bit calls.
    if !compile("#include <linux/types.h>\n#include <stddef.h>\n", &["-m32"])
        .status
        .success()
    {
        eprintln!("no 32-bit headers here: not compared");
        return;
    }
    let output = compile(&assertions(), &["-m32"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A field that the mirror lacks would leave a hole between two fields or after the last one. The
/// offsets of the fields and the size of the struct show that there is none.
#[test]
fn fields_leave_no_holes() {
    for (name, size, fields) in uapi::LAYOUTS {
        let mut at = 0;
        for (field, offset, size) in *fields {
            assert_eq!(at, *offset, "before {name}.{field}");
            at += size;
        }
        assert_eq!(at, *size, "after the last field of {name}");
        assert_eq!(size % 8, 0, "{name}");
    }
}

/// The mirror has every constant of the header.
#[test]
fn no_constant_is_missing() {
    let header = std::fs::read_to_string(Path::new(UAPI).join("linux/rust_buddy.h")).unwrap();
    let of_macros = ["NAME_LEN", "DEVICE_LEN", "ORDERS", "IOC_"];
    for line in header.lines() {
        let Some(name) = line
            .strip_prefix("#define RUST_BUDDY_")
            .and_then(|rest| rest.split_whitespace().next())
        else {
            continue;
        };
        if of_macros.iter().any(|known| name.starts_with(known)) {
            continue;
        }
        assert!(
            uapi::CONSTANTS.iter().any(|(known, _)| *known == name),
            "{name}"
        );
    }
}
