//! Makes the C header from the documented Rust items, and names the shared library as its users link it.

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=src/abi");
    println!("cargo:rerun-if-changed=src/error.rs");
    println!("cargo:rerun-if-changed=cbindgen.toml");
    println!("cargo:rerun-if-env-changed=CAPTURE_UPDATE_HEADER");

    let root = env::var("CARGO_MANIFEST_DIR")?;
    let config = cbindgen::Config::from_file(Path::new(&root).join("cbindgen.toml"))?;
    let sources = [
        "abi/classic_types.rs",
        "abi/flow_types.rs",
        "abi/session_types.rs",
        "abi/process_types.rs",
        "abi/classic.rs",
        "abi/session.rs",
        "abi/version.rs",
        "error.rs",
    ];
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in sources {
        builder = builder.with_src(Path::new(&root).join("src").join(source));
    }
    let bindings = builder.generate()?;
    let mut header = Vec::new();
    bindings.write(&mut header);
    // Rust's heading for what a caller has to see to, in words of C's documentation.
    let header = String::from_utf8(header)?.replace("// # Safety\n", "// Requirements:\n");
    // The tests compare this one with the committed one, so that building never changes the source tree unasked.
    fs::write(Path::new(&env::var("OUT_DIR")?).join("libcapture.h"), &header)?;
    if env::var_os("CAPTURE_UPDATE_HEADER").is_some() {
        fs::write(Path::new(&root).join("include/libcapture.h"), &header)?;
    }

    // The compiler writes the version script, which exports the functions of the C interface and nothing else.
    // The library stays loaded after dlclose, because threads that have just been joined and destructors of
    // thread-local storage may still run code of its.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcapture.so.1");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    Ok(())
}
