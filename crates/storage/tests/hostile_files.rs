//! Files that lie: the committed directory of format 1 with lengths and counts replaced, and batches whose CRC is right and
//! whose contents are not. Never a panic, never memory by an announced size. (Damage of whole lives: `damage.rs`.)

use smallvec::smallvec;
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use storage::{Batch, BatchBuilder, Commit, Level, Op, RealDisk, Settings, Store};

/// Remembers the largest single allocation of the process.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);
static WATCHES: AtomicBool = AtomicBool::new(false);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if WATCHES.load(Ordering::Relaxed) {
            LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        }
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }

    /// Writes over a field of some width that is not all zeros; the numbers are those that lengths lie with.
    fn lie(&mut self, bytes: &mut [u8], from: usize) {
        let written: Vec<usize> = (from..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        let Some(&at) = written.get(self.below(written.len().max(1))) else { return };
        let width = [1, 2, 4, 8][self.below(4)];
        let end = (at + width).min(bytes.len());
        let remaining = (bytes.len() - at) as u64;
        let lie = [0, 1, u64::MAX, remaining + 1, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1][self.below(8)];
        bytes[at..end].copy_from_slice(&lie.to_be_bytes()[8 - (end - at)..]);
    }
}

fn settings(dir: &Path) -> Settings {
    Settings {
        journal_file_bytes: 16 << 10,
        journal_bytes_max: 128 << 10,
        segment_bytes: 2 << 10,
        read_bytes: 1 << 10,
        disk_free_min: 0,
        reserve_bytes: 0,
        entropy: 1,
        ..Settings::new(dir)
    }
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("the fixture is there").flatten() {
        let path = entry.path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
    found.sort();
}

/// Copies the corpus, with one file changed; answers whether the store opened over it.
fn open_with_a_lie(corpus: &[(PathBuf, Vec<u8>)], dir: &Path, random: &mut Random) -> bool {
    let _ = std::fs::remove_dir_all(dir);
    let victim = random.below(corpus.len());
    for (i, (path, bytes)) in corpus.iter().enumerate() {
        let mut bytes = bytes.clone();
        if i == victim {
            (0..1 + random.below(3)).for_each(|_| random.lie(&mut bytes, 0));
            if random.below(4) == 0 {
                bytes.truncate(random.below(bytes.len() + 1));
            }
        }
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().expect("in a folder")).expect("is writable");
        std::fs::write(path, bytes).expect("is writable");
    }
    let Ok((store, recovered)) = Store::open(Arc::new(RealDisk), settings(dir)) else { return false };
    for log in recovered.logs.into_keys() {
        let mut from = 0;
        while let Ok(read) = store.read(log, from, 1 << 10) {
            let Some((base, batch)) = read.last() else { break };
            from = base + u64::from(batch.span());
        }
    }
    let log = store.new_log();
    let batch = Arc::new(batch(3));
    let commit =
        Commit { ops: smallvec![Op::Create { log }, Op::Append { batch, to: smallvec![(log, 0)] }], level: Level::Sync };
    store.commit(commit).expect("what was read wrong does not keep it from going on");
    store.write_group().expect("writes");
    true
}

fn batch(records: u32) -> Batch {
    let mut builder = BatchBuilder::plain(1_700_000_000_000);
    for i in 0..records {
        builder.push(1_700_000_000_000 + i64::from(i), Some(b"key"), Some(&vec![b'v'; 20 + i as usize]), &[(b"h", Some(b"1"))]);
    }
    builder.finish()
}

#[test]
fn a_directory_that_lies_opens_or_is_refused() {
    let long = std::env::var("BRAID_TIER").is_ok_and(|tier| tier != "quick");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixture-v1");
    let mut paths = Vec::new();
    files(&fixture, &mut paths);
    let read = |path: PathBuf| (path.strip_prefix(&fixture).expect("inside").to_owned(), std::fs::read(&path).expect("a file"));
    let corpus: Vec<_> = paths.into_iter().map(read).filter(|(_, bytes)| !bytes.is_empty()).collect();
    let dir = std::env::temp_dir().join(format!("braid-hostile-files-{}", std::process::id()));
    let rounds = if long { 1_000 } else { 200 };
    WATCHES.store(true, Ordering::Relaxed);
    let opened = (0..rounds).filter(|seed| open_with_a_lie(&corpus, &dir, &mut Random(*seed))).count();
    WATCHES.store(false, Ordering::Relaxed);
    let _ = std::fs::remove_dir_all(dir);
    println!("{rounds} directories that lie, {opened} opened");
    assert!(opened * 2 > rounds as usize, "one lie in one file rarely keeps all from opening: {opened} of {rounds}");
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest <= 4 << 20, "{largest} bytes at once, in directories of 100 KiB");
}

/// The CRC does not save a reader from who wrote the batch.
#[test]
fn a_batch_that_lies_under_a_right_crc_is_malformed_or_harmless() {
    let good = batch(20);
    let bytes = [&good.head(0, 0)[..], good.body()].concat();
    assert!(Batch::parse(&bytes).is_ok());
    let mut taken = 0;
    for seed in 0..20_000 {
        let mut random = Random(seed);
        let mut bytes = bytes.clone();
        (0..1 + random.below(3)).for_each(|_| random.lie(&mut bytes, 8));
        if random.below(3) == 0 {
            bytes.truncate(21 + random.below(bytes.len() - 20));
            let length = (bytes.len() as i32 - 12).to_be_bytes();
            bytes[8..12].copy_from_slice(&length);
        }
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        let Ok(batch) = Batch::parse(&bytes) else { continue };
        taken += 1;
        // A compressed one has no records to look at here.
        if batch.attributes() & 7 == 0 {
            for i in 0..batch.len() {
                let record = batch.record(i);
                assert!(record.headers().count() <= bytes.len());
                assert!(batch.record_size(i) <= bytes.len());
            }
            assert!(batch.subset(0..batch.len()).size() <= bytes.len() + 64);
        }
    }
    assert!(taken > 100, "some lies are harmless: {taken}");
}
