//! Names for the contents of full blocks: a keyed hash of all tokens up to a block's end.
//!
//! Knows no blocks. The hash is SipHash-2-4 of 128 bits under a key that each engine draws, so that nobody who
//! sends prompts can aim at somebody else's block. Source: Aumasson and Bernstein, "SipHash", 2012.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher24};

use crate::request::TokenId;

/// What a block holds: its tokens, all tokens before them, and the salt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BlockKey(u128);

/// Makes [`BlockKey`]s under one engine's secret.
pub(super) struct KeyHasher {
    fresh: SipHasher24,
}

impl KeyHasher {
    pub(super) fn new(hash_key: [u8; 16]) -> Self {
        Self { fresh: SipHasher24::new_with_key(&hash_key) }
    }

    /// The parent of a sequence's first block. The leading bytes keep apart: no salt, a salt, a block.
    fn root(&self, salt: Option<&str>) -> BlockKey {
        let mut hasher = self.fresh;
        hasher.write_u8(u8::from(salt.is_some()));
        hasher.write(salt.unwrap_or_default().as_bytes());
        BlockKey(hasher.finish128().into())
    }

    fn child(&self, parent: BlockKey, tokens: &[TokenId]) -> BlockKey {
        let mut hasher = self.fresh;
        hasher.write_u8(2);
        hasher.write_u128(parent.0);
        for &token in tokens {
            hasher.write_u32(token);
        }
        BlockKey(hasher.finish128().into())
    }
}

/// The keys of one sequence's full blocks, first to last. Outlives the blocks themselves: a preempted sequence
/// finds by it what is left of them.
#[derive(Clone, Debug)]
pub struct KeyChain {
    root: BlockKey,
    keys: Vec<BlockKey>,
}

impl KeyChain {
    pub(super) fn new(hasher: &KeyHasher, salt: Option<&str>) -> Self {
        Self { root: hasher.root(salt), keys: Vec::new() }
    }

    /// Adds the keys of the blocks of `block_size` tokens that `tokens`, the sequence from its start, fills.
    pub(super) fn extend(&mut self, hasher: &KeyHasher, tokens: &[TokenId], block_size: usize) {
        for block in tokens.chunks_exact(block_size).skip(self.keys.len()) {
            let parent = self.keys.last().copied().unwrap_or(self.root);
            self.keys.push(hasher.child(parent, block));
        }
    }

    /// The keys so far, one a full block.
    pub fn keys(&self) -> &[BlockKey] {
        &self.keys
    }
}

/// A block's key is a hash already: the index takes 64 bits of it as they are.
#[derive(Default)]
pub(super) struct KeyIsHash(u64);

impl Hasher for KeyIsHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only block keys, which are one u128, are hashed by this");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(hash_key: u8, salt: Option<&str>, tokens: &[TokenId]) -> Vec<BlockKey> {
        let hasher = KeyHasher::new([hash_key; 16]);
        let mut chain = KeyChain::new(&hasher, salt);
        chain.extend(&hasher, tokens, 2);
        chain.keys().to_vec()
    }

    #[test]
    fn a_key_stands_for_all_tokens_up_to_its_end() {
        let base = keys(1, None, &[1, 2, 3, 4, 5]);
        assert_eq!(base.len(), 2);
        assert_eq!(base, keys(1, None, &[1, 2, 3, 4, 6]));
        assert_eq!(base[0], keys(1, None, &[1, 2, 9, 9])[0]);
        for (name, other) in [
            ("first token", keys(1, None, &[9, 2, 3, 4])),
            ("order", keys(1, None, &[2, 1, 3, 4])),
            ("salt", keys(1, Some("a"), &[1, 2, 3, 4])),
            ("empty salt", keys(1, Some(""), &[1, 2, 3, 4])),
            ("engine", keys(2, None, &[1, 2, 3, 4])),
            ("place", keys(1, None, &[3, 4, 3, 4])),
        ] {
            assert_ne!(base[1], other[1], "{name}");
        }
        let repeated = keys(1, None, &[7, 7, 7, 7]);
        assert_ne!(repeated[0], repeated[1]);
    }

    #[test]
    fn growing_step_by_step_gives_the_same_keys() {
        let hasher = KeyHasher::new([3; 16]);
        let tokens: Vec<TokenId> = (0..11).collect();
        let mut grown = KeyChain::new(&hasher, Some("salt"));
        for end in 0..=tokens.len() {
            grown.extend(&hasher, &tokens[..end], 2);
        }
        assert_eq!(grown.keys(), keys(3, Some("salt"), &tokens));
    }
}
