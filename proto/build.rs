//! Compiles the `.proto` files to a descriptor set and to Rust, with protox instead of an installed protoc.

use std::{env, error::Error, path::PathBuf};

use prost::Message;

/// The services of an engine, which gRPC reflection lists.
const SERVED: [&str; 8] = [
    "pinseal/v1/audit.proto",
    "pinseal/v1/bulk.proto",
    "pinseal/v1/card.proto",
    "pinseal/v1/control.proto",
    "pinseal/v1/edge.proto",
    "pinseal/v1/event.proto",
    "pinseal/v1/key.proto",
    "pinseal/v1/pin.proto",
];
/// The echo service of `pinseal bench`; no engine serves it.
const BENCH: &str = "pinseal/v1/echo.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=pinseal");
    let served = protox::compile(SERVED, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(out.join("pinseal.bin"), served.encode_to_vec())?;

    let descriptors = protox::compile(SERVED.into_iter().chain([BENCH]), ["."])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("super::codec::ShortMessageCodec")
        // A message can hold a PIN block. Without Debug, no log can print it by mistake.
        .skip_debug(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
