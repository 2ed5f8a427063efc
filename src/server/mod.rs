//! HTTP: routes, limits and the translation of each API to `Request`. Knows no tensors.
