//! From an operator's new value to the new content of the file in the container.

use std::time::Duration;

use anyhow::Result;

use super::place::{CREDENTIAL, Place, file_in, said, spin};
use super::report::Better;
use super::{Options, Report};

pub fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let place = Place::of_one()?;
    let container = place.container(&["sidecar", CREDENTIAL])?;
    said(&container, "took")?;
    let file = file_in(&container, CREDENTIAL);
    let mut samples = Vec::new();
    for _ in 0..options.samples(200, 30) {
        let put = place.put(CREDENTIAL)?;
        let seen = spin("the new content", || {
            std::fs::read(&file).is_ok_and(|content| content == put.value.as_bytes())
        })?;
        samples.push((seen - put.begun).as_secs_f64() * 1000.0);
        put.done()?;
        // Each by itself, as operators do it.
        std::thread::sleep(Duration::from_millis(20));
    }
    report.add("put_to_file", samples, "ms", Better::Less)
}
