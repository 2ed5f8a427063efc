//! Model names, the catalog, downloads and the local store. Knows nothing of tensors or HTTP serving.
