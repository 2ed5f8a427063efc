//! Model families: a configuration becomes a `DecoderSpec` and a table of tensor names; one decoder runs them all.
