//! Tiles: which 256 hashes or entries a file holds, and how it is called (specs/log.md §4).

use std::fmt;
use std::str::FromStr;

/// Hashes or entries in a full tile.
pub const TILE_WIDTH: u16 = 256;

/// Tile levels run from 0 to this; level `L` holds tree hashes of level `8 L`.
pub const TILE_LEVEL_MAX: u8 = 63;

/// Longer paths are no tile paths: seven index groups of five bytes, prefix and suffix.
const PATH_BYTES_MAX: usize = 80;

/// What a tile holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TileKind {
    /// Tree hashes, at this tile level (0 is the level of leaf hashes).
    Hashes(u8),
    /// The entries themselves.
    Entries,
}

/// One tile: a row of up to 256 hashes of the tree, or the bundle of up to 256 entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    kind: TileKind,
    index: u64,
    width: u16,
}

/// Why numbers or a path name no tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TilePathError {
    /// The level is above 63.
    #[error("a tile level is at most 63")]
    Level,
    /// The width is not between 1 and 256.
    #[error("a tile is 1 to 256 wide")]
    Width,
    /// The path is not in the form C2SP tlog-tiles gives it, or not in its only form.
    #[error("the path names no tile")]
    Path,
}

impl Tile {
    /// Names a tile.
    ///
    /// # Errors
    /// `Level` above 63, `Width` unless between 1 and 256.
    pub const fn new(kind: TileKind, index: u64, width: u16) -> Result<Self, TilePathError> {
        if let TileKind::Hashes(level) = kind
            && level > TILE_LEVEL_MAX
        {
            return Err(TilePathError::Level);
        }
        if width == 0 || width > TILE_WIDTH {
            return Err(TilePathError::Width);
        }
        Ok(Self { kind, index, width })
    }

    /// The rightmost tile of `kind` in a log of `size` leaves, `None` if that row is empty.
    ///
    /// It is full when the row ends with a full tile.
    #[must_use]
    pub fn rightmost(kind: TileKind, size: u64) -> Option<Self> {
        let row = row_len(kind, size);
        let last = row.checked_sub(1)?;
        let width = (last % u64::from(TILE_WIDTH)) as u16 + 1;
        Some(Self { kind, index: last / u64::from(TILE_WIDTH), width })
    }

    /// The tile of `kind` that holds position `at` of its row, in a log of `size` leaves.
    #[must_use]
    pub fn holding(kind: TileKind, at: u64, size: u64) -> Option<Self> {
        let last = Self::rightmost(kind, size)?;
        let index = at / u64::from(TILE_WIDTH);
        if at >= row_len(kind, size) {
            None
        } else if index == last.index {
            Some(last)
        } else {
            Some(Self { kind, index, width: TILE_WIDTH })
        }
    }

    /// Hashes or entries.
    #[must_use]
    pub const fn kind(&self) -> TileKind {
        self.kind
    }

    /// Position among the tiles of its row.
    #[must_use]
    pub const fn index(&self) -> u64 {
        self.index
    }

    /// Hashes or entries in it, 1 to 256.
    #[must_use]
    pub const fn width(&self) -> u16 {
        self.width
    }

    /// Whether it holds fewer than 256 and will be superseded.
    #[must_use]
    pub const fn is_partial(&self) -> bool {
        self.width < TILE_WIDTH
    }

    /// The full tile at the same place.
    #[must_use]
    pub const fn full(&self) -> Self {
        Self { width: TILE_WIDTH, ..*self }
    }

    /// The directory that holds the partial tiles of this place, relative to the log.
    #[must_use]
    pub fn partial_dir(&self) -> String {
        format!("{}.p", self.full())
    }
}

/// The length of a row in a log of `size` leaves, in hashes or entries.
#[must_use]
pub const fn row_len(kind: TileKind, size: u64) -> u64 {
    match kind {
        TileKind::Entries => size,
        TileKind::Hashes(level) if level >= 8 => 0,
        TileKind::Hashes(level) => size >> (8 * level as u32),
    }
}

/// The path relative to the log: `tile/0/x001/x234/067`, `tile/entries/000.p/5`.
impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TileKind::Hashes(level) => write!(f, "tile/{level}/")?,
            TileKind::Entries => f.write_str("tile/entries/")?,
        }
        let mut group = 1_u64;
        while self.index / group >= 1000 {
            group *= 1000;
        }
        while group > 1 {
            write!(f, "x{:03}/", self.index / group % 1000)?;
            group /= 1000;
        }
        write!(f, "{:03}", self.index % 1000)?;
        if self.is_partial() {
            write!(f, ".p/{}", self.width)?;
        }
        Ok(())
    }
}

impl FromStr for Tile {
    type Err = TilePathError;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        let tile = parse(path).ok_or(TilePathError::Path)?;
        // Printing again refuses every second form (leading zeros, empty groups, signs).
        if tile.to_string() == path { Ok(tile) } else { Err(TilePathError::Path) }
    }
}

fn parse(path: &str) -> Option<Tile> {
    if path.len() > PATH_BYTES_MAX {
        return None;
    }
    let (kind, rest) = path.strip_prefix("tile/")?.split_once('/')?;
    let kind = match kind {
        "entries" => TileKind::Entries,
        level => TileKind::Hashes(level.parse().ok()?),
    };
    let (groups, width) = match rest.split_once(".p/") {
        Some((groups, width)) => (groups, width.parse().ok().filter(|w| *w < TILE_WIDTH)?),
        None => (rest, TILE_WIDTH),
    };
    let mut index = 0_u64;
    for group in groups.split('/') {
        let digits: u64 = group.strip_prefix('x').unwrap_or(group).parse().ok()?;
        index = index.checked_mul(1000)?.checked_add(digits)?;
    }
    Tile::new(kind, index, width).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_tlog_tiles() {
        let hashes = |level, index, width| Tile::new(TileKind::Hashes(level), index, width);
        for (tile, path) in [
            (hashes(0, 0, 256), "tile/0/000"),
            (hashes(3, 999, 256), "tile/3/999"),
            (hashes(0, 1_234_067, 256), "tile/0/x001/x234/067"),
            (hashes(63, 1_000, 7), "tile/63/x001/000.p/7"),
            (Tile::new(TileKind::Entries, 5, 1), "tile/entries/005.p/1"),
            (
                Tile::new(TileKind::Entries, u64::MAX, 256),
                "tile/entries/x018/x446/x744/x073/x709/x551/615",
            ),
        ] {
            let tile = tile.unwrap();
            assert_eq!(tile.to_string(), path);
            assert_eq!(path.parse(), Ok(tile));
        }
    }

    #[test]
    fn other_paths_are_refused() {
        for path in [
            "",
            "tile/0/",
            "tile/0/0",
            "tile/00/000",
            "tile/+1/000",
            "tile/64/000",
            "tile/0/x000/001",
            "tile/0/001/001",
            "tile/0/x001",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/01",
            "tile/0/../000",
            "tile/data/000",
            "/tile/0/000",
            "tile/entries/x999/x999/x999/x999/x999/x999/x999/999",
        ] {
            assert!(path.parse::<Tile>().is_err(), "{path}");
        }
        assert_eq!(Tile::new(TileKind::Entries, 0, 0), Err(TilePathError::Width));
        assert_eq!(Tile::new(TileKind::Entries, 0, 257), Err(TilePathError::Width));
    }

    #[test]
    fn the_right_edge_of_each_row() {
        let size = 70_000;
        let edge = |kind| Tile::rightmost(kind, size).map(|t| (t.index(), t.width()));
        assert_eq!(edge(TileKind::Entries), Some((273, 112)));
        assert_eq!(edge(TileKind::Hashes(0)), Some((273, 112)));
        assert_eq!(edge(TileKind::Hashes(1)), Some((1, 17)));
        assert_eq!(edge(TileKind::Hashes(2)), Some((0, 1)));
        assert_eq!(edge(TileKind::Hashes(3)), None);
        assert_eq!(edge(TileKind::Hashes(40)), None);
        let full = Tile::rightmost(TileKind::Entries, 512).unwrap();
        assert_eq!((full.index(), full.is_partial()), (1, false));
        let held = Tile::holding(TileKind::Hashes(0), 300, size).unwrap();
        assert_eq!((held.index(), held.width()), (1, 256));
        assert_eq!(Tile::holding(TileKind::Entries, size, size), None);
    }
}
