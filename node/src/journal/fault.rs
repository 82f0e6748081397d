//! A disk that fails on purpose: torn writes, failing syncs, power cuts that forget.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::storage::{SegmentFile, Storage};

/// Sectors are written whole or not at all, in any order.
const SECTOR: usize = 64;

/// Small deterministic generator (splitmix64), so that a seed replays a crash.
#[derive(Clone, Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below.max(1)
    }
}

#[derive(Clone, Debug, Default)]
struct File {
    cached: Vec<u8>,
    platter: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u32, File>,
    /// Bytes that may still be written before the power goes.
    power: Option<usize>,
    /// Syncs that may still succeed before one fails.
    syncs: Option<usize>,
    free: Option<u64>,
    sync_count: usize,
}

/// All segments in memory, with what of them has reached the platter.
#[derive(Clone, Debug, Default)]
pub(super) struct FaultyDisk(Arc<Mutex<State>>);

impl FaultyDisk {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes after so many more bytes, in the middle of a write.
    pub(super) fn cut_power_after(&self, bytes: usize) {
        self.state().power = Some(bytes);
    }

    /// One sync fails after so many good ones.
    pub(super) fn fail_sync_after(&self, good: usize) {
        self.state().syncs = Some(good);
    }

    pub(super) fn leave_free(&self, bytes: u64) {
        self.state().free = Some(bytes);
    }

    pub(super) fn sync_count(&self) -> usize {
        self.state().sync_count
    }

    /// The process dies; the page cache lives on.
    pub(super) fn kill(&self) {
        let mut state = self.state();
        (state.power, state.syncs) = (None, None);
    }

    /// The power goes and comes back: of what was not synced, any sectors may have survived.
    pub(super) fn crash(&self, dice: &mut Dice) {
        let mut state = self.state();
        (state.power, state.syncs) = (None, None);
        for file in state.files.values_mut() {
            let kept = file.cached.len().min(file.platter.len());
            let unsynced = file.cached.len() - kept;
            // The length is metadata and may be that of any moment.
            let mut after = file.platter.clone();
            let survived = dice.roll(unsynced as u64 + 1) as usize;
            after.extend_from_slice(&file.cached[kept..kept + survived]);
            let holes = dice.roll(4);
            for _ in 0..holes {
                let sectors = after.len().saturating_sub(kept).div_ceil(SECTOR);
                let start = kept + dice.roll(sectors as u64) as usize * SECTOR;
                let end = (start + SECTOR).min(after.len());
                if start >= file.platter.len() && start < end {
                    after[start..end].fill(0);
                }
            }
            *file = File { cached: after.clone(), platter: after };
        }
    }

    /// Flips one bit of what is on the platter.
    pub(super) fn flip(&self, segment: u32, byte: usize, bit: u32) {
        let mut state = self.state();
        let file = state.files.get_mut(&segment).unwrap();
        file.cached[byte] ^= 1 << bit;
        file.platter[byte] ^= 1 << bit;
    }

    pub(super) fn bytes(&self, segment: u32) -> Vec<u8> {
        self.state().files[&segment].cached.clone()
    }

    pub(super) fn remove(&self, segment: u32) {
        self.state().files.remove(&segment);
    }
}

fn cut() -> io::Error {
    io::Error::other("the power is gone")
}

impl Storage for FaultyDisk {
    fn segments(&self) -> io::Result<Vec<u32>> {
        Ok(self.state().files.keys().copied().collect())
    }

    fn create(&self, number: u32, header: &[u8]) -> io::Result<Box<dyn SegmentFile>> {
        let mut state = self.state();
        if state.power == Some(0) {
            return Err(cut());
        }
        let file = File { cached: header.to_vec(), platter: header.to_vec() };
        state.files.insert(number, file);
        drop(state);
        self.open(number)
    }

    fn open(&self, number: u32) -> io::Result<Box<dyn SegmentFile>> {
        if !self.state().files.contains_key(&number) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Box::new(Handle { disk: self.clone(), number }))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.state().free.unwrap_or(u64::MAX))
    }

    fn path(&self, number: u32) -> PathBuf {
        format!("memory/{number:08}.seg").into()
    }
}

struct Handle {
    disk: FaultyDisk,
    number: u32,
}

impl Handle {
    fn with<T>(&self, act: impl FnOnce(&mut File) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        let file = state.files.get_mut(&self.number);
        act(file.ok_or(io::ErrorKind::NotFound)?)
    }
}

impl SegmentFile for Handle {
    fn size(&self) -> io::Result<u64> {
        self.with(|file| Ok(file.cached.len() as u64))
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|file| {
            let from = file.cached.get(offset as usize..).unwrap_or_default();
            let part = from.get(..buffer.len());
            buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let power = state.power;
        let fit = power.unwrap_or(usize::MAX).min(bytes.len());
        state.power = power.map(|left| left - fit);
        let file = state.files.get_mut(&self.number);
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        file.cached.extend_from_slice(&bytes[..fit]);
        if fit < bytes.len() { Err(cut()) } else { Ok(()) }
    }

    fn truncate(&mut self, size: u64) -> io::Result<()> {
        if self.disk.state().power == Some(0) {
            return Err(cut());
        }
        self.with(|file| {
            file.cached.truncate(size as usize);
            Ok(())
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.sync_count += 1;
        if state.power == Some(0) {
            return Err(cut());
        }
        if let Some(left) = &mut state.syncs {
            if *left == 0 {
                return Err(io::Error::other("sync failed"));
            }
            *left -= 1;
        }
        let file = state.files.get_mut(&self.number);
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        file.platter = file.cached.clone();
        Ok(())
    }
}
