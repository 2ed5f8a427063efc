//! The layers a decoder is made of. They call `ops` only.
