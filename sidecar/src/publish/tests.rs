//! Time as the publisher sees it. Any directory will do.

use super::*;
use mayfly_wire::Secret;

const ACCESS: Access = Access {
    mode: 0o400,
    uid: None,
    gid: None,
};

#[test]
fn the_time_of_day_is_for_the_record_alone() {
    let path = std::env::temp_dir().join(format!("mayfly-times-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    let path = path.canonicalize().unwrap();
    let start = Instant::now();
    let at = |uptime: u64, wall: u64| Moment {
        instant: start + Duration::from_millis(uptime),
        uptime,
        wall,
    };
    let (mut publisher, _) = Publisher::open(Dir::open(&path).unwrap(), at(0, 1_000_000)).unwrap();
    let item = Item::try_from("a".to_owned()).unwrap();
    let published = publisher.publish(start, |draft| -> Result<(), PublishError> {
        draft.expect(&item, End::at(60_000));
        draft.put(&item, None, ACCESS, &Secret::from("1".to_owned()));
        Ok(())
    });
    assert!(published.unwrap().first);
    let record = || std::fs::read_to_string(path.join("..data/..expiry")).unwrap();
    assert_eq!(record(), "a 1060000 1060000 remove\n");
    let due = |publisher: &Publisher, now| publisher.due(now).unwrap() - start;
    // Set far ahead, then far back: nothing goes, nothing stays longer, and the record follows.
    for (uptime, wall) in [(10_000, 9_000_000), (20_000, 5_000)] {
        let tended = publisher.tend(at(uptime, wall));
        assert!(tended.expired.is_empty() && tended.stale.is_empty());
        let end = wall + 60_000 - uptime;
        assert_eq!(record(), format!("a {end} {end} remove\n"));
        assert_eq!(due(&publisher, at(uptime, wall)).as_millis(), 60_000);
    }
    // A clock that only strays has nothing written.
    publisher.tend(at(30_000, 15_900));
    assert_eq!(record(), "a 45000 45000 remove\n");
    // A process that comes after has only the record.
    drop(publisher);
    let (mut publisher, _) = Publisher::open(Dir::open(&path).unwrap(), at(7, 44_000)).unwrap();
    assert_eq!(due(&publisher, at(7, 44_000)).as_millis(), 1_007);
    assert!(publisher.tend(at(1_006, 44_999)).expired.is_empty());
    assert_eq!(publisher.tend(at(1_007, 45_000)).expired, [item]);
    assert!(publisher.wipe().is_empty());
    std::fs::remove_dir_all(&path).unwrap();
}
