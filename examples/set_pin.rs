//! Sets a PIN over gRPC: the back-end's calls, and what the cardholder's device does between them.
//!
//! ```text
//! cargo run -- engine                 # in one terminal
//! cargo run --example set_pin         # in another
//! ```

use std::error::Error;

use device::{Device, Fill, KeyBits, Pin};
use proto::{
    IssueTzpkRequest, OpenControlRequest, Scope, SetPinRequest, control_service_client::ControlServiceClient,
    pin_service_client::PinServiceClient,
};

const ENGINE: &str = "http://127.0.0.1:50051";
const PLASTIC_ID: &str = "1000200030";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (tenant, audit_user) = (String::from("default"), String::from("example"));
    let channel = net::connect::channel(&ENGINE.parse()?, None)?;

    // The back-end opens a control: one card, one purpose, 30 seconds.
    let request = OpenControlRequest {
        tenant: tenant.clone(),
        audit_user: audit_user.clone(),
        plastic_id: PLASTIC_ID.into(),
        scope: Scope::SetPin.into(),
        ..OpenControlRequest::default()
    };
    let control = ControlServiceClient::new(channel.clone()).open_control(request).await?.into_inner();

    // The device has a key pair; the back-end passes the public key on and asks for a tzpk.
    let device = Device::generate(KeyBits::Rsa2048)?;
    let mut pins = PinServiceClient::new(channel);
    let request = IssueTzpkRequest {
        tenant: tenant.clone(),
        audit_user: audit_user.clone(),
        control_id: control.control_id.clone(),
        device_public_key: device.public_key_der().to_vec(),
        oaep_mgf1: proto::OaepMgf1::Unspecified.into(),
    };
    let tzpk = pins.issue_tzpk(request).await?.into_inner();

    // The device encrypts the PIN as an ISO 9564 format 1 block under the tzpk. The back-end never sees the PIN.
    let block = device.encrypt_pin(&tzpk.encrypted_tzpk, &Pin::parse("2580")?, Fill::Random)?;
    let request = SetPinRequest { tenant, audit_user, control_id: control.control_id, pin_block: block.to_vec() };
    pins.set_pin(request).await?;
    Ok(())
}
