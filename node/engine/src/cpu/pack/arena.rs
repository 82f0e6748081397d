//! Memory for packed weights: rooms in a few large stretches of address space.
//!
//! A model has hundreds of matrices of less than a huge page each. One after the other in large stretches they can
//! lie on huge pages all the same, which spares address translations while they are streamed. They do so only after a while:
//! in a virtual machine that returns free memory to its host, the first touch of a huge page was seen to take 5.6 ms, five
//! times as long as that of the same memory in small pages, of which the system always has some at hand. So memory is filled in
//! small pages, and the system asked to put larger ones in their place when it finds the time.
//! Rooms are never given back one by one; a stretch goes when its last room does.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::{MmapMut, MmapOptions};

/// What rooms start at a multiple of: a cache line.
const ALIGNMENT: usize = 64;

/// Address space that is asked for at a time. What is not used of it takes no memory.
const STRETCH: usize = 64 << 20;

/// A huge page, on the systems whose size of it matters here. In less than one nothing can be gained.
#[cfg(target_os = "linux")]
const HUGE_PAGE: usize = 2 << 20;

/// Gives out rooms.
#[derive(Debug)]
pub struct Arena {
    stretch_bytes: usize,
    stretches: Vec<Arc<Stretch>>,
    current: Option<Arc<Stretch>>,
    /// Bytes of the current stretch that are given out.
    used: usize,
}

impl Arena {
    /// For the weights of a whole model.
    pub fn for_model() -> Self {
        Self { stretch_bytes: STRETCH, stretches: Vec::new(), current: None, used: 0 }
    }

    /// For single matrices: each room has a stretch of its own, no larger than it needs.
    pub fn for_matrix() -> Self {
        Self { stretch_bytes: 0, stretches: Vec::new(), current: None, used: 0 }
    }

    /// A room of `len` bytes, all zero.
    ///
    /// # Errors
    /// When the system refuses address space.
    pub(super) fn room(&mut self, len: usize) -> io::Result<Room> {
        let start = self.used.next_multiple_of(ALIGNMENT);
        let fitting = self
            .current
            .as_ref()
            .filter(|stretch| start.checked_add(len).is_some_and(|end| end <= stretch.map.len()));
        let (stretch, start) = match fitting {
            Some(stretch) => (Arc::clone(stretch), start),
            None => {
                let stretch = Arc::new(Stretch::new(len.max(self.stretch_bytes))?);
                self.stretches.push(Arc::clone(&stretch));
                // A stretch that has just enough for this room leaves the current one to the next ones.
                if len >= self.stretch_bytes {
                    return Ok(Room { stretch, start: 0, len });
                }
                self.current = Some(Arc::clone(&stretch));
                (stretch, 0)
            }
        };
        self.used = start + len;
        Ok(Room { stretch, start, len })
    }

    /// Says that all rooms are filled, so that larger pages may take the place of small ones, where the system
    /// grants it; nothing depends on it.
    pub fn filled(self) {
        #[cfg(target_os = "linux")]
        for stretch in self.stretches.iter().filter(|stretch| stretch.map.len() >= HUGE_PAGE) {
            let _ = stretch.map.advise(memmap2::Advice::HugePage);
        }
    }
}

/// One mapping of memory.
#[derive(Debug)]
struct Stretch {
    /// Owns the memory; used only through `start`.
    map: MmapMut,
    start: *mut u8,
}

// SAFETY: the memory behind `start` is used through rooms alone, which do not overlap and which borrow like slices.
unsafe impl Send for Stretch {}
// SAFETY: as above.
unsafe impl Sync for Stretch {}

impl Stretch {
    fn new(len: usize) -> io::Result<Self> {
        let mut map = MmapOptions::new().len(len).map_anon()?;
        let start = map.as_mut_ptr();
        Ok(Self { map, start })
    }
}

/// Some bytes that belong to whoever holds the room.
#[derive(Debug)]
pub(super) struct Room {
    stretch: Arc<Stretch>,
    start: usize,
    len: usize,
}

impl Deref for Room {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: inside the stretch, which lives as long as the room, and zeroed by the system; rooms do not overlap, so
        // nobody writes these bytes but through a mutable borrow of this room.
        unsafe { std::slice::from_raw_parts(self.stretch.start.add(self.start), self.len) }
    }
}

impl DerefMut for Room {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this borrow is the only one of the room.
        unsafe { std::slice::from_raw_parts_mut(self.stretch.start.add(self.start), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: rooms are zero, aligned and apart, whatever their sizes, also those too large for a stretch.
    #[test]
    fn rooms_do_not_overlap() {
        for mut arena in [Arena::for_model(), Arena::for_matrix()] {
            let sizes = [1, 64, 100, 5_000, STRETCH / 2, 3, STRETCH / 2 + 1, STRETCH + 1, 700];
            let mut rooms: Vec<Room> = sizes.iter().map(|len| arena.room(*len).unwrap()).collect();
            for (number, room) in rooms.iter_mut().enumerate() {
                assert_eq!(room.as_ptr() as usize % ALIGNMENT, 0);
                assert_eq!(room.len(), sizes[number]);
                let (first, last) = (room[0], room[room.len() - 1]);
                assert_eq!((first, last), (0, 0), "room {number}");
                let end = room.len() - 1;
                (room[0], room[end]) = (number as u8 + 1, number as u8 + 1);
            }
            drop(arena);
            for (number, room) in rooms.iter().enumerate() {
                let expected = number as u8 + 1;
                assert_eq!((room[0], room[room.len() - 1]), (expected, expected));
            }
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(Arena::for_model().room(isize::MAX as usize).is_err());
    }
}
