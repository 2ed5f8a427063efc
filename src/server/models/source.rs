//! Where models that are not loaded come from.

use crate::llm::{Beside, HubError, Llm, LoadError, LocalModel, ModelDescription, ModelLibrary, Progress};

/// Models that can be loaded, brought and removed by name. Everything blocks.
pub trait ModelSource: Send + Sync + 'static {
    /// What can be loaded, without the network.
    fn list(&self) -> Vec<LocalModel>;

    /// Whether one of them is still here. It is asked often: a look at the disk, no reading. Where the disk does not say,
    /// it is.
    fn has(&self, name: &str) -> bool;

    /// What tells the version of one of them that is here from others, as in the list: one short file is read. `None`: it is
    /// not here, or that is not known so quickly.
    fn digest(&self, name: &str) -> Option<String>;

    /// Loads one of them, beside those that are loaded.
    ///
    /// # Errors
    /// [`LoadError`].
    fn load(&self, name: &str, beside: Beside) -> Result<Llm, LoadError>;

    /// What is known of one of them without loading it.
    ///
    /// # Errors
    /// [`LoadError`].
    fn describe(&self, name: &str) -> Result<ModelDescription, LoadError>;

    /// Brings a model to this machine.
    ///
    /// # Errors
    /// [`HubError`].
    fn pull(&self, name: &str, progress: &mut dyn Progress) -> Result<(), HubError>;

    /// Gives a model of this machine a second name.
    ///
    /// # Errors
    /// [`HubError`].
    fn copy(&self, source: &str, destination: &str) -> Result<(), HubError>;

    /// Removes a model from this machine.
    ///
    /// # Errors
    /// [`HubError`].
    fn remove(&self, name: &str) -> Result<(), HubError>;
}

impl ModelSource for ModelLibrary {
    fn list(&self) -> Vec<LocalModel> {
        ModelLibrary::list(self).unwrap_or_else(|error| {
            tracing::warn!(%error, "the models on this machine cannot be listed");
            Vec::new()
        })
    }

    fn has(&self, name: &str) -> bool {
        ModelLibrary::has(self, name)
    }

    fn digest(&self, name: &str) -> Option<String> {
        ModelLibrary::digest(self, name)
    }

    fn load(&self, name: &str, beside: Beside) -> Result<Llm, LoadError> {
        ModelLibrary::load(self, name, beside)
    }

    fn describe(&self, name: &str) -> Result<ModelDescription, LoadError> {
        ModelLibrary::describe(self, name)
    }

    fn pull(&self, name: &str, progress: &mut dyn Progress) -> Result<(), HubError> {
        ModelLibrary::pull(self, name, progress)
    }

    fn copy(&self, source: &str, destination: &str) -> Result<(), HubError> {
        ModelLibrary::copy(self, source, destination)
    }

    fn remove(&self, name: &str) -> Result<(), HubError> {
        ModelLibrary::remove(self, name)
    }
}
