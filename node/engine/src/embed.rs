//! Embeddings: hidden states of whole texts, pooled to one vector each.

use crate::decoder::{Batch, Decoder, Output, PAGE_TOKENS, PageId, Row, SequenceView};
use crate::error::EngineError;
use crate::spec::pooling::Pooling;

/// Embeds texts, given as token ids with their special tokens, as many at once as the decoder takes. Uses
/// its pages from the first on, so nobody else may have any of them.
///
/// # Shapes
/// Returns a vector of the model's width per text.
///
/// # Errors
/// When a text is empty or longer than the model, or the decoder, takes.
pub(crate) fn embed(
    decoder: &mut dyn Decoder,
    pooling: Pooling,
    texts: &[Vec<u32>],
) -> Result<Vec<Vec<f32>>, EngineError> {
    let limit = decoder.rows_max().min(decoder.spec().context);
    let limit = limit.min(pooling.tokens_max.unwrap_or(limit));
    let mut vectors = Vec::with_capacity(texts.len());
    let mut rest = texts;
    while !rest.is_empty() {
        let (mut rows, mut pages) = (0, 0);
        let fitting = rest.iter().take_while(|text| {
            rows += text.len();
            pages += text.len().div_ceil(PAGE_TOKENS);
            !text.is_empty()
                && text.len() <= limit
                && rows <= decoder.rows_max()
                && pages <= decoder.pages()
        });
        let (now, later) = rest.split_at(fitting.count());
        if let ([], Some(text)) = (now, later.first()) {
            let problem = format!("a text of {} tokens is not in 1..={limit}", text.len());
            return Err(EngineError::InvalidRequest(problem));
        }
        vectors.extend(batch(decoder, pooling, now)?);
        rest = later;
    }
    Ok(vectors)
}

fn batch(
    decoder: &mut dyn Decoder,
    pooling: Pooling,
    texts: &[Vec<u32>],
) -> Result<Vec<Vec<f32>>, EngineError> {
    let mut next = 0;
    let tables: Vec<Vec<PageId>> = texts
        .iter()
        .map(|text| {
            let first = next;
            next += text.len().div_ceil(PAGE_TOKENS) as PageId;
            (first..next).collect()
        })
        .collect();
    let sequences: Vec<SequenceView<'_>> =
        tables.iter().map(|pages| SequenceView { pages, adapter: None }).collect();
    let rows: Vec<Row> = texts
        .iter()
        .enumerate()
        .flat_map(|(sequence, text)| {
            text.iter().enumerate().map(move |(position, &token)| Row {
                sequence,
                position,
                token,
                wanted: true,
            })
        })
        .collect();
    let mut states = Vec::new();
    decoder.forward(&Batch { sequences: &sequences, rows: &rows }, Output::Hidden, &mut states)?;
    let width = decoder.spec().width;
    let mut rest = states.as_slice();
    let pooled = texts.iter().map(|text| {
        let (own, later) = rest.split_at((text.len() * width).min(rest.len()));
        rest = later;
        pooling.apply(own, width)
    });
    Ok(pooled.collect())
}
