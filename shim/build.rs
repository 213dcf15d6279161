//! Leaves unwinding tables out of the small program. Only where the linker that comes with Rust is the
//! default (x86_64 on GNU/Linux): others could take the script in another way.

use std::env::var;

fn main() {
    println!("cargo::rerun-if-changed=no-unwinding.ld");
    let is = |name: &str, value: &str| var(name).is_ok_and(|found| found == value);
    if is("OPT_LEVEL", "z") && is("TARGET", "x86_64-unknown-linux-gnu") {
        let here = var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{here}/no-unwinding.ld");
    }
}
