//! All rows of a run, made into what its steps need.

use std::ops::ControlFlow;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::canary::{Canaries, Form};
use super::divide::{Divided, Sides, Split, divide};
use super::example::Example;
use super::measure::MeasuredRows;
use super::order::Order;
use super::prepare::{RowsError, TOKENS_MAX, Texts};
use super::seeded::Stream;
use super::session::SessionError;
use super::settings::{Dataset, Secrets, Settings};
use super::subjects::Subjects;

/// Rows between two signs of life.
const ROWS_AT_ONCE: usize = 256;

/// What the steps of a run need of its rows.
pub(super) struct Data {
    /// Of a run that is not private.
    pub(super) order: Option<Order>,
    /// Of a private run.
    pub(super) subjects: Option<Subjects>,
    /// Held-out examples to evaluate, a bounded choice.
    pub(super) validation: Vec<Example>,
    /// What the gate's measures are taken on, if they are.
    pub(super) measured: Option<MeasuredRows>,
    /// What was planted.
    pub(super) canaries: Option<Canaries>,
    pub(super) sides: Sides,
    /// Names all examples and their order.
    pub(super) digest: String,
}

impl Data {
    /// Reads and prepares all rows. None when `keep_going` said to stop.
    ///
    /// # Errors
    /// Names the dataset and the row that cannot be trained on, or what the settings contradict.
    pub(super) fn prepare(
        texts: &Texts,
        settings: &Settings,
        datasets: Vec<Dataset<'_>>,
        secrets: &Secrets,
        keep_going: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Option<Self>, SessionError> {
        let mut sets = Vec::with_capacity(datasets.len());
        let (mut form, mut stopped) = (None, false);
        let split = Split { validation: settings.validation, seed: settings.recipe.seed };
        for (number, dataset) in datasets.into_iter().enumerate() {
            let rows = dataset.rows.enumerate().map_while(|(at, row)| {
                stopped |= at % ROWS_AT_ONCE == 0 && keep_going().is_break();
                (!stopped).then_some(row)
            });
            let rows = rows.inspect(|row| {
                if let Ok(row) = row {
                    form.get_or_insert(Form::of(row));
                }
            });
            let divided = divide(texts, number as u64, rows, &settings.preparation(), &split)
                .map_err(|source| SessionError::Rows { dataset: number + 1, source })?;
            if stopped {
                return Ok(None);
            }
            sets.push((divided, dataset.weight));
        }
        let canaries = canaries(settings, secrets, form.unwrap_or(Form::Text))?;
        let planted = match &canaries {
            Some(canaries) => canaries
                .examples(texts, &settings.preparation(), settings.canary_repeats)
                .map_err(settings_error)?,
            None => Vec::new(),
        };
        Self::arrange(settings, sets, canaries, planted).map(Some)
    }

    fn arrange(
        settings: &Settings,
        mut sets: Vec<(Divided, u32)>,
        canaries: Option<Canaries>,
        planted: Vec<Example>,
    ) -> Result<Self, SessionError> {
        let sides = sets.iter().fold(Sides::default(), |sum, (set, _)| sum.and(&set.sides));
        if sides.train.tokens + sides.validation.tokens > TOKENS_MAX {
            return Err(settings_error(RowsError::TooMuch));
        }
        let mut held_out = Vec::new();
        sets.iter_mut().for_each(|(set, _)| held_out.append(&mut set.validation));
        let measured = settings.measure.as_ref().map(|options| {
            let train: Vec<&Example> = sets.iter().flat_map(|(set, _)| &set.train).collect();
            let held_out: Vec<&Example> = held_out.iter().collect();
            MeasuredRows::choose(&train, &held_out, options)
        });
        let recipe = &settings.recipe;
        let mut stream = Stream::new("held out", &recipe.seed.to_le_bytes(), &[]);
        let chosen = stream.choose(held_out.len() as u32, settings.validation_rows_max as usize);
        let validation: Vec<Example> =
            chosen.iter().filter_map(|&at| held_out.get(at as usize).cloned()).collect();
        // Planted with the first dataset, among whose rows they are shuffled.
        if let Some((first, _)) = sets.first_mut() {
            first.train.extend(planted);
        }
        let digest = digest(settings.packing, &sets, &validation);
        let sets: Vec<(Vec<Example>, u32)> =
            sets.into_iter().map(|(set, weight)| (set.train, weight)).collect();
        let (mut order, mut subjects) = (None, None);
        match recipe.privacy {
            None => {
                let packing = settings.packing.then_some(recipe.sequence_tokens as usize);
                let (batch, accumulate) = (recipe.batch, recipe.accumulate);
                let made = Order::new(sets, packing, recipe.seed, batch, accumulate);
                order = Some(made.map_err(settings_error)?);
            }
            Some(_) => {
                if sets.iter().any(|(_, weight)| Some(weight) != sets.first().map(|(_, w)| w)) {
                    let problem = "a private run takes every subject alike: give all datasets the \
                                   same weight";
                    return Err(SessionError::Settings(problem.to_owned()));
                }
                let all = Subjects::new(sets.into_iter().flat_map(|(examples, _)| examples));
                let all = all.map_err(settings_error)?;
                if all.is_empty() {
                    return Err(SessionError::Settings("there is nothing to train on".to_owned()));
                }
                subjects = Some(all);
            }
        }
        Ok(Self { order, subjects, validation, measured, canaries, sides, digest })
    }
}

fn settings_error(error: RowsError) -> SessionError {
    SessionError::Settings(error.to_string())
}

/// The canaries of a run, if it has any.
fn canaries(
    settings: &Settings,
    secrets: &Secrets,
    form: Form,
) -> Result<Option<Canaries>, SessionError> {
    match (settings.canaries, secrets.canaries) {
        (0, _) => Ok(None),
        (count, Some(seed)) => Ok(Some(Canaries::new(seed, count, form))),
        (_, None) => Err(SessionError::Settings("canaries need a seed of their own".to_owned())),
    }
}

/// Names the examples, how they are weighted and whether they are packed: with the recipe, all that the
/// steps depend on.
fn digest(packing: bool, sets: &[(Divided, u32)], validation: &[Example]) -> String {
    let mut hash = Sha256::new();
    hash.update(b"allmend training data v1\0");
    hash.update([u8::from(packing)]);
    let mut feed = |examples: &[Example], weight: u32| {
        hash.update(weight.to_le_bytes());
        hash.update((examples.len() as u64).to_le_bytes());
        for example in examples {
            hash.update((example.ids.len() as u64).to_le_bytes());
            let ids: Vec<u8> = example.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            let labels: Vec<u8> = example.labels.iter().map(|&label| u8::from(label)).collect();
            let subject = example.subject.map_or([0; 32], |subject| subject.0);
            [ids.as_slice(), &labels, &subject].into_iter().for_each(|part| hash.update(part));
        }
    };
    sets.iter().for_each(|(set, weight)| feed(&set.train, *weight));
    feed(validation, 0);
    HEXLOWER.encode(&hash.finalize())
}
