//! `.proto` files → descriptor set → tonic code, without a protoc on the machine.

use std::{env, error::Error, path::PathBuf};

use prost::Message;

/// The services of an engine: all that reflection lists of `pinseal.v1`.
const SERVED: [&str; 5] = [
    "pinseal/v1/audit.proto",
    "pinseal/v1/card.proto",
    "pinseal/v1/control.proto",
    "pinseal/v1/key.proto",
    "pinseal/v1/pin.proto",
];
/// The peer of `pinseal bench`, which no engine serves.
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
        // A message may hold a block: what has no Debug cannot be printed by mistake.
        .skip_debug(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
