//! Prompt lookup (Saxena 2023): answers repeat what stands in the prompt, so the tokens that followed the
//! last occurrence of the present ending are a good guess at what comes next.
//!
//! A guess costs rows of a step and nothing else: the sampler decides every token as it would have without.

/// Longest and shortest ending that is looked for. Longer ones are looked for first.
const ENDING_TOKENS: [usize; 3] = [4, 3, 2];
/// How far back an ending is looked for; bounds the work of one guess.
const LOOK_BACK_TOKENS: usize = 8_192;
/// Guesses of a new sequence.
const GUESS_TOKENS_START: usize = 3;
/// Steps without a guess after one that was entirely wrong, doubled each time up to this.
const PAUSE_STEPS_MAX: u32 = 32;

/// How well guessing goes for one sequence, and hence how much of it is done.
#[derive(Clone, Debug)]
pub(super) struct Drafting {
    guess: usize,
    pause: u32,
    next_pause: u32,
}

impl Default for Drafting {
    fn default() -> Self {
        Self { guess: GUESS_TOKENS_START, pause: 0, next_pause: 1 }
    }
}

impl Drafting {
    /// Guesses at most `most` tokens that may follow `tokens`.
    pub(super) fn guess<'a>(&mut self, tokens: &'a [u32], most: usize) -> &'a [u32] {
        if self.pause > 0 {
            self.pause -= 1;
            return &[];
        }
        look_up(tokens, self.guess.min(most))
    }

    /// Learns how many of the guessed tokens were right.
    pub(super) fn learn(&mut self, guessed: usize, right: usize) {
        if guessed == 0 {
            return;
        }
        if right == 0 {
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(PAUSE_STEPS_MAX);
            self.guess = (self.guess / 2).max(1);
        } else {
            self.next_pause = 1;
            // One more than was right; twice as many when all were and the end was not in sight.
            self.guess = if right == guessed { (self.guess * 2).min(64) } else { right + 1 };
        }
    }
}

/// Up to `most` tokens that followed the latest earlier occurrence of the longest ending that has one.
fn look_up(tokens: &[u32], most: usize) -> &[u32] {
    let from = tokens.len().saturating_sub(LOOK_BACK_TOKENS);
    for len in ENDING_TOKENS {
        let Some(start) = tokens.len().checked_sub(len).filter(|&start| start > from) else {
            continue;
        };
        let (before, ending) = (&tokens[from..tokens.len() - 1], &tokens[start..]);
        if let Some(at) = before.windows(len).rposition(|window| window == ending) {
            let after = from + at + len;
            return &tokens[after..tokens.len().min(after + most)];
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_occurrence_of_the_longest_ending_is_continued() {
        assert_eq!(look_up(&[1, 2, 3, 7, 8, 1, 2, 3], 2), [7, 8]);
        assert_eq!(look_up(&[9, 2, 3, 4, 1, 2, 3, 5, 9, 2, 3], 1), [4]);
        assert_eq!(look_up(&[2, 3, 4, 2, 3, 5, 2, 3], 3), [5, 2, 3]);
        // A run continues itself.
        assert_eq!(look_up(&[6, 6, 6], 5), [6]);
        for nothing in [&[][..], &[1], &[1, 2], &[1, 2, 3, 4, 5]] {
            assert!(look_up(nothing, 4).is_empty());
        }
    }

    #[test]
    fn wrong_guesses_become_shorter_and_rarer() {
        let mut drafting = Drafting::default();
        let tokens = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2];
        assert_eq!(drafting.guess(&tokens, 8), [3, 4, 5]);
        drafting.learn(3, 3);
        assert_eq!(drafting.guess(&tokens, 8).len(), 6);
        drafting.learn(6, 1);
        assert_eq!(drafting.guess(&tokens, 8).len(), 2);
        for pause in [1, 2, 4] {
            drafting.learn(2, 0);
            for _ in 0..pause {
                assert!(drafting.guess(&tokens, 8).is_empty());
            }
            assert_eq!(drafting.guess(&tokens, 8).len(), 1);
        }
    }
}
