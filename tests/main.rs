//! All integration tests, in one executable: each module is one subject.

mod peer;
mod real_model;
mod tidy;
