//! A disk that can lose power.
//!
//! Everything written is kept twice: what a running process sees, and what is on the medium. Between the two stand the
//! writes that no sync has covered. A crash keeps any subset of them, by pages of 4 KiB, some torn at 512 bytes; directory
//! entries are lost one by one; a file's size may arrive without its bytes. It is stricter than any file system we know:
//! what survives here survives there. A disk also fails calls on demand, and has an end.

use crate::disk::{Disk, DiskFile};
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

const PAGE: usize = 4096;
const SECTOR: usize = 512;

#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<Sim>>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// EIO. After a failed sync the pages count as clean: a second sync says yes and does nothing, as in Linux.
    Io,
    /// ENOSPC, of calls that may need space.
    Full,
}

struct Sim {
    inodes: Vec<Inode>,
    live: Names,
    durable: Names,
    /// Changes of names since the last sync of their directory, in order.
    pending: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
    random: Random,
    /// Calls that change something, so far.
    calls: u64,
    crash_at: u64,
    crashed: bool,
    faults: BTreeMap<u64, Fault>,
    capacity: u64,
    used: u64,
}

type Names = BTreeMap<PathBuf, Option<usize>>;

/// `to` begins to name the inode (`None`: is a directory), `from` ends to name anything.
#[derive(Clone)]
struct NameChange {
    dir: PathBuf,
    from: Option<PathBuf>,
    to: Option<(PathBuf, Option<usize>)>,
}

#[derive(Clone, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Write>,
}

#[derive(Clone)]
enum Write {
    Bytes(usize, Vec<u8>),
    Len(usize),
}

/// SplitMix64.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit.max(1)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

impl SimDisk {
    pub fn new(seed: u64) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(Sim {
            inodes: Vec::new(),
            live: Names::new(),
            durable: Names::new(),
            pending: Vec::new(),
            locks: BTreeSet::new(),
            random: Random(seed),
            calls: 0,
            crash_at: u64::MAX,
            crashed: false,
            faults: BTreeMap::new(),
            capacity: u64::MAX,
            used: 0,
        })))
    }

    /// Calls that changed something, so far: the places where the power may go.
    pub fn calls(&self) -> u64 {
        self.sim().calls
    }

    /// The power goes during this call and all that follow fail.
    pub fn crash_at(&self, call: u64) {
        self.sim().crash_at = call;
    }

    pub fn has_crashed(&self) -> bool {
        self.sim().crashed
    }

    pub fn fail_at(&self, call: u64, fault: Fault) {
        self.sim().faults.insert(call, fault);
    }

    /// No fault that was asked for comes any more.
    pub fn heal(&self) {
        let mut sim = self.sim();
        sim.faults.clear();
        sim.crash_at = u64::MAX;
    }

    pub fn set_capacity(&self, bytes: u64) {
        self.sim().capacity = bytes;
    }

    pub fn used(&self) -> u64 {
        self.sim().used
    }

    /// What a start after a power loss finds.
    pub fn after_crash(&self, seed: u64) -> SimDisk {
        let mut random = Random(seed);
        let mut sim = self.sim().copy();
        sim.forget_unnamed();
        // Sometimes everything arrived, sometimes nothing, mostly a part.
        let keep = [0, 1, 50, 50, 90, 99, 100][random.below(7) as usize];
        for inode in &mut sim.inodes {
            inode.lose(&mut random, keep);
        }
        let keep = [0, 50, 90, 100][random.below(4) as usize];
        for change in std::mem::take(&mut sim.pending) {
            if random.below(100) < keep {
                change.apply(&mut sim.durable);
            }
        }
        // What a lost directory held is lost.
        let names = sim.durable.clone();
        let has_parent = |path: &Path| path.parent().is_none_or(|p| p == Path::new("/") || names.contains_key(p));
        sim.durable.retain(|path, _| path.ancestors().all(has_parent));
        sim.live = sim.durable.clone();
        sim.used = sim.live.values().flatten().map(|i| sim.inodes[*i].live.len() as u64).sum();
        sim.random = random;
        SimDisk(Arc::new(Mutex::new(sim)))
    }

    /// All files with their sizes, for whoever wants to damage one.
    pub fn files(&self) -> Vec<(PathBuf, usize)> {
        let sim = self.sim();
        let files = sim.live.iter().filter_map(|(path, inode)| Some((path.clone(), inode.as_ref()?)));
        files.map(|(path, inode)| (path, sim.inodes[*inode].live.len())).collect()
    }

    pub fn change(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut sim = self.sim();
        if let Some(Some(inode)) = sim.live.get(path).copied() {
            let inode = &mut sim.inodes[inode];
            change(&mut inode.live);
            inode.durable = inode.live.clone();
            inode.pending.clear();
        }
    }

    fn sim(&self) -> MutexGuard<'_, Sim> {
        self.0.lock().expect("nothing panics under this lock")
    }
}

impl Sim {
    fn copy(&self) -> Sim {
        Sim {
            inodes: self.inodes.clone(),
            live: self.live.clone(),
            durable: self.durable.clone(),
            pending: self.pending.clone(),
            locks: BTreeSet::new(),
            random: self.random.clone(),
            calls: 0,
            crash_at: u64::MAX,
            crashed: false,
            faults: BTreeMap::new(),
            capacity: self.capacity,
            used: self.used,
        }
    }

    /// Files that no name can come back to.
    fn forget_unnamed(&mut self) {
        let changed = self.pending.iter().filter_map(|c| c.to.as_ref()?.1);
        let named: BTreeSet<usize> =
            self.live.values().chain(self.durable.values()).flatten().copied().chain(changed).collect();
        let unnamed = self.inodes.iter_mut().enumerate().filter(|(i, _)| !named.contains(i));
        unnamed.for_each(|(_, inode)| *inode = Inode::default());
    }

    fn alive(&self) -> io::Result<()> {
        if self.crashed { Err(io::Error::other("the power is gone")) } else { Ok(()) }
    }

    /// Counts a call; whether it is the last one.
    fn call(&mut self) -> io::Result<bool> {
        self.alive()?;
        self.calls += 1;
        self.crashed = self.calls >= self.crash_at;
        Ok(self.crashed)
    }

    fn fault(&mut self) -> Option<Fault> {
        self.faults.remove(&self.calls)
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.live.get(path).copied().flatten().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn rename(&mut self, from: Option<&Path>, to: Option<(&Path, Option<usize>)>) -> io::Result<()> {
        let dying = self.call()?;
        match self.fault() {
            Some(Fault::Io) => return Err(io::Error::from_raw_os_error(5)),
            Some(Fault::Full) if to.is_some() => return Err(ErrorKind::StorageFull.into()),
            _ => {}
        }
        let path = to.map(|t| t.0).or(from).expect("a change names something");
        let dir = path.parent().unwrap_or(Path::new("/")).to_owned();
        if dir != Path::new("/") && !self.live.contains_key(&dir) {
            return Err(ErrorKind::NotFound.into());
        }
        let change = NameChange { dir, from: from.map(Path::to_owned), to: to.map(|(p, i)| (p.to_owned(), i)) };
        change.apply(&mut self.live);
        self.pending.push(change);
        if dying { self.alive() } else { Ok(()) }
    }

    /// Room for a file to grow.
    fn grow(&mut self, inode: usize, to: usize) -> io::Result<()> {
        let more = to.saturating_sub(self.inodes[inode].live.len()) as u64;
        if more > 0 && self.used + more > self.capacity {
            return Err(ErrorKind::StorageFull.into());
        }
        self.used += more;
        Ok(())
    }
}

impl NameChange {
    fn apply(&self, names: &mut Names) {
        if let Some(from) = &self.from {
            names.remove(from);
        }
        if let Some((path, inode)) = &self.to {
            names.insert(path.clone(), *inode);
        }
    }
}

impl Write {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Write::Bytes(at, bytes) => put(image, *at, bytes),
            Write::Len(len) => image.resize(*len, 0),
        }
    }
}

fn put(image: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if image.len() < at + bytes.len() {
        image.resize(at + bytes.len(), 0);
    }
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Inode {
    fn write(&mut self, write: Write) {
        write.apply(&mut self.live);
        self.pending.push(write);
    }

    fn sync(&mut self) {
        for write in self.pending.drain(..) {
            write.apply(&mut self.durable);
        }
    }

    /// Puts some of the pending writes on the medium, forgets the others; what is there is what is seen from now on.
    fn lose(&mut self, random: &mut Random, keep: u64) {
        self.medium(random, keep);
        self.live.clone_from(&self.durable);
    }

    fn medium(&mut self, random: &mut Random, keep: u64) {
        let size = self.live.len();
        for write in std::mem::take(&mut self.pending) {
            let Write::Bytes(at, bytes) = &write else {
                if random.below(100) < keep {
                    write.apply(&mut self.durable);
                }
                continue;
            };
            let mut from = 0;
            while from < bytes.len() {
                let to = ((at + from) / PAGE * PAGE + PAGE - at).min(bytes.len());
                self.keep_page(at + from, &bytes[from..to], random, keep);
                from = to;
            }
        }
        if random.one_in(6) && self.durable.len() < size {
            // The size arrived, the bytes did not.
            let fill = if random.one_in(2) { 0 } else { random.number() as u8 };
            self.durable.resize(size, fill);
        }
    }

    fn keep_page(&mut self, at: usize, bytes: &[u8], random: &mut Random, keep: u64) {
        if random.below(100) >= keep {
            return;
        }
        if !random.one_in(10) {
            return put(&mut self.durable, at, bytes);
        }
        // Torn: some of its sectors.
        let mut from = 0;
        while from < bytes.len() {
            let to = ((at + from) / SECTOR * SECTOR + SECTOR - at).min(bytes.len());
            if random.one_in(2) {
                put(&mut self.durable, at + from, &bytes[from..to]);
            }
            from = to;
        }
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let sim = self.sim();
        sim.alive()?;
        let inode = sim.find(path)?;
        Ok(Arc::new(SimFile { disk: self.clone(), inode }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut sim = self.sim();
        let inode = match sim.find(path) {
            Ok(inode) => {
                let dying = sim.call()?;
                sim.used -= sim.inodes[inode].live.len() as u64;
                sim.inodes[inode].write(Write::Len(0));
                if dying {
                    sim.alive()?;
                }
                inode
            }
            Err(_) => {
                let inode = sim.inodes.len();
                sim.inodes.push(Inode::default());
                sim.rename(None, Some((path, Some(inode))))?;
                inode
            }
        };
        Ok(Arc::new(SimFile { disk: self.clone(), inode }))
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        let mut sim = self.sim();
        let mut missing: Vec<&Path> = path.ancestors().filter(|p| *p != Path::new("/") && !sim.live.contains_key(*p)).collect();
        missing.reverse();
        missing.into_iter().try_for_each(|dir| sim.rename(None, Some((dir, None))))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let sim = self.sim();
        sim.alive()?;
        if !sim.live.contains_key(dir) {
            return Err(ErrorKind::NotFound.into());
        }
        let inside = sim.live.keys().filter(|p| p.parent() == Some(dir));
        Ok(inside.filter_map(|p| Some(p.file_name()?.to_str()?.to_owned())).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut sim = self.sim();
        sim.alive()?;
        let inode = sim.find(from)?;
        sim.rename(Some(from), Some((to, Some(inode))))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut sim = self.sim();
        sim.alive()?;
        let inode = sim.find(path)?;
        sim.rename(Some(path), None)?;
        sim.used -= sim.inodes[inode].live.len() as u64;
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut sim = self.sim();
        let dying = sim.call()?;
        if sim.fault().is_some() {
            return Err(io::Error::from_raw_os_error(5));
        }
        if dying {
            return sim.alive();
        }
        let (done, rest) = std::mem::take(&mut sim.pending).into_iter().partition(|c: &NameChange| c.dir == dir);
        sim.pending = rest;
        let done: Vec<NameChange> = done;
        done.iter().for_each(|change| change.apply(&mut sim.durable));
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        if !self.sim().live.contains_key(path) {
            self.create(path)?;
        }
        if !self.sim().locks.insert(path.to_owned()) {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock(self.clone(), path.to_owned())))
    }

    fn free_space(&self, _: &Path) -> io::Result<u64> {
        let sim = self.sim();
        sim.alive()?;
        Ok(sim.capacity.saturating_sub(sim.used))
    }
}

struct SimLock(SimDisk, PathBuf);

impl Drop for SimLock {
    fn drop(&mut self) {
        self.0.sim().locks.remove(&self.1);
    }
}

struct SimFile {
    disk: SimDisk,
    inode: usize,
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let sim = self.disk.sim();
        sim.alive()?;
        let live = &sim.inodes[self.inode].live;
        let bytes = live.get(at as usize..).and_then(|b| b.get(..buffer.len())).ok_or(ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, slices: &[IoSlice], at: u64) -> io::Result<()> {
        let mut sim = self.disk.sim();
        let dying = sim.call()?;
        let fault = sim.fault();
        let mut bytes = slices.iter().flat_map(|s| s.iter().copied()).collect::<Vec<u8>>();
        if fault == Some(Fault::Full) {
            return Err(ErrorKind::StorageFull.into());
        }
        if fault == Some(Fault::Io) {
            // Some of it may have been taken.
            let taken = sim.random.below(bytes.len() as u64 + 1) as usize;
            bytes.truncate(taken);
        }
        let end = at as usize + bytes.len();
        sim.grow(self.inode, end)?;
        sim.inodes[self.inode].write(Write::Bytes(at as usize, bytes));
        if fault.is_some() {
            return Err(io::Error::from_raw_os_error(5));
        }
        if dying { sim.alive() } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut sim = self.disk.sim();
        let dying = sim.call()?;
        if sim.fault().is_some() {
            let keep = [0, 50, 100][sim.random.below(3) as usize];
            let mut random = sim.random.clone();
            sim.inodes[self.inode].medium(&mut random, keep);
            sim.random = random;
            return Err(io::Error::from_raw_os_error(5));
        }
        if dying {
            return sim.alive();
        }
        sim.inodes[self.inode].sync();
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut sim = self.disk.sim();
        let dying = sim.call()?;
        if let Some(fault) = sim.fault() {
            return Err(if fault == Fault::Full { ErrorKind::StorageFull.into() } else { io::Error::from_raw_os_error(5) });
        }
        sim.grow(self.inode, bytes as usize)?;
        sim.used -= (sim.inodes[self.inode].live.len() as u64).saturating_sub(bytes);
        sim.inodes[self.inode].write(Write::Len(bytes as usize));
        if dying { sim.alive() } else { Ok(()) }
    }

    fn len(&self) -> io::Result<u64> {
        let sim = self.disk.sim();
        sim.alive()?;
        Ok(sim.inodes[self.inode].live.len() as u64)
    }
}
