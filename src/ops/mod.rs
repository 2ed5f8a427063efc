//! The operations a step is made of, each writing into a tensor that the `Workspace` holds.
