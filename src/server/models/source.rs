//! Where models that are not loaded come from.

use crate::llm::{HubError, Llm, LoadError, LocalModel, ModelDescription, ModelLibrary, Progress};

/// Models that can be loaded, brought and removed by name. Everything blocks.
pub trait ModelSource: Send + Sync + 'static {
    /// What can be loaded, without the network.
    fn list(&self) -> Vec<LocalModel>;

    /// Loads one of them; `gpu_or_nothing`: rather not at all than on the CPU where a GPU could hold it.
    ///
    /// # Errors
    /// [`LoadError`].
    fn load(&self, name: &str, gpu_or_nothing: bool) -> Result<Llm, LoadError>;

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

    fn load(&self, name: &str, gpu_or_nothing: bool) -> Result<Llm, LoadError> {
        ModelLibrary::load(self, name, gpu_or_nothing)
    }

    fn describe(&self, name: &str) -> Result<ModelDescription, LoadError> {
        ModelLibrary::describe(self, name)
    }

    fn pull(&self, name: &str, progress: &mut dyn Progress) -> Result<(), HubError> {
        ModelLibrary::pull(self, name, progress)
    }

    fn remove(&self, name: &str) -> Result<(), HubError> {
        ModelLibrary::remove(self, name)
    }
}
