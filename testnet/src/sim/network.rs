//! A network that loses, repeats, delays, reorders and splits.

use super::draw::Draw;
use super::federation::NODES;

/// What happens to messages under way.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    draw: Draw,
    /// Messages lost, out of a thousand.
    loss: u64,
    /// Messages delivered twice, out of a thousand.
    duplicates: u64,
    /// Messages that take very long, out of a thousand.
    slow: u64,
    /// Which side of the split each node is on, while there is one.
    sides: Option<[bool; NODES]>,
}

/// What becomes of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It arrives after so long, and perhaps once more.
    Arrives {
        /// In milliseconds.
        after: u64,
        /// A second time, in milliseconds.
        again: Option<u64>,
    },
    /// It never does.
    Lost,
}

impl Network {
    /// A network as bad as the seed says.
    pub(crate) fn new(mut draw: Draw) -> Network {
        let (loss, duplicates, slow) = (draw.below(200), draw.below(100), draw.below(100));
        Network { draw, loss, duplicates, slow, sides: None }
    }

    /// Splits the nodes in two.
    pub(crate) fn split(&mut self) {
        let mut sides = [false; NODES];
        let share = self.draw.within(100, 900);
        for side in &mut sides {
            *side = self.draw.per_mille(share);
        }
        self.sides = Some(sides);
    }

    /// Joins the sides again.
    pub(crate) fn join(&mut self) {
        self.sides = None;
    }

    /// No more loss, repeats or splits.
    pub(crate) fn heal(&mut self) {
        self.join();
        (self.loss, self.duplicates, self.slow) = (0, 0, 0);
    }

    /// Whether two nodes are on the same side.
    pub(crate) fn joined(&self, a: usize, b: usize) -> bool {
        self.sides.is_none_or(|sides| sides[a] == sides[b])
    }

    /// Draws the fate of a message between two nodes.
    pub(crate) fn fate(&mut self, from: usize, to: usize) -> Fate {
        if from == to {
            return Fate::Arrives { after: 0, again: None };
        }
        if !self.joined(from, to) || self.draw.per_mille(self.loss) {
            return Fate::Lost;
        }
        let after = self.delay();
        let again = self.draw.per_mille(self.duplicates).then(|| self.delay());
        Fate::Arrives { after, again }
    }

    /// How long something on an open stream takes.
    pub(crate) fn delay(&mut self) -> u64 {
        if !self.draw.per_mille(self.slow) {
            self.draw.within(1, 60)
        } else if self.draw.per_mille(700) {
            self.draw.within(200, 5_000)
        } else {
            // Longer than any wait of the protocol: what comes now is of another time.
            self.draw.within(4_000, 20_000)
        }
    }

    /// Whether the sender learns that a message was lost.
    pub(crate) fn loss_is_noticed(&mut self) -> bool {
        self.draw.per_mille(400)
    }
}
