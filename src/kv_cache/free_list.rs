//! The free blocks in the order in which they are reused.
//!
//! Knows no contents and no reference counts: a doubly linked ring over one `Vec`, every operation O(1).

use super::BlockId;

#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
}

/// A ring of links, one a block, and one more that joins its ends. A block outside the ring links to itself.
pub(super) struct FreeList {
    links: Vec<Link>,
    len: usize,
}

impl FreeList {
    /// A list of all blocks `0 .. num_blocks`, lowest first.
    pub(super) fn full(num_blocks: u32) -> Self {
        let links = (0..=num_blocks).map(|node| Link { previous: node, next: node }).collect();
        let mut list = Self { links, len: 0 };
        for block in 0..num_blocks {
            list.push_back(BlockId(block));
        }
        list
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Makes `block` the last to be reused.
    pub(super) fn push_back(&mut self, block: BlockId) {
        self.insert_before(block, self.joint());
    }

    /// Makes `block` the first to be reused.
    pub(super) fn push_front(&mut self, block: BlockId) {
        let first = self.links[self.joint() as usize].next;
        self.insert_before(block, first);
    }

    pub(super) fn pop_front(&mut self) -> Option<BlockId> {
        let first = self.links[self.joint() as usize].next;
        if first == self.joint() {
            return None;
        }
        self.remove(BlockId(first));
        Some(BlockId(first))
    }

    /// Takes `block` out, wherever it stands.
    pub(super) fn remove(&mut self, block: BlockId) {
        let Link { previous, next } = self.links[block.index()];
        assert!(next != block.0, "{block:?} is not in the free list");
        self.links[previous as usize].next = next;
        self.links[next as usize].previous = previous;
        self.links[block.index()] = Link { previous: block.0, next: block.0 };
        self.len -= 1;
    }

    /// Knows the blocks `0 .. num_blocks` from now on, in the same order: those that go were free, and those that come are
    /// the first to be reused.
    pub(super) fn resize(&mut self, num_blocks: u32) {
        let known = self.joint();
        for block in num_blocks..known {
            self.remove(BlockId(block));
        }
        let free: Vec<BlockId> = std::iter::from_fn(|| self.pop_front()).collect();
        self.links = (0..=num_blocks).map(|node| Link { previous: node, next: node }).collect();
        for block in (known..num_blocks).map(BlockId).chain(free) {
            self.push_back(block);
        }
    }

    fn joint(&self) -> u32 {
        (self.links.len() - 1) as u32
    }

    fn insert_before(&mut self, block: BlockId, next: u32) {
        assert!(self.links[block.index()].next == block.0, "{block:?} is in the free list already");
        let previous = self.links[next as usize].previous;
        self.links[block.index()] = Link { previous, next };
        self.links[previous as usize].next = block.0;
        self.links[next as usize].previous = block.0;
        self.len += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(mut list: FreeList) -> Vec<u32> {
        std::iter::from_fn(|| list.pop_front()).map(|block| block.0).collect()
    }

    #[test]
    fn comes_out_in_order_of_reuse() {
        let mut list = FreeList::full(5);
        for block in [0, 3, 4] {
            list.remove(BlockId(block));
        }
        assert_eq!(list.len(), 2);
        list.push_back(BlockId(0));
        list.push_front(BlockId(4));
        assert_eq!(list.len(), 4);
        assert_eq!(drain(list), [4, 1, 2, 0]);
    }

    #[test]
    fn an_empty_list_takes_blocks_again() {
        let mut list = FreeList::full(2);
        assert_eq!((list.pop_front(), list.pop_front(), list.pop_front()), (Some(BlockId(0)), Some(BlockId(1)), None));
        list.push_front(BlockId(1));
        assert_eq!(drain(list), [1]);
    }

    #[test]
    fn blocks_that_go_leave_the_order_and_those_that_come_are_reused_first() {
        let mut list = FreeList::full(5);
        list.remove(BlockId(0));
        list.remove(BlockId(1));
        list.push_back(BlockId(1));
        list.resize(3);
        assert_eq!(list.len(), 2);
        list.push_back(BlockId(0));
        list.resize(5);
        assert_eq!(drain(list), [3, 4, 2, 1, 0]);
    }

    #[test]
    #[should_panic(expected = "BlockId(2) is not in the free list")]
    fn a_block_in_use_does_not_go() {
        let mut list = FreeList::full(3);
        list.remove(BlockId(2));
        list.resize(1);
    }

    #[test]
    #[should_panic(expected = "BlockId(1) is in the free list already")]
    fn a_block_is_freed_once() {
        FreeList::full(2).push_back(BlockId(1));
    }
}
