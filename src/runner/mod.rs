//! Runs one step of the model: input batch, KV storage, memory plan.
