//! The exponential function over vectors, by the same steps in every lane and at every level.

use super::simd::Lanes;

/// e to the power of each lane. Within 2 units in the last place for results from 2^-126 to 2^127 (a test walks the
/// range); below it the result is 0 or loses digits, above it is infinite; -inf gives 0, NaN gives NaN.
///
/// x = n ln 2 + f with whole n and |f| <= ln 2 / 2; ln 2 is subtracted in two parts (Cody and Waite), and e^f is its
/// Taylor series of degree 7.
///
/// # Safety
/// The machine must have the instructions of `L`.
#[inline(always)]
pub unsafe fn exp<L: Lanes>(x: L::V) -> L::V {
    // SAFETY: arithmetic on vectors; the caller vouches for the instructions.
    unsafe {
        // The constant comes first: where a lane is NaN, `max` and `min` give their second argument.
        let x = L::min(L::splat(89.0), L::max(L::splat(-88.0), x));
        let n = L::round(L::mul(x, L::splat(std::f32::consts::LOG2_E)));
        let f = L::fma(n, L::splat(-0.693_359_4), x);
        let f = L::fma(n, L::splat(2.121_944_4e-4), f);
        let mut p = L::splat(1.0 / 5040.0);
        for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = L::fma(p, f, L::splat(coefficient));
        }
        L::mul(p, L::exp2_whole(n))
    }
}

/// [`exp`] of one number, with the bits that a lane would have.
///
/// # Safety
/// As [`exp`].
#[inline(always)]
pub unsafe fn exp_one<L: Lanes>(x: f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    // SAFETY: 16 floats hold a vector of any level.
    unsafe { L::store(lanes.as_mut_ptr(), exp::<L>(L::splat(x))) };
    lanes[0]
}
