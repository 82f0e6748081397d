//! A job's work and input as the engine wants them.

use allmend_engine::{ChatMessage, Input, Request, Sampling};
use allmend_protocol::ids::ResearcherId;
use allmend_protocol::job::{InferInput, InferWork};
use allmend_protocol::units::Decimal;

/// What the engine is asked.
pub(super) fn request(
    work: &InferWork,
    input: InferInput,
    forced: Vec<u32>,
    researcher: ResearcherId,
) -> Request {
    let stop = input.stop;
    let input = match input.prompt {
        Some(prompt) => Input::Prompt(prompt),
        None => Input::Chat(
            input
                .messages
                .into_iter()
                .map(|message| ChatMessage { role: message.role, content: message.content })
                .collect(),
        ),
    };
    Request {
        sampling: Sampling {
            temperature_milli: milli(work.temperature),
            top_k: work.top_k,
            top_p_milli: milli(work.top_p).min(1_000),
            seed: work.seed,
            ..Sampling::GREEDY
        },
        stop,
        forced,
        clock: i64::try_from(work.clock.as_ms() / 1_000).unwrap_or(i64::MAX),
        researcher: Some(*researcher.as_bytes()),
        adapter: work.adapter.map(|adapter| *adapter.as_bytes()),
        ..Request::new(input, work.max_tokens)
    }
}

/// Thousandths of a decimal, rounded down; the work has been checked to be at most 100.
fn milli(number: Decimal) -> u32 {
    let mantissa = i128::from(number.mantissa.max(0));
    let power = i32::from(number.exp10) + 3;
    let scale = 10i128.checked_pow(power.unsigned_abs()).unwrap_or(i128::MAX);
    let value = if power >= 0 { mantissa.saturating_mul(scale) } else { mantissa / scale };
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_become_thousandths() {
        assert_eq!(milli(Decimal { mantissa: 7, exp10: -1 }), 700);
        assert_eq!(milli(Decimal { mantissa: 1, exp10: 0 }), 1_000);
        assert_eq!(milli(Decimal { mantissa: 123_456, exp10: -6 }), 123);
        assert_eq!(milli(Decimal { mantissa: -1, exp10: 0 }), 0);
        assert_eq!(milli(Decimal { mantissa: 1, exp10: -18 }), 0);
    }
}
