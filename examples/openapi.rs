//! Prints the edge's contract as its routes have it, for review: `cargo run --example openapi > docs/openapi.json`.

use std::io::Write;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(edge::openapi_json().as_bytes())
}
