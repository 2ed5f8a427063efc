//! Memory that was freed and that the allocator keeps.
//!
//! Knows no owners: when something large has ended is the caller's affair.

/// Gives the system what was freed but lies in the allocator's heaps. Milliseconds of work: for the end of a model, not of a
/// step.
///
/// glibc maps a large piece by itself and unmaps it when it is freed, but takes that for a sign that more of its size will
/// come: pieces of up to 32 MiB then lie in heaps, of which many threads have one each, and only the ends of those go back.
pub fn give_back_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointers, and holds each heap's lock while it looks for pages that nothing lies in.
    unsafe {
        libc::malloc_trim(0);
    }
}
