//! Sets and views a PIN through edge, engine and SoftHSM in a container, then resets it.
//!
//! ```text
//! cargo build --release && scripts/softhsm-image
//! cargo run --example set_and_view_in_container
//! ```

use std::error::Error;

use device::{
    Device, Fill, KeyBits, Pin,
    client::{Backend, ClientError, Scope},
};
use pinseal_testcontainers::Pinseal;
use tokio::task::block_in_place;

const PLASTIC_ID: &str = "1000200030";
const ACCOUNT_NUMBER: &str = "5413330089020011";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let pinseal = Pinseal::start().await?;
    pinseal.register_card(PLASTIC_ID, Some(ACCOUNT_NUMBER)).await?;

    // The client under test. This one is blocking.
    let backend = Backend::with_bearer(pinseal.url(), pinseal.bearer_token(), "ci");
    let device = Device::generate(KeyBits::Rsa2048)?;
    block_in_place(|| set(&backend, &device, "2580"))?;
    assert_eq!(block_in_place(|| view(&backend, &device))?.reveal(), "2580");

    pinseal.reset().await?;
    let Err(error) = block_in_place(|| view(&backend, &device)) else { return Err("the reset left a PIN".into()) };
    let Some(ClientError::Refused { status: 404, .. }) = error.downcast_ref() else { return Err(error) };
    Ok(())
}

fn set(backend: &Backend, device: &Device, pin: &str) -> Result<(), Box<dyn Error>> {
    let (control, _) = backend.open_control(PLASTIC_ID, Scope::SetPin)?;
    let (tzpk, _) = backend.set_tzpk(&control, device.public_key_der())?;
    backend.set(&control, &device.encrypt_pin(&tzpk, &Pin::parse(pin)?, Fill::Random)?)?;
    Ok(())
}

fn view(backend: &Backend, device: &Device) -> Result<Pin, Box<dyn Error>> {
    let (control, _) = backend.open_control(PLASTIC_ID, Scope::ViewPin)?;
    let (shown, _) = backend.view(&control, device.public_key_der())?;
    Ok(device.decrypt_pin(&shown.encrypted_tzpk, &shown.block)?)
}
