//! Attention over the paged cache: one call serves prompt chunks and single tokens alike.
