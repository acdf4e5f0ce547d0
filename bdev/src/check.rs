use crate::{BlockError, BlockIo, BlockOp, Geometry, IoCompletion, IoValue};

/// The number a malformed request fails with: the submitter's own mistake, never the wire's.
pub(crate) const MALFORMED: BlockError = BlockError::System(libc::EINVAL);

/// What is to be done with a request, before any device looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The device must do it.
    Proceed,
    /// Nothing to do: no blocks.
    Empty,
    /// Refused.
    Refuse(BlockError),
}

/// Judges `io` against the device's shape: range, buffer, read-only.
pub(crate) fn judge(io: &BlockIo, geometry: &Geometry) -> Verdict {
    if io.op == BlockOp::Flush {
        return Verdict::Proceed;
    }
    match io.lba.checked_add(io.blocks) {
        Some(end) if end <= geometry.blocks => {}
        _ => return Verdict::Refuse(BlockError::OutOfRange),
    }
    if matches!(io.op, BlockOp::Read | BlockOp::Write { .. }) {
        let expected = io.blocks.checked_mul(u64::from(geometry.block_size));
        let given = io.data.as_ref().map(|data| data.len() as u64);
        if given.is_none() || given != expected {
            return Verdict::Refuse(MALFORMED);
        }
    }
    if geometry.read_only && !matches!(io.op, BlockOp::Read | BlockOp::Extent) {
        return Verdict::Refuse(BlockError::ReadOnly);
    }
    match (io.blocks, io.op) {
        (0, BlockOp::Extent) => Verdict::Refuse(MALFORMED),
        (0, _) => Verdict::Empty,
        _ => Verdict::Proceed,
    }
}

/// The completion that ends `io` with `result`.
pub(crate) fn finish(io: BlockIo, result: Result<IoValue, BlockError>) -> IoCompletion {
    IoCompletion { tag: io.tag, result, data: io.data }
}
