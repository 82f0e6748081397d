//! The disk as the journal sees it: numbered segment files. Tests put a faulty one beneath.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

/// Holds the segment files of one journal.
pub trait Storage: Send + Sync + 'static {
    /// Numbers of the segments that exist, ascending.
    ///
    /// # Errors
    /// What the operating system says.
    fn segments(&self) -> io::Result<Vec<u32>>;

    /// Makes a segment with its header. It and its name are durable on return, or it is not there.
    ///
    /// # Errors
    /// What the operating system says.
    fn create(&self, number: u32, header: &[u8]) -> io::Result<Box<dyn SegmentFile>>;

    /// Opens an existing segment.
    ///
    /// # Errors
    /// What the operating system says.
    fn open(&self, number: u32) -> io::Result<Box<dyn SegmentFile>>;

    /// Bytes that may still be written on this file system.
    ///
    /// # Errors
    /// What the operating system says.
    fn free_bytes(&self) -> io::Result<u64>;

    /// What to call a segment in messages.
    fn path(&self, number: u32) -> PathBuf;
}

/// One segment file.
pub trait SegmentFile: Send {
    /// Its length in bytes.
    ///
    /// # Errors
    /// What the operating system says.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before, else what the operating system says.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes at the end; in the page cache on return.
    ///
    /// # Errors
    /// What the operating system says; part of the bytes may then be in the file.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Cuts the file off.
    ///
    /// # Errors
    /// What the operating system says.
    fn truncate(&mut self, size: u64) -> io::Result<()>;

    /// Waits until everything written is on the platter.
    ///
    /// # Errors
    /// What the operating system says; what is on the platter is then unknown.
    fn sync(&mut self) -> io::Result<()>;
}

/// Segments as files `00000000.seg` in a private directory.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
}

impl Disk {
    /// Uses `dir`, and makes it (0700) if it is not there.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn new(dir: &Path) -> io::Result<Self> {
        make_dir(dir, 0o700)?;
        Ok(Self { dir: dir.to_owned() })
    }
}

impl Storage for Disk {
    fn segments(&self) -> io::Result<Vec<u32>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(".seg"));
            let digits = stem.filter(|stem| stem.len() == 8);
            numbers.extend(digits.and_then(|digits| digits.parse::<u32>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn create(&self, number: u32, header: &[u8]) -> io::Result<Box<dyn SegmentFile>> {
        let (path, new) = (self.path(number), self.dir.join("new.seg.tmp"));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(header)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        sync_dir(&self.dir)?;
        self.open(number)
    }

    fn open(&self, number: u32) -> io::Result<Box<dyn SegmentFile>> {
        let path = self.path(number);
        let file = OpenOptions::new().read(true).append(true).open(path)?;
        Ok(Box::new(DiskFile(file)))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn path(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{number:08}.seg"))
    }
}

struct DiskFile(File);

impl SegmentFile for DiskFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn truncate(&mut self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Makes `dir` with this mode, whatever the umask, and its missing parents privately; the names
/// are durable on return. An existing directory is left as it is.
pub(super) fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        make_dir(parent, mode)?;
    }
    match DirBuilder::new().mode(mode).create(dir) {
        Ok(()) => fs::set_permissions(dir, fs::Permissions::from_mode(mode))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error),
    }
    sync_dir(parent.unwrap_or(Path::new(".")))
}

/// Makes changes of names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Replaces the file at `path` in one step: readers see the old contents or the new. With `durable`
/// it is on the platter on return, else a power cut may leave any contents.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32, durable: bool) -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let dir = path.parent().ok_or_else(invalid)?;
    let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(invalid)?;
    let new = dir.join(format!(".{name}.tmp"));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&new, path)?;
    if durable {
        sync_dir(dir)?;
    }
    Ok(())
}
