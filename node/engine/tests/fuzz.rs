//! Replays the corpus of the fuzzing harness (`examples/fuzz.rs`): nothing panics or takes more memory
//! than its bound. A test of its own process, because the allocator counts for all of it.

#[path = "support/counting.rs"]
mod counting;

use std::path::Path;

use allmend_engine::fuzzing::Target;
use counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn corpus_is_harmless() {
    for target in Target::ALL {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name());
        let mut accepted = 0;
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let input = std::fs::read(&path).unwrap();
            let bound = target.bytes_max(input.len());
            let (outcome, bytes) = Counting::peak(2 * bound, || target.run(&input));
            assert!(bytes <= bound, "{}: {bytes} bytes, the bound is {bound}", path.display());
            assert!(!outcome.contains("panicked"), "{}: {outcome}", path.display());
            accepted += usize::from(outcome.starts_with("ok: "));
        }
        // A corpus that is refused as a whole would exercise only the refusals.
        assert!(accepted > 0, "{}", folder.display());
    }
}
