// SPDX-License-Identifier: GPL-2.0

//! The ranges that `memmap=SIZE$START` on the kernel's command line reserves.
//!
//! In the kernel's table of physical addresses, each of them is "Reserved". So are the ranges that
//! the firmware keeps for itself or for registers. Only the command line tells them apart. The
//! kernel exports no symbol for it, so the module reads `/proc/cmdline`, once, at load.

use core::ptr::NonNull;
use kernel::{
    bindings,
    error::from_err_ptr,
    prelude::*, //
};

/// The most bytes to read. x86 allows 2048, and a boot configuration can add to them.
const LONGEST: usize = 16 << 10;

/// Returns whether `memmap=` options reserve all of the bytes `[start, end)`. Sleeps.
///
/// Returns false if the command line can't be read.
pub(super) fn names(start: u64, end: u64) -> bool {
    read().is_ok_and(|line| sets_aside(&line, start, end))
}

/// An open file, for reading.
///
/// # Invariants
///
/// The pointer owns one reference to the file.
struct OpenFile(NonNull<bindings::file>);

impl Drop for OpenFile {
    fn drop(&mut self) {
        // SAFETY: By the type invariants this owns a reference to the file, and gives it up here.
        unsafe { bindings::fput(self.0.as_ptr()) };
    }
}

/// Returns the kernel's command line.
fn read() -> Result<KVVec<u8>> {
    // SAFETY: The path is a string with a terminating NUL that is valid for the call. The flags do
    // not create a file, so the mode is ignored.
    let file = from_err_ptr(unsafe {
        bindings::filp_open(
            c"/proc/cmdline".as_char_ptr(),
            bindings::O_RDONLY as c_int,
            0,
        )
    })?;
    // INVARIANT: `filp_open()` returned a reference to the file, which this takes over.
    let file = OpenFile(NonNull::new(file).ok_or(ENOENT)?);
    let mut line = KVVec::from_elem(0u8, LONGEST, GFP_KERNEL)?;
    let mut at: bindings::loff_t = 0;
    let mut length = 0;
    while let Some(rest) = line.get_mut(length..).filter(|rest| !rest.is_empty()) {
        // SAFETY: `file` is open for reading. `rest` is valid for writes of `rest.len()` bytes, and
        // `at` is a variable of this function.
        let read = unsafe {
            bindings::kernel_read(
                file.0.as_ptr(),
                rest.as_mut_ptr().cast(),
                rest.len(),
                &raw mut at,
            )
        };
        match usize::try_from(read) {
            Ok(0) => break,
            Ok(read) => length += rest.len().min(read),
            Err(_) => return Err(EIO),
        }
    }
    line.truncate(length);
    Ok(line)
}

/// Returns whether the options of a command line reserve all of the bytes `[start, end)`.
fn sets_aside(line: &[u8], start: u64, end: u64) -> bool {
    // The kernel merges adjacent ranges, so several options together may cover the range.
    let mut covered = start;
    while covered < end {
        let Some((_, next)) =
            ranges(line).find(|&(first, next)| first <= covered && covered < next)
        else {
            return false;
        };
        covered = next;
    }
    true
}

/// Iterates over the reserved ranges: the first byte of each, and the byte after its last one.
fn ranges(line: &[u8]) -> impl Iterator<Item = (u64, u64)> + '_ {
    line.split(u8::is_ascii_whitespace)
        // The kernel passes the words after `--` to init.
        .take_while(|word| *word != b"--")
        .filter_map(|word| {
            let word = word.strip_prefix(b"\"").unwrap_or(word);
            let value = word.strip_prefix(b"memmap=")?;
            let value = value.strip_prefix(b"\"").unwrap_or(value);
            Some(value.strip_suffix(b"\"").unwrap_or(value))
        })
        .flat_map(|value| value.split(|&byte| byte == b','))
        .filter_map(|one| {
            let (size, rest) = number(one)?;
            let (start, rest) = number(rest.strip_prefix(b"$")?)?;
            let next = start.checked_add(size)?;
            rest.is_empty().then_some((start, next))
        })
}

/// Reads a number with an optional suffix, as `memparse()` does. Returns it and the rest of `text`.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let (radix, digits) = match text {
        [b'0', b'x' | b'X', rest @ ..] => (16, rest),
        [b'0', ..] => (8, text),
        _ => (10, text),
    };
    let digit = |&byte: &u8| char::from(byte).to_digit(radix);
    let length = digits
        .iter()
        .take_while(|byte| digit(byte).is_some())
        .count();
    let (digits, rest) = digits.split_at_checked(length)?;
    if digits.is_empty() {
        return None;
    }
    let value = digits
        .iter()
        .filter_map(digit)
        .try_fold(0u64, |value, digit| {
            value.checked_mul(radix.into())?.checked_add(digit.into())
        })?;
    let (shift, rest) = match rest {
        [b'K' | b'k', rest @ ..] => (10, rest),
        [b'M' | b'm', rest @ ..] => (20, rest),
        [b'G' | b'g', rest @ ..] => (30, rest),
        [b'T' | b't', rest @ ..] => (40, rest),
        [b'P' | b'p', rest @ ..] => (50, rest),
        [b'E' | b'e', rest @ ..] => (60, rest),
        _ => (0, rest),
    };
    Some((value.checked_mul(1 << shift)?, rest))
}
