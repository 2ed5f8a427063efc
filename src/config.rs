//! Flags, environment and `lantern.toml`, resolved once into validated configuration.
