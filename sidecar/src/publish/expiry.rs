//! The record of when files end, `..data/..expiry`: what a new process knows without a broker, and
//! what whoever watches over a dead sidecar acts by. One item a line:
//!
//! ```text
//! PATH GONE EXPIRES remove|stop
//! ```
//!
//! `PATH` is the item's path in the generation. At `GONE` its files must go, overwritten, and with
//! `stop` the application must end. `EXPIRES` is when its content stops being valid. Both are
//! milliseconds since the Unix epoch. Holds nothing secret.

use super::item::{End, Item};

/// One line of the record.
pub fn line(item: &Item, end: &End) -> String {
    let then = if end.stop { "stop" } else { "remove" };
    format!("{item} {} {} {then}\n", end.gone_at, end.expires_at)
}

/// Reads a line back; `None` if it is damaged.
pub fn read(line: &str) -> Option<(Item, End)> {
    let mut words = line.split(' ');
    let item = Item::try_from(words.next()?.to_owned()).ok()?;
    let gone_at = words.next()?.parse().ok()?;
    let expires_at = words.next()?.parse().ok()?;
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
        let text = line(&item, &end);
        assert_eq!(read(text.trim_end()), Some((item, end)));
        for damaged in [
            "",
            "a",
            "a 1",
            "a 1 2",
            "a 1 2 run",
            "a 1 2 stop x",
            "../a 1 2 stop",
        ] {
            assert_eq!(read(damaged), None, "{damaged:?}");
        }
    }
}
