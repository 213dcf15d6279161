//! Which threads run first.

#![expect(unsafe_code, reason = "neither std nor nix has setpriority")]

use std::io;

use nix::errno::Errno;

/// The most urgent nice value (sched(7)).
const MOST_URGENT: libc::c_int = -20;

/// Lets the calling thread run before others that wait for a processor. On Linux a nice value is each
/// thread's own (setpriority(2), "C library/kernel differences").
///
/// # Errors
///
/// EACCES or EPERM without CAP_SYS_NICE, or RLIMIT_NICE in its place.
pub fn put_this_thread_first() -> io::Result<()> {
    // SAFETY: three numbers; 0 is the calling thread. Neither std nor nix has this call.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, MOST_URGENT) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_thread_that_asks_is_put_first() {
        // proc_pid_stat(5), field 19, counted behind the name.
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let fields = stat.rsplit_once(") ").unwrap().1;
            fields.split(' ').nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = nice();
        let first = std::thread::spawn(move || {
            put_this_thread_first().expect("these tests need root");
            nice()
        });
        assert_eq!(first.join().unwrap(), MOST_URGENT);
        assert_eq!(nice(), before);
    }
}
