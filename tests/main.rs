//! All integration tests, in one executable: each module is one subject.

#[cfg(feature = "cuda")]
mod cuda_absent;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod elf;
mod memory;
mod peer;
mod real_model;
mod tidy;
