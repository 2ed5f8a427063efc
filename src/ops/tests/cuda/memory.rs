//! Memory that cannot be had.

use super::gpu;
use crate::cuda::{CudaError, DType};

/// Another program may have taken what was free: that is an error with numbers, and what was there before still works.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_memory_beyond_what_is_free_is_an_error_with_numbers() {
    let (free_bytes, total_bytes) = gpu().memory().expect("an answer");
    let before = gpu().allocated();
    let kept = gpu().zeros(1, 1000, DType::F32, "what stays").expect("room");
    for wanted in [free_bytes + (64 << 20), 2 * total_bytes] {
        let rows = wanted.div_ceil(1 << 20);
        let error = gpu().empty(rows, 1 << 20, DType::U8, "a cache that is too large").expect_err("no room");
        let CudaError::OutOfMemory { bytes, what, free_bytes: told } = &error else { panic!("{error}") };
        assert_eq!((*bytes, what.as_str()), (rows << 20, "a cache that is too large"));
        assert!(told.abs_diff(free_bytes) < 64 << 20, "{told} of {free_bytes} are told");
        let text = error.to_string();
        assert!(text.contains(&bytes.to_string()) && text.contains(&told.to_string()), "{text}");
    }
    assert!(gpu().download(&kept).expect("the context is whole").iter().all(|byte| *byte == 0));
    drop(kept);
    assert_eq!(gpu().allocated().0, before.0, "what was refused is not counted");
    gpu().zeros(1, 1000, DType::F32, "a test").expect("room");
}
