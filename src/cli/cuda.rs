//! `lantern cuda install`: brings NVIDIA's matrix products to a machine that has only the driver.
//!
//! Asks no GPU: `lantern doctor` does.

use super::flags::StoreFlags;
use super::load;
use super::progress::Bar;
use super::{CliError, Session};
use crate::config::{ByteSize, Settings};
use crate::hub::{self, Library};

/// Arguments of `lantern cuda`.
#[derive(Clone, Debug, clap::Args)]
pub struct CudaArgs {
    #[command(subcommand)]
    command: CudaCommand,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum CudaCommand {
    /// Fetch cuBLAS, which Lantern runs without, slower
    #[command(after_help = "Takes libcublasLt from the Python package nvidia-cublas into the folder of the models. \
                            `lantern doctor` shows which one is used.")]
    Install(StoreFlags),
}

/// Fetches the library, unless it is there.
///
/// # Errors
/// [`CliError::Hub`] where it cannot be had; [`CliError::Refused`] where it would be of no use.
pub fn run(args: CudaArgs, session: &Session) -> Result<(), CliError> {
    let CudaCommand::Install(store) = args.command;
    if !cfg!(all(feature = "cuda", target_os = "linux", target_arch = "x86_64")) {
        return Err(CliError::Refused("this build has no CUDA, so that cuBLAS would be of no use".into()));
    }
    let config = session.resolve(store.fill(Settings::default()))?;
    session.log(&config, "warn")?;
    let library = Library::cublas();
    let (store, options) = (load::store(&config.hub)?, load::hub_options(&config.hub));
    let path = hub::install(&library, &store, &options, &mut Bar::new(session.terminal))?;
    session.print(&format!("cuBLAS is here: {} ({})\n", path.display(), ByteSize(library.package.bytes)))
}
