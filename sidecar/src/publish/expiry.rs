//! The record of when files end, `..data/..expiry`: what a new process knows without a broker, and
//! what whoever watches over a dead sidecar acts by. One item a line:
//!
//! ```text
//! PATH GONE EXPIRES remove|stop
//! ```
//!
//! `PATH` is the item's path in the generation. At `GONE` its files must go, overwritten, and with
//! `stop` the application must end. `EXPIRES` is when its content stops being valid. Both are
//! milliseconds since the Unix epoch by this machine's time of day, and written anew when that is set.
//! Holds nothing secret.

use super::item::{End, Item};
use crate::clock::Offset;

/// One line of the record.
pub fn line(item: &Item, end: &End, wall: Offset) -> String {
    let then = if end.stop { "stop" } else { "remove" };
    let [gone_at, expires_at] = [end.gone_at, end.expires_at].map(|at| wall.from_uptime(at));
    format!("{item} {gone_at} {expires_at} {then}\n")
}

/// Reads a line back; `None` if it is damaged.
pub fn read(line: &str, wall: Offset) -> Option<(Item, End)> {
    let mut words = line.split(' ');
    let item = Item::try_from(words.next()?.to_owned()).ok()?;
    let gone_at = wall.to_uptime(words.next()?.parse().ok()?);
    let expires_at = wall.to_uptime(words.next()?.parse().ok()?);
    let stop = match words.next()? {
        "stop" => true,
        "remove" => false,
        _ => return None,
    };
    let end = End {
        expires_at,
        gone_at,
        stop,
    };
    words.next().is_none().then_some((item, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let item = Item::try_from("conf/db.env".to_owned()).unwrap();
        let end = End {
            expires_at: 7,
            gone_at: u64::MAX,
            stop: true,
        };
        let wall = Offset::new(1_000, 4);
        let text = line(&item, &end, wall);
        assert_eq!(text, format!("conf/db.env {} 1003 stop\n", u64::MAX));
        assert_eq!(read(text.trim_end(), wall), Some((item, end)));
        for damaged in [
            "",
            "a",
            "a 1",
            "a 1 2",
            "a 1 2 run",
            "a 1 2 stop x",
            "../a 1 2 stop",
        ] {
            assert_eq!(read(damaged, wall), None, "{damaged:?}");
        }
    }
}
