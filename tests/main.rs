//! All integration tests, in one executable: each module is one subject.

mod real_model;
mod tidy;
