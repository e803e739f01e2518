//! `.proto` files → descriptor set → tonic code, without a protoc on the machine.

use std::{env, error::Error, path::PathBuf};

use prost::Message;

/// The services of an engine: all that reflection lists of `pinseal.v1`.
const SERVED: [&str; 5] = [
    "proto/pinseal/v1/audit.proto",
    "proto/pinseal/v1/card.proto",
    "proto/pinseal/v1/control.proto",
    "proto/pinseal/v1/key.proto",
    "proto/pinseal/v1/pin.proto",
];
/// The peer of `pinseal bench`, which no engine serves.
const BENCH: &str = "proto/pinseal/v1/echo.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let served = protox::compile(SERVED, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(out.join("pinseal.bin"), served.encode_to_vec())?;

    let descriptors = protox::compile(SERVED.into_iter().chain([BENCH]), ["proto"])?;
    let built_for = |feature: &str| env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();
    tonic_prost_build::configure()
        .build_server(built_for("ENGINE"))
        .build_client(built_for("EDGE") || built_for("OPERATOR"))
        .build_transport(false)
        .codec_path("super::codec::ShortMessageCodec")
        // A message may hold a block: what has no Debug cannot be printed by mistake.
        .skip_debug(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
