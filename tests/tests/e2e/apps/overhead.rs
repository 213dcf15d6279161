//! What the shim costs an application whose secrets are ready.

use anyhow::Result;
use mayfly_tests::bench::overhead;

#[test]
fn the_shim_adds_less_than_three_milliseconds_to_exec() -> Result<()> {
    let mut seen = Vec::new();
    // Whatever else runs may be in the way of one attempt; three in a row are the shim's own.
    for _ in 0..3 {
        let median = overhead::median(overhead::sample(50)?)?;
        if median < 3.0 {
            return Ok(());
        }
        seen.push(median);
    }
    anyhow::bail!("expected less than 3 ms in one of three runs, found {seen:?} ms")
}
