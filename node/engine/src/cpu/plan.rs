//! What one batch asks for, checked and cut into units of work before anybody computes.

use std::ops::Range;

use super::lanes::LANES;
use super::pack::layout::BLOCK;
use super::pages::Pages;
use crate::decoder::{Batch, Row};
use crate::error::EngineError;
use crate::spec::{Kind, ModelSpec};

/// Queries that one unit of attention takes together at most, unless one row has more: enough to share what is loaded of
/// a page, few enough for their scores to stay in the cache.
const QUERIES_PER_UNIT: usize = 24;

/// Rows of one sequence, which stand together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Index of the sequence in the batch.
    pub(crate) sequence: usize,
    /// Index of its first row.
    pub(crate) row: usize,
    pub(crate) rows: usize,
    /// Position of the first row.
    pub(crate) position: usize,
}

/// Positions from which dividing heads further pays for the keys and values that are then loaded twice.
const LONG: usize = 128;

/// Attention of some rows of a span over one key-value head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    pub(crate) span: Span,
    /// Index of the first row, within the batch.
    pub(crate) row: usize,
    pub(crate) rows: usize,
    pub(crate) kv_head: usize,
    /// The query heads: those that belong to the key-value head, or some of them.
    pub(crate) heads: Range<usize>,
}

/// A checked batch.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) batch: &'a Batch<'a>,
    /// The longest first, so that members finish together.
    pub(crate) units: Vec<Unit>,
    /// Pieces of the spans whose sequences have an adapter.
    pub(crate) adapted: Vec<Span>,
    /// Rows whose outputs are wanted.
    pub(crate) wanted: Vec<usize>,
    /// Pages of the longest sequence, as far as it is seen.
    pub(crate) pages_max: usize,
    /// Every sequence has one row and every key-value head one unit: whoever attends for a head can write its key
    /// and value too.
    pub(crate) single: bool,
}

impl<'a> Plan<'a> {
    /// Checks that rows, tables and ids belong together.
    ///
    /// # Errors
    /// When they do not: a fault of the caller, and still no reason to touch memory that is somebody else's.
    pub(crate) fn new(
        batch: &'a Batch<'a>,
        spec: &ModelSpec,
        pages: &Pages,
        rows_max: usize,
        members: usize,
    ) -> Result<Self, EngineError> {
        let rows = batch.rows;
        if rows.len() > rows_max {
            return Err(wrong(format!("{} rows, at most {rows_max} are possible", rows.len())));
        }
        let mut spans: Vec<Span> = Vec::new();
        let mut seen = vec![false; batch.sequences.len()];
        for (index, row) in rows.iter().enumerate() {
            match spans.last_mut() {
                Some(span) if span.sequence == row.sequence => {
                    if row.position != span.position + span.rows {
                        return Err(wrong(format!("row {index} is out of order")));
                    }
                    span.rows += 1;
                }
                _ => {
                    match seen.get_mut(row.sequence) {
                        Some(seen) if !*seen => *seen = true,
                        _ => return Err(wrong(format!("row {index} has no sequence of its own"))),
                    }
                    let Row { sequence, position, .. } = *row;
                    spans.push(Span { sequence, row: index, rows: 1, position });
                }
            }
        }
        check_rows(rows, spec)?;
        let mut pages_max = 0;
        for span in &spans {
            let sequence = batch.sequences[span.sequence];
            let table = span.end().div_ceil(LANES);
            let Some(table) = sequence.pages.get(..table) else {
                return Err(wrong(format!("sequence {} has too few pages", span.sequence)));
            };
            if table.iter().any(|page| *page as usize >= pages.count()) {
                return Err(wrong(format!("sequence {} has a page too many", span.sequence)));
            }
            if spec.kind == Kind::Encoder && span.position != 0 {
                return Err(wrong("an encoder's sequence is cut".to_owned()));
            }
            if sequence.adapter.is_some_and(|adapter| !adapter.fits(spec)) {
                return Err(wrong("the adapter belongs to another model".to_owned()));
            }
            pages_max = pages_max.max(table.len());
        }
        let wanted = rows.iter().enumerate().filter(|(_, row)| row.wanted).map(|(i, _)| i);
        let single_rows = spans.iter().all(|span| span.rows == 1);
        let pieces = if single_rows { pieces(&spans, spec, members) } else { 1 };
        let single = single_rows && pieces == 1;
        let units = units(&spans, spec, pieces);
        let adapted = adapted(&spans, batch);
        Ok(Self { batch, units, adapted, wanted: wanted.collect(), pages_max, single })
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.batch.rows.len()
    }

    /// Rows of a unit at most.
    pub(crate) fn rows_per_unit(spec: &ModelSpec) -> usize {
        (QUERIES_PER_UNIT / (spec.heads / spec.kv_heads)).max(1)
    }
}

impl Span {
    /// The position after its last row.
    pub(crate) fn end(&self) -> usize {
        self.position + self.rows
    }
}

fn check_rows(rows: &[Row], spec: &ModelSpec) -> Result<(), EngineError> {
    let positions = spec.embedding.positions;
    let positions = positions.map(|positions| positions.rows.saturating_sub(positions.offset));
    for row in rows {
        if row.token as usize >= spec.vocab {
            return Err(wrong(format!("token {} of {}", row.token, spec.vocab)));
        }
        if positions.is_some_and(|positions| row.position >= positions) {
            return Err(wrong(format!("position {} has no embedding", row.position)));
        }
    }
    Ok(())
}

/// Into how many pieces the query heads of a key-value head are to be cut, so that few heads keep all members equally
/// busy. Heads do not depend on each other, so this changes no result.
fn pieces(spans: &[Span], spec: &ModelSpec, members: usize) -> usize {
    let (units, group) = (spans.len() * spec.kv_heads, spec.heads / spec.kv_heads);
    let uneven = units < 4 * members && !units.is_multiple_of(members);
    let long = spans.iter().any(|span| span.position >= LONG);
    // A unit quantises what it gives, and blocks must not be cut.
    let whole = spec.head_dim.is_multiple_of(BLOCK);
    if uneven && long && whole { group.min(2) } else { 1 }
}

fn units(spans: &[Span], spec: &ModelSpec, pieces: usize) -> Vec<Unit> {
    let per_unit = Plan::rows_per_unit(spec);
    let group = spec.heads / spec.kv_heads;
    let per_piece = group.div_ceil(pieces);
    let mut units = Vec::new();
    for span in spans {
        for first in (0..span.rows).step_by(per_unit) {
            let rows = per_unit.min(span.rows - first);
            for kv_head in 0..spec.kv_heads {
                let end = (kv_head + 1) * group;
                for head in (kv_head * group..end).step_by(per_piece) {
                    let heads = head..end.min(head + per_piece);
                    units.push(Unit { span: *span, row: span.row + first, rows, kv_head, heads });
                }
            }
        }
    }
    let work = |unit: &Unit| {
        let seen = unit.span.position + unit.row - unit.span.row + unit.rows;
        unit.heads.len() * unit.rows * seen
    };
    units.sort_by_key(|unit| std::cmp::Reverse(work(unit)));
    units
}

/// Rows that an adapter is applied to at a time.
const ROWS_ADAPTED: usize = 16;

fn adapted(spans: &[Span], batch: &Batch<'_>) -> Vec<Span> {
    let with = spans.iter().filter(|span| batch.sequences[span.sequence].adapter.is_some());
    with.flat_map(|span| {
        (0..span.rows).step_by(ROWS_ADAPTED).map(|first| Span {
            row: span.row + first,
            rows: ROWS_ADAPTED.min(span.rows - first),
            position: span.position + first,
            ..*span
        })
    })
    .collect()
}

fn wrong(problem: String) -> EngineError {
    EngineError::Compute(candle_core::Error::Msg(format!("batch: {problem}")))
}
