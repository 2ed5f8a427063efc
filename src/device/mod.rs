//! What hardware is here, what it can run, which to use and why.
