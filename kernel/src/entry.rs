//! A program's entry without what makes a static binary large.

/// Makes a `fn() -> u8` the program's entry; it returns the exit status. Needs `#![no_main]`.
///
/// Against std's own entry: SIGPIPE is not ignored, the first three descriptors are not checked,
/// and a stack overflow is told by the kernel alone (SIGSEGV). Naming it takes 140 KB of libc,
/// which reads `/proc/self/maps` with sscanf.
///
/// With glibc, some of its functions are replaced, for another 180 KB. A failed assertion within
/// libc aborts without printing, and libc's messages are not translated: translating them brings
/// conversion between character sets, and that brings the dynamic loader, which a static program
/// that stands in front of secrets should not have anyway. Wide characters bring the same: stdio, which
/// libc's own exit needs, can print them, and never does here.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        // SAFETY: no other symbol has this name, since the crate says `no_main`. There is no safe
        // way to leave the preparations out.
        #[unsafe(no_mangle)]
        extern "C" fn main(
            _count: ::std::ffi::c_int,
            _arguments: *const *const ::std::ffi::c_char,
        ) -> ::std::ffi::c_int {
            let main: fn() -> u8 = $main;
            ::std::ffi::c_int::from(main())
        }

        // SAFETY: libc calls it with these arguments (assert.h, LSB) and expects no return.
        #[cfg(target_env = "gnu")]
        #[unsafe(no_mangle)]
        extern "C" fn __assert_fail(
            _assertion: *const ::std::ffi::c_char,
            _file: *const ::std::ffi::c_char,
            _line: ::std::ffi::c_uint,
            _function: *const ::std::ffi::c_char,
        ) -> ! {
            ::std::process::abort()
        }

        // SAFETY: libc calls it as dcgettext(3), which answers with the message itself where it has
        // no translation.
        #[cfg(target_env = "gnu")]
        #[unsafe(no_mangle)]
        extern "C" fn __dcgettext(
            _domain: *const ::std::ffi::c_char,
            message: *const ::std::ffi::c_char,
            _category: ::std::ffi::c_int,
        ) -> *const ::std::ffi::c_char {
            message
        }

        // SAFETY: says whether memory cannot be written, for a `%n` in a format of a fortified printf, by reading
        // `/proc/self/maps` as a stream. -1: it can, and so the format is refused.
        #[cfg(target_env = "gnu")]
        #[unsafe(no_mangle)]
        extern "C" fn __readonly_area(
            _start: *const ::std::ffi::c_void,
            _size: usize,
        ) -> ::std::ffi::c_int {
            -1
        }

        // SAFETY: all that one object of libc defines, so that it is not linked in. Nobody calls any of it: a
        // stream would have to be wide.
        #[cfg(target_env = "gnu")]
        #[unsafe(no_mangle)]
        extern "C" fn __wcsmbs_load_conv() -> ! {
            ::std::process::abort()
        }

        // SAFETY: as above.
        #[cfg(target_env = "gnu")]
        #[unsafe(no_mangle)]
        extern "C" fn __wcsmbs_named_conv() -> ! {
            ::std::process::abort()
        }

        // SAFETY: as above.
        #[cfg(target_env = "gnu")]
        #[unsafe(no_mangle)]
        extern "C" fn __wcsmbs_clone_conv() -> ! {
            ::std::process::abort()
        }

        // SAFETY: as above; it is for locales that are unloaded, and none is loaded.
        #[cfg(target_env = "gnu")]
        #[unsafe(no_mangle)]
        extern "C" fn _nl_cleanup_ctype() {}

        // SAFETY: as above: `struct gconv_fcts` (wcsmbsload.h), two pointers and two numbers.
        #[cfg(target_env = "gnu")]
        #[unsafe(no_mangle)]
        static __wcsmbs_gconv_fcts_c: [usize; 4] = [0; 4];
    };
}
