use super::*;
use crate::test_child::in_child;
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::PathBuf;

struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("mayfly-expiry-{name}-{}", std::process::id()));
        fs::create_dir_all(path.join("dir")).unwrap();
        Self(path)
    }

    fn dir(&self) -> PathBuf {
        self.0.join("dir")
    }

    /// Makes a generation, with this record and files of this content.
    fn generation(&self, name: &str, record: &str, files: &[&str]) -> PathBuf {
        let generation = self.dir().join(name);
        for file in files {
            let file = generation.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "hunter2").unwrap();
            fs::set_permissions(&file, PermissionsExt::from_mode(0o400)).unwrap();
        }
        fs::create_dir_all(&generation).unwrap();
        fs::write(generation.join("..expiry"), record).unwrap();
        generation
    }

    fn current(&self, name: &str) {
        let _ = fs::remove_file(self.dir().join("..data"));
        symlink(name, self.dir().join("..data")).unwrap();
    }

    fn sweep(&self, until: u64) -> Sweep {
        Area::open(&self.dir()).unwrap().sweep(until)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a reader reads who has the file open since before.
fn read(mut file: &File) -> String {
    let mut text = String::new();
    io::Seek::rewind(&mut file).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

const ZEROS: &str = "\0\0\0\0\0\0\0";

#[test]
fn only_whole_lines_count() {
    let text = b"a 1 2 stop\nconf/db.env 18446744073709551615 7 remove\n.env 0 0 remove\n";
    let found: Vec<_> = lines(text).collect();
    assert_eq!(found.len(), 3);
    assert_eq!(
        found[1],
        Line {
            path: "conf/db.env",
            gone_at: u64::MAX,
            expires_at: 7,
            stop: false
        }
    );
    assert!(found[0].stop);
    for damaged in [
        "",
        "a",
        "a 1",
        "a 1 2",
        "a 1 2 run",
        "a 1 2 stop x",
        "a  1 2 stop",
        "a +1 2 stop",
        "a -1 2 stop",
        "a 18446744073709551616 2 stop",
        "../a 1 2 stop",
        "a/../../b 1 2 stop",
        "/etc/passwd 1 2 stop",
        "..data 1 2 stop",
        "..gen-1/a 1 2 stop",
        "a/b/c/d 1 2 stop",
        "a/ 1 2 stop",
        "-a 1 2 stop",
        "a\0b 1 2 stop",
        "\u{e9} 1 2 stop",
    ] {
        assert_eq!(lines(damaged.as_bytes()).count(), 0, "{damaged:?}");
    }
    assert_eq!(lines(b"\xff 1 2 stop\na 1 2 stop").count(), 1);
    let many = "a 1 2 stop\n".repeat(MOST_ITEMS + 5);
    assert_eq!(lines(many.as_bytes()).count(), MOST_ITEMS);
}

#[test]
fn what_is_overdue_goes_overwritten_and_the_rest_stays() {
    let place = Place::new("overdue");
    let record = "key 10 10 remove\ndb 20 20 stop\nconf/a.env 30 5 remove\n";
    let files = ["key", "db/user", "db/password", "conf/a.env"];
    let generation = place.generation("..gen-1", record, &files);
    place.current("..gen-1");
    let held = files.map(|file| File::open(generation.join(file)).unwrap());

    let early = place.sweep(9);
    assert!(early.removed.is_empty() && early.failed.is_empty());
    assert_eq!(
        (early.next, early.stop, early.stale),
        (Some(10), None, Some(5))
    );

    let sweep = place.sweep(20);
    assert_eq!(sweep.removed, ["key", "db"]);
    assert!(sweep.failed.is_empty());
    assert_eq!((sweep.next, sweep.stop), (Some(30), Some(20)));
    let content = held.each_ref().map(read);
    assert_eq!(content, [ZEROS, ZEROS, ZEROS, "hunter2"]);
    assert!(!generation.join("key").exists() && !generation.join("db").exists());

    // Again: nothing to do, and what must end is still said.
    let again = place.sweep(20);
    assert!(again.removed.is_empty() && again.failed.is_empty());
    assert_eq!(again.stop, Some(20));
}

#[test]
fn it_goes_from_every_generation_and_what_is_still_good_does_not() {
    let place = Place::new("generations");
    // `same` is one file in both, and was renewed since; `old` was replaced.
    let before = place.generation(
        "..gen-1",
        "same 10 10 remove\nold 10 10 remove\n",
        &["same", "old", "gone"],
    );
    let now = place.generation(
        "..gen-2",
        "same 99 99 remove\nold 99 99 remove\ngone 10 10 remove\n",
        &["old"],
    );
    fs::hard_link(before.join("same"), now.join("same")).unwrap();
    fs::hard_link(before.join("gone"), now.join("gone")).unwrap();
    // A generation that is being written has no record yet.
    let draft = place.dir().join("..gen-3");
    fs::create_dir(&draft).unwrap();
    fs::write(draft.join("same"), "hunter2").unwrap();
    place.current("..gen-2");
    let held = ["same", "old", "gone"].map(|file| File::open(before.join(file)).unwrap());

    let sweep = place.sweep(50);
    assert_eq!(sweep.removed, ["gone", "same", "old"]);
    assert_eq!(held.each_ref().map(read), ["hunter2", ZEROS, ZEROS]);
    let names = |dir: &Path| fs::read_dir(dir).unwrap().count() - 1;
    assert_eq!((names(&before), names(&now)), (0, 2));
    assert_eq!(fs::read_to_string(now.join("old")).unwrap(), "hunter2");
    assert_eq!(fs::read_to_string(draft.join("same")).unwrap(), "hunter2");
}

/// A sidecar that was frozen comes back with what it was sent meanwhile, while the record still tells of
/// what ended.
#[test]
fn what_comes_anew_is_not_taken_for_what_ended() {
    let place = Place::new("anew");
    place.generation("..gen-1", "key 10 10 stop\n", &[]);
    let complete = place.generation("..gen-2", "key 99 99 stop\n", &["key"]);
    let draft = place.generation("..gen-3", "", &["key"]);
    fs::remove_file(draft.join("..expiry")).unwrap();
    place.current("..gen-1");
    let sweep = place.sweep(50);
    assert_eq!((sweep.removed.len(), sweep.stop), (0, Some(10)));
    for generation in [&complete, &draft] {
        assert_eq!(
            fs::read_to_string(generation.join("key")).unwrap(),
            "hunter2"
        );
    }
    // What ends by its own record does go.
    assert_eq!(place.sweep(99).removed, ["key"]);
    assert!(!complete.join("key").exists());
}

#[test]
fn no_link_leads_out() {
    let place = Place::new("links");
    let outside = place.0.join("outside");
    fs::create_dir(&outside).unwrap();
    for file in ["a", "..expiry"] {
        fs::write(outside.join(file), "a 1 1 stop\n").unwrap();
    }
    let victim = outside.join("a");
    // The generation itself.
    for target in ["../outside", outside.to_str().unwrap(), "..", ".", ""] {
        if !target.is_empty() {
            place.current(target);
        }
        let sweep = place.sweep(50);
        assert!(sweep.removed.is_empty() && sweep.stop.is_none(), "{target}");
    }
    symlink(&outside, place.dir().join("..gen-9")).unwrap();
    place.current("..gen-9");
    assert!(place.sweep(50).removed.is_empty());
    // A part of the path, a file, and the record.
    let generation = place.generation(
        "..gen-1",
        "dir/a 1 1 remove\nfile 1 1 remove\ndeep/link/a 1 1 remove\n",
        &["deep/x"],
    );
    symlink(&outside, generation.join("dir")).unwrap();
    symlink(&victim, generation.join("file")).unwrap();
    symlink(&outside, generation.join("deep/link")).unwrap();
    place.current("..gen-1");
    let sweep = place.sweep(50);
    assert_eq!(sweep.removed, ["file"], "a link only loses its name");
    assert_eq!(sweep.failed.len(), 2);
    let other = place.generation("..gen-2", "", &["a"]);
    fs::remove_file(other.join("..expiry")).unwrap();
    symlink(outside.join("..expiry"), other.join("..expiry")).unwrap();
    place.current("..gen-2");
    assert!(place.sweep(50).removed.is_empty());
    assert_eq!(fs::read_to_string(&victim).unwrap(), "a 1 1 stop\n");
}

#[test]
fn what_is_no_file_is_neither_waited_for_nor_written_to() {
    let place = Place::new("kinds");
    let generation = place.generation(
        "..gen-1",
        "pipe 1 1 remove\nsocket 1 1 remove\nnull 1 1 remove\n",
        &[],
    );
    nix::unistd::mkfifo(&generation.join("pipe"), Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(generation.join("socket")).unwrap();
    let null = nix::sys::stat::makedev(1, 3);
    nix::sys::stat::mknod(
        &generation.join("null"),
        SFlag::S_IFCHR,
        Mode::S_IRWXU,
        null,
    )
    .unwrap();
    place.current("..gen-1");
    let sweep = place.sweep(50);
    assert_eq!(sweep.removed, ["pipe", "socket", "null"]);
    // A record that is a pipe.
    let generation = place.generation("..gen-2", "", &["a"]);
    fs::remove_file(generation.join("..expiry")).unwrap();
    nix::unistd::mkfifo(&generation.join("..expiry"), Mode::S_IRWXU).unwrap();
    place.current("..gen-2");
    assert!(place.sweep(50).removed.is_empty());
}

#[test]
fn a_file_that_claims_to_be_huge_is_done_in_no_time() {
    let place = Place::new("huge");
    let generation = place.generation("..gen-1", "a 1 1 remove\n", &["a"]);
    fs::set_permissions(generation.join("a"), PermissionsExt::from_mode(0o600)).unwrap();
    let file = File::options()
        .write(true)
        .read(true)
        .open(generation.join("a"))
        .unwrap();
    file.set_len(1 << 42).unwrap();
    file.write_at(b"hunter2", 1 << 41).unwrap();
    place.current("..gen-1");
    let blocks = file.metadata().unwrap().blocks();
    let begun = cpu_time();
    let sweep = place.sweep(50);
    assert!((cpu_time() - begun).as_secs() < 5);
    assert_eq!((sweep.removed.len(), sweep.failed.len()), (1, 0));
    assert!(file.metadata().unwrap().blocks() <= blocks + 16);
    for at in [0, 1 << 41] {
        let mut part = [1; 7];
        file.read_exact_at(&mut part, at).unwrap();
        assert_eq!(part, [0; 7]);
    }
}

#[test]
fn another_filesystem_is_not_touched() {
    let place = Place::new("mounts");
    let generation = place.generation(
        "..gen-1",
        "dir/a 1 1 remove\nfile 1 1 remove\n",
        &["dir/x", "file"],
    );
    let host = place.0.join("host");
    fs::create_dir(&host).unwrap();
    place.current("..gen-1");
    let held = in_child(|| {
        use nix::mount::{MsFlags, mount};
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("t"), &host, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        fs::write(host.join("a"), "host").unwrap();
        mount(
            Some(&host),
            &generation.join("dir"),
            none,
            MsFlags::MS_BIND,
            none,
        )
        .unwrap();
        mount(
            Some(&host.join("a")),
            &generation.join("file"),
            none,
            MsFlags::MS_BIND,
            none,
        )
        .unwrap();
        let sweep = place.sweep(50);
        sweep.removed.is_empty()
            && sweep.failed.len() == 2
            && fs::read_to_string(host.join("a")).unwrap() == "host"
    });
    assert!(held);
}

#[test]
fn a_read_only_file_of_ones_own_is_overwritten_without_any_capability() {
    let place = Place::new("owner");
    let generation = place.generation("..gen-1", "a 1 1 remove\nb 1 1 remove\n", &["a", "b"]);
    let own = |path: &Path| std::os::unix::fs::chown(path, Some(1000), Some(1000)).unwrap();
    for path in [
        place.0.clone(),
        place.dir(),
        generation.clone(),
        generation.join("a"),
    ] {
        own(&path);
    }
    place.current("..gen-1");
    let held = ["a", "b"].map(|file| File::open(generation.join(file)).unwrap());
    let done = in_child(|| {
        nix::unistd::setresuid(1000.into(), 1000.into(), 1000.into()).unwrap();
        let sweep = place.sweep(50);
        sweep.removed == ["a"] && sweep.failed == [("b".to_owned(), Errno::EACCES)]
    });
    assert!(done);
    // Somebody else's cannot be overwritten, but its name is gone all the same.
    assert_eq!(held.each_ref().map(read), [ZEROS, "hunter2"]);
    assert!(!generation.join("b").exists());
}

/// Whoever writes into a volume must not keep the node from looking after the others.
#[test]
fn records_full_of_lines_in_many_generations_are_done_in_no_time() {
    let place = Place::new("lines");
    let full = |name: &str, at: u64| {
        let line = |number| format!("{name}-{number} {at} {at} remove\n");
        (0..MOST_ITEMS).map(line).collect::<String>()
    };
    place.generation("..gen-now", &full("good", 99), &[]);
    let old = place.generation("..gen-0", &full("old", 10), &["old-1"]);
    for number in 1..60 {
        let next = place.generation(&format!("..gen-{number}"), "", &[]);
        fs::remove_file(next.join("..expiry")).unwrap();
        fs::hard_link(old.join("..expiry"), next.join("..expiry")).unwrap();
    }
    place.current("..gen-now");
    let begun = cpu_time();
    let sweep = place.sweep(50);
    let took = cpu_time() - begun;
    assert_eq!(sweep.removed, ["old-1"]);
    assert!(took.as_secs_f64() < 2.0, "{took:?}");
}

#[test]
fn a_file_of_many_names_is_overwritten_once() {
    let place = Place::new("names");
    let generation = place.generation("..gen-1", "dir 1 1 remove\n", &["dir/0"]);
    let first = generation.join("dir/0");
    fs::set_permissions(&first, PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(&first, vec![7; 1 << 20]).unwrap();
    for number in 1..500 {
        fs::hard_link(&first, generation.join(format!("dir/{number}"))).unwrap();
    }
    place.current("..gen-1");
    let held = File::open(&first).unwrap();
    let written = written();
    let sweep = place.sweep(50);
    let written = self::written() - written;
    assert_eq!((sweep.removed.len(), sweep.failed.len()), (1, 0));
    assert!((1 << 20..2 << 20).contains(&written), "{written}");
    // Who has it mapped still has as many bytes.
    let mut content = Vec::new();
    (&held).read_to_end(&mut content).unwrap();
    assert_eq!(content, vec![0; 1 << 20]);
}

/// How long this thread has run.
fn cpu_time() -> std::time::Duration {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    nix::time::clock_gettime(clock).unwrap().into()
}

/// How many bytes this thread has written (proc_pid_io(5)).
fn written() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.unwrap().parse().unwrap()
}
