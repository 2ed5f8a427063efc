//! CPU kernels behind run-time detection, and the thread pool they share.
