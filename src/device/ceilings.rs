//! How fast a GPU can be at most, measured on it.
//!
//! Knows no models.

use std::path::Path;

/// What bounds a model on one device, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Ceilings {
    /// Bytes read and written each second by a large copy within the device's memory.
    pub copy_bytes_per_second: Option<f64>,
    /// Floating-point operations each second of a large matrix product in bf16.
    pub flops_per_second: Option<f64>,
}

impl Ceilings {
    /// Measures GPU `ordinal`: about a second, and 2 GiB of its memory for as long. `libraries` is the folder that may
    /// hold cuBLAS besides the system's; without cuBLAS the rate of products is not known.
    ///
    /// # Errors
    /// Why it cannot be measured: this build has no CUDA, or the GPU fails.
    pub fn measure(ordinal: u32, libraries: Option<&Path>) -> Result<Self, String> {
        #[cfg(feature = "cuda")]
        {
            let folders: Vec<_> = libraries.map(Path::to_owned).into_iter().collect();
            let rates = crate::cuda::card_rates(ordinal as usize, &folders).map_err(|error| error.to_string())?;
            let crate::cuda::CardRates { copy_bytes_per_second, flops_per_second } = rates;
            let flops_per_second = flops_per_second
                .inspect_err(|reason| tracing::warn!(%reason, "how fast products could be is not known"))
                .ok();
            Ok(Self { copy_bytes_per_second: Some(copy_bytes_per_second), flops_per_second })
        }
        #[cfg(not(feature = "cuda"))]
        {
            let _ = (ordinal, libraries);
            Err("this build has no CUDA".to_owned())
        }
    }
}
