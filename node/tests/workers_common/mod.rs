//! What tests of the worker pool need: tiny models, and runs whose events are followed.

#[path = "../../engine/tests/support/gguf_writer.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod gguf_writer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use allmend_node::worker::pipe::Ended;
use allmend_node::worker::{Pool, PoolOptions, Run, RunEvent, Task, WorkerView};
use allmend_protocol::ids::{Digest, ResearcherId};
use allmend_protocol::job::{InferInput, InferWork};
use allmend_protocol::time::Timestamp;
use allmend_protocol::units::Decimal;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::gguf_writer::GgufWriter;

/// A condition that has not come true by then never will.
const PATIENCE: Duration = Duration::from_secs(300);
/// More tokens than any test waits for: a run that only ends when something ends it.
pub(crate) const ENDLESS: u32 = 60_000;
const CONTEXT: u32 = 65_536;
const WIDTH: usize = 32;
const VOCABULARY: usize = 128;

/// A model's file and digest; the directory keeps it.
pub(crate) struct TinyModel {
    _dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
    pub(crate) digest: Digest,
}

impl TinyModel {
    /// One layer of random weights that depend on `seed`. It never ends an answer by itself: control
    /// tokens get the logit 0, and of 125 others some get more.
    pub(crate) fn new(seed: u64) -> TinyModel {
        let mut random = Random(seed);
        let mut tensor = |writer: GgufWriter, name: &str, rows: usize, columns: usize| {
            let values: Vec<f32> = (0..rows * columns).map(|_| random.next()).collect();
            writer.tensor(name, &[rows, columns], &values)
        };
        let mut writer = vocabulary(
            GgufWriter::default()
                .string("general.architecture", "llama")
                .string("general.license", "cc0-1.0")
                .u32("llama.block_count", 1)
                .u32("llama.context_length", CONTEXT)
                .u32("llama.embedding_length", WIDTH as u32)
                .u32("llama.feed_forward_length", WIDTH as u32)
                .u32("llama.attention.head_count", 2)
                .u32("llama.attention.head_count_kv", 1)
                .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
                .f32("llama.rope.freq_base", 10_000.0)
                .u32("llama.rope.dimension_count", 16),
        );
        writer = tensor(writer, "token_embd.weight", VOCABULARY, WIDTH);
        for (name, rows) in [
            ("attn_q", 32),
            ("attn_k", 16),
            ("attn_v", 16),
            ("attn_output", 32),
            ("ffn_gate", 32),
            ("ffn_up", 32),
            ("ffn_down", 32),
        ] {
            writer = tensor(writer, &format!("blk.0.{name}.weight"), rows, WIDTH);
        }
        writer = tensor(writer, "output.weight", VOCABULARY, WIDTH);
        for name in ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"] {
            writer = writer.tensor(name, &[WIDTH], &[1.0; WIDTH]);
        }
        for tensor in writer.tensors.iter_mut().filter(|tensor| tensor.name == "output.weight") {
            tensor.bytes[..3 * WIDTH * 4].fill(0);
        }
        let bytes = writer.to_bytes();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        std::fs::write(&path, &bytes).unwrap();
        TinyModel { _dir: dir, path, digest: Digest::of(&bytes) }
    }
}

/// Knuth's 64-bit linear congruential generator, the upper bits as a number in -1..1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// 128 tokens: three control tokens, then single characters.
fn vocabulary(writer: GgufWriter) -> GgufWriter {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    // The byte-level alphabet: printable characters stand for themselves, 0x80.. for U+0122.. .
    tokens.extend((0x21..=0x7eu8).map(|byte| char::from(byte).to_string()));
    tokens.extend(["\u{120}".to_owned(), "\u{10a}".to_owned(), "\u{c3}".to_owned()]);
    tokens
        .extend((0x80..=0x9bu32).filter_map(|byte| char::from_u32(byte + 0xa2)).map(String::from));
    assert_eq!(tokens.len(), VOCABULARY);
    let kinds: Vec<i32> = (0..VOCABULARY).map(|id| if id < 3 { 3 } else { 1 }).collect();
    writer
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", "gpt-2")
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .strings::<&str>("tokenizer.ggml.merges", &[])
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
}

/// A pool whose workers are this package's own binary.
pub(crate) fn pool(slots: u16, models_loaded: u16) -> Pool {
    Pool::new(options(slots, models_loaded))
}

pub(crate) fn options(slots: u16, models_loaded: u16) -> PoolOptions {
    PoolOptions {
        gpu: None,
        program: Path::new(env!("CARGO_BIN_EXE_allmend")).to_owned(),
        arguments: vec!["worker".into()],
        slots,
        models_loaded,
        // Tests run side by side: more threads than processors would wait for one another.
        threads: 1,
        memory_mib: 1_024,
        context_tokens_max: CONTEXT,
    }
}

/// A run to be given to a pool, and the other end of its events.
pub(crate) fn run(
    model: &TinyModel,
    slot: u16,
    prompt: &str,
    max_tokens: u32,
    events_max: usize,
) -> (Run, mpsc::Receiver<RunEvent>) {
    let (events, receiver) = mpsc::channel(events_max);
    let one = Decimal { mantissa: 1, exp10: 0 };
    let run = Run {
        slot,
        model: model.digest,
        path: model.path.clone(),
        work: InferWork {
            max_tokens,
            temperature: Decimal { mantissa: 0, exp10: 0 },
            top_k: 0,
            top_p: one,
            seed: 7,
            clock: Timestamp::from_ms(0),
            prompt_tokens_max: 100,
            adapter: None,
        },
        input: InferInput {
            messages: Vec::new(),
            prompt: Some(prompt.to_owned()),
            stop: Vec::new(),
        },
        forced: Vec::new(),
        adapter: None,
        researcher: ResearcherId::from_bytes([slot as u8; 32]),
        events,
        cancel: CancellationToken::new(),
    };
    (run, receiver)
}

/// What has been seen of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) pid: Option<u32>,
    pub(crate) prefilled: Option<(u32, u32)>,
    pub(crate) ids: Vec<u32>,
    pub(crate) ended: Option<Ended>,
}

/// A run whose events are read as they come.
pub(crate) struct Followed {
    pub(crate) cancel: CancellationToken,
    seen: watch::Receiver<Seen>,
    _reader: JoinHandle<()>,
}

impl Followed {
    /// Gives a run to the pool.
    pub(crate) fn give(
        pool: &Pool,
        model: &TinyModel,
        slot: u16,
        prompt: &str,
        max: u32,
    ) -> Followed {
        let (run, mut events) = run(model, slot, prompt, max, 256);
        let cancel = run.cancel.clone();
        let (sender, seen) = watch::channel(Seen::default());
        let reader = tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                sender.send_modify(|seen| {
                    assert!(seen.ended.is_none(), "something follows the end");
                    match event {
                        RunEvent::Begun { pid, licence } => {
                            assert_eq!(licence.as_deref(), Some("cc0-1.0"));
                            seen.pid = pid;
                        }
                        RunEvent::Prefilled { done_tokens, total_tokens } => {
                            seen.prefilled = Some((done_tokens, total_tokens));
                        }
                        RunEvent::Token { index, id, .. } => {
                            assert_eq!(index as usize, seen.ids.len(), "a token is missing");
                            seen.ids.push(id);
                        }
                        RunEvent::Ended(ended) => seen.ended = Some(ended),
                    }
                });
            }
        });
        pool.give(Task::Run(Box::new(run))).unwrap();
        Followed { cancel, seen, _reader: reader }
    }

    /// Waits until what is seen is as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl FnMut(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.clone();
        let found = tokio::time::timeout(PATIENCE, seen.wait_for(wanted)).await;
        match found {
            Ok(Ok(seen)) => seen.clone(),
            Ok(Err(_)) => panic!("{what}: events ended without it: {:?}", self.now()),
            Err(_) => panic!("waited in vain for {what}: {:?}", self.now()),
        }
    }

    pub(crate) async fn ended(&self) -> Ended {
        self.until("the end", |seen| seen.ended.is_some()).await.ended.unwrap()
    }

    /// Waits for many more tokens than may be on their way: the run goes on.
    pub(crate) async fn goes_on(&self) {
        let more = self.now().ids.len() + 2_000;
        self.until("more tokens", |seen| seen.ids.len() >= more).await;
        assert!(self.now().ended.is_none());
    }

    pub(crate) fn now(&self) -> Seen {
        self.seen.borrow().clone()
    }
}

/// Waits until the pool's workers are as wanted.
pub(crate) async fn workers(
    pool: &Pool,
    what: &str,
    wanted: impl FnMut(&Vec<WorkerView>) -> bool,
) -> Vec<WorkerView> {
    let mut watch = pool.watch();
    match tokio::time::timeout(PATIENCE, watch.wait_for(wanted)).await {
        Ok(found) => found.unwrap().clone(),
        Err(_) => panic!("waited in vain for {what}: {:?}", pool.workers()),
    }
}
