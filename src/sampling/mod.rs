//! From logits to token ids, each row with its own parameters and random stream.
