//! The edges of a write that covers blocks in part: read here, or by the peer that answers for this node, and
//! merged with it before anything is written.
//!
//! All blocks of such a write are edges ([`super::request`] cuts it so), and what it keeps of them takes the place of
//! what was read: no write holds memory that was given for a read while it waits for another read's.

use bytes::Bytes;
use kagami_bitmap::Block;

use super::event::IoError;
use super::write::{Stage, Work, WriteKey};
use super::{Actions, DiskOp, DiskResult, DiskWork, Mirror};

impl Mirror {
    /// Reads the first and last block of the span where the write does not cover them.
    pub(super) fn read_edges(&mut self, key: WriteKey, out: &mut Actions) {
        if !self.may_read() {
            // Read again, and merged, once this copy may answer.
            return self.park(key);
        }
        let write = &self.writes[key.0];
        let Work::Partial { at, data } = &write.work else {
            return;
        };
        let span = write.span;
        let end = at + data.len();
        let first = *at % 4096 != 0 || end < 4096;
        let last = end % 4096 != 0 && (span.count > 1 || !first);
        let mut blocks = Vec::new();
        if first {
            blocks.push(span.first);
        }
        if last {
            blocks.push(Block(span.end().0 - 1));
        }
        assert!(!blocks.is_empty(), "a partial write has an edge");
        let here = self.has_copy();
        let write = &mut self.writes[key.0];
        write.stage = Stage::Edges(blocks.len() as u8);
        write.edges_there = !here;
        for block in blocks {
            let last = block != span.first || !first;
            if here {
                let op = DiskOp::Read {
                    offset: block.byte_offset(),
                    len: 4096,
                };
                self.submit(DiskWork::Edge { write: key, last }, op, out);
            } else {
                self.read_edge_from_peer(key, block, last, out);
            }
        }
    }

    /// A block that the write covers in part was read, here or by the peer: the span's first, or its
    /// `last`.
    pub(super) fn on_edge(
        &mut self,
        key: WriteKey,
        last: bool,
        result: DiskResult,
        by_peer: bool,
        out: &mut Actions,
    ) {
        let (stage, span) = (self.writes[key.0].stage, self.writes[key.0].span);
        let (Stage::Edges(left) | Stage::Again(left) | Stage::Dropped(left)) = stage else {
            panic!("an edge was read for a write in {stage:?}");
        };
        assert!(left > 0, "no edge was asked for");
        let wanted = matches!(stage, Stage::Edges(_));
        let peer_has_it = !by_peer && self.can_read_from_peer();
        // As a read that fails: whoever may not answer now tries it again.
        let put_off = matches!(stage, Stage::Again(_)) || wanted && !by_peer && !self.may_read();
        let again = put_off && !self.has_lost_all();
        let write = &mut self.writes[key.0];
        match result {
            Ok(block) if wanted => {
                write.stage = Stage::Edges(left - 1);
                if left == 1 {
                    write.edges[usize::from(last)] = Some(block);
                    self.merge_edges(key);
                    self.start_write(key, out);
                } else {
                    let kept = self.memory.put_together(4096, &mut |kept| {
                        kept.copy_from_slice(&block);
                    });
                    write.edges[usize::from(last)] = Some(kept);
                }
            }
            Err(_) if wanted && peer_has_it => {
                // The block can't be read here: the peer's is as good.
                let block = if last {
                    Block(span.end().0 - 1)
                } else {
                    span.first
                };
                self.read_edge_from_peer(key, block, last, out);
            }
            _ if again => {
                write.stage = Stage::Again(left - 1);
                if left == 1 {
                    write.edges = [None, None];
                    self.park(key);
                }
            }
            _ => {
                write.stage = Stage::Dropped(left - 1);
                self.answer_write(key, Err(IoError::Io), out);
                if left == 1 {
                    self.end_write(key, out);
                }
            }
        }
    }

    /// The blocks that were asked of the peer that answers for this node will not come in this session. True if
    /// the write waits for the next one, or for this node's own copy that is good by now.
    pub(super) fn reads_edges_again(&mut self, key: WriteKey) -> bool {
        let write = &mut self.writes[key.0];
        let again = write.edges_there;
        if again && matches!(write.stage, Stage::Edges(_)) {
            write.stage = Stage::Parked;
            write.edges = [None, None];
            self.parked.push(key);
        }
        again && write.stage == Stage::Parked
    }

    fn merge_edges(&mut self, key: WriteKey) {
        let write = &mut self.writes[key.0];
        let Work::Partial { at, data } = &write.work else {
            return;
        };
        let len = write.span.byte_len() as usize;
        let [first, last] = std::mem::take(&mut write.edges);
        let copy = |to: &mut [u8], from: &Option<Bytes>| {
            if let Some(block) = from {
                to.copy_from_slice(block);
            }
        };
        let whole = self.memory.put_together(len, &mut |whole| {
            copy(&mut whole[..4096], &first);
            copy(&mut whole[len - 4096..], &last);
            whole[*at..*at + data.len()].copy_from_slice(data);
        });
        write.work = Work::Whole(whole);
    }
}
