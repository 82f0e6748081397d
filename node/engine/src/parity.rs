//! Logits and embeddings of a checkpoint by itself, without tokenizer or scheduling: for comparing
//! implementations with each other and with reference values.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use crate::adapter::Adapter;
use crate::compute::Compute;
use crate::decoder::{Batch, Decoder, Output, PAGE_TOKENS, PageId, Row, SequenceView};
use crate::embed;
use crate::error::EngineError;
use crate::files::checkpoint::Checkpoint;
use crate::spec::Kind;
use crate::spec::pooling::Pooling;

/// A model to compute with, in one way.
pub struct Model {
    decoder: Box<dyn Decoder>,
    adapter: Option<Arc<Adapter>>,
    pooling: Option<Pooling>,
}

impl Model {
    /// Opens a GGUF file or a folder, with room for `tokens` tokens in all sequences together.
    ///
    /// # Errors
    /// Everything that can be wrong with a model.
    pub fn open(path: &Path, way: Compute, tokens: usize) -> Result<Self, EngineError> {
        let checkpoint = Checkpoint::open(path)?;
        let pages = tokens.div_ceil(PAGE_TOKENS).max(1);
        let decoder = way.load(&checkpoint, None, pages)?;
        let pooling = if path.is_dir() { Pooling::read(path)? } else { None };
        Ok(Self { decoder, adapter: None, pooling })
    }

    /// Computes with a PEFT adapter from here on.
    ///
    /// # Errors
    /// When the adapter is damaged or was made for another model.
    pub fn adapt(&mut self, folder: &Path) -> Result<(), EngineError> {
        self.adapter = Some(Arc::new(Adapter::read(folder, self.decoder.spec())?));
        Ok(())
    }

    /// The sequence is computed at once: an encoder, which neither takes chunks nor continues.
    pub fn bidirectional(&self) -> bool {
        self.decoder.spec().kind == Kind::Encoder
    }

    /// Longest sequence, in tokens.
    pub fn context(&self) -> usize {
        self.decoder.spec().context
    }

    /// Logits after every token of every sequence. All sequences are computed together, `chunk` tokens
    /// of each at a time, so that long ones go on alone when short ones have ended. An encoder computes
    /// whole sequences, whatever `chunk` is.
    ///
    /// # Shapes
    /// Returns, per sequence, a row of vocabulary length per token.
    ///
    /// # Errors
    /// When a sequence is empty or they do not fit the room together.
    pub fn logits(
        &mut self,
        sequences: &[&[u32]],
        chunk: NonZeroUsize,
    ) -> Result<Vec<Vec<Vec<f32>>>, EngineError> {
        let tables = tables(sequences, self.decoder.pages())?;
        let views: Vec<SequenceView<'_>> = tables
            .iter()
            .map(|pages| SequenceView { pages, adapter: self.adapter.as_ref() })
            .collect();
        let vocab = self.decoder.spec().vocab;
        let mut logits: Vec<Vec<Vec<f32>>> = vec![Vec::new(); sequences.len()];
        let (mut rows, mut out) = (Vec::new(), Vec::new());
        let (room, whole) = (self.decoder.rows_max(), self.bidirectional());
        if whole && sequences.iter().any(|tokens| tokens.len() > room) {
            let problem = format!("a sequence is longer than {room} tokens");
            return Err(EngineError::InvalidRequest(problem));
        }
        loop {
            rows.clear();
            for (sequence, tokens) in sequences.iter().enumerate() {
                let done = logits[sequence].len();
                let left = tokens.len() - done;
                let len = match whole {
                    true if left > room - rows.len() => 0,
                    true => left,
                    false => chunk.get().min(left).min(room - rows.len()),
                };
                rows.extend(
                    tokens[done..done + len].iter().zip(done..).map(|(&token, position)| Row {
                        sequence,
                        position,
                        token,
                        wanted: true,
                    }),
                );
            }
            if rows.is_empty() {
                return Ok(logits);
            }
            let batch = Batch { sequences: &views, rows: &rows };
            self.decoder.forward(&batch, Output::Logits, &mut out)?;
            for (row, values) in rows.iter().zip(out.chunks_exact(vocab)) {
                logits[row.sequence].push(values.to_vec());
            }
        }
    }

    /// Logits after the tokens that a prefix cache does not know, when it has seen the same sequence before: the whole
    /// pages of an earlier computation are in the table of a second one, which begins behind them. Returns how many
    /// tokens were known, too: whole pages, and not all tokens.
    ///
    /// # Shapes
    /// A row of vocabulary length per token that was not known.
    ///
    /// # Errors
    /// When the sequence is empty or does not fit the room twice.
    pub fn logits_after_hit(
        &mut self,
        tokens: &[u32],
    ) -> Result<(usize, Vec<Vec<f32>>), EngineError> {
        let known = tokens.len().saturating_sub(1) / PAGE_TOKENS * PAGE_TOKENS;
        let mut tables = tables(&[tokens, tokens], self.decoder.pages())?;
        let first = std::mem::take(&mut tables[0]);
        tables[1][..known / PAGE_TOKENS].copy_from_slice(&first[..known / PAGE_TOKENS]);
        let vocab = self.decoder.spec().vocab;
        let mut logits = Vec::new();
        for (pages, begin) in [(&first, 0), (&tables[1], known)] {
            logits.clear();
            let views = [SequenceView { pages, adapter: self.adapter.as_ref() }];
            let all: Vec<Row> = (begin..tokens.len())
                .map(|position| Row {
                    sequence: 0,
                    position,
                    token: tokens[position],
                    wanted: true,
                })
                .collect();
            let mut out = Vec::new();
            for rows in all.chunks(self.decoder.rows_max().max(1)) {
                let batch = Batch { sequences: &views, rows };
                self.decoder.forward(&batch, Output::Logits, &mut out)?;
                logits.extend(out.chunks_exact(vocab).map(<[f32]>::to_vec));
            }
        }
        Ok((known, logits))
    }

    /// Continues a prompt with the most probable token, `len` times, token by token.
    ///
    /// # Shapes
    /// Returns the tokens, and for each the logits that it was chosen from.
    ///
    /// # Errors
    /// As [`Model::logits`].
    pub fn greedy(
        &mut self,
        prompt: &[u32],
        len: usize,
    ) -> Result<Vec<(u32, Vec<f32>)>, EngineError> {
        let mut sequence = prompt.to_vec();
        let mut chosen = Vec::with_capacity(len);
        for _ in 0..len {
            let rows = self.logits(&[&sequence], NonZeroUsize::MAX)?;
            let row = rows.into_iter().flatten().next_back().unwrap_or_default();
            let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            let token = best.map_or(0, |(index, _)| index as u32);
            sequence.push(token);
            chosen.push((token, row));
        }
        Ok(chosen)
    }

    /// Embeds texts, given as token ids with their special tokens.
    ///
    /// # Errors
    /// When the model says nothing about pooling, or a text is empty or too long.
    pub fn embed(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError> {
        let pooling = self.pooling.ok_or_else(|| {
            let problem = "is missing: the model says nothing about embeddings";
            EngineError::metadata("modules.json", problem)
        })?;
        embed::embed(self.decoder.as_mut(), pooling, texts)
    }
}

/// Consecutive pages for each sequence.
fn tables(sequences: &[&[u32]], pages: usize) -> Result<Vec<Vec<PageId>>, EngineError> {
    let mut next = 0;
    let mut tables = Vec::with_capacity(sequences.len());
    for tokens in sequences {
        let end = next + tokens.len().div_ceil(PAGE_TOKENS);
        if tokens.is_empty() || end > pages {
            let problem = "a sequence is empty, or there is no room for all of them";
            return Err(EngineError::InvalidRequest(problem.to_owned()));
        }
        tables.push((next as PageId..end as PageId).collect());
        next = end;
    }
    Ok(tables)
}
