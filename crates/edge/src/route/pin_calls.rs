//! The calls of a device to the engine, for a client's request and for a page's.

use axum::http::StatusCode;
use tonic::Status;

use super::{ApiRequest, EdgeState};
use crate::{
    api_error::{ApiError, Rejection},
    body::{self, DeviceKeyRequest, Member, PinSet, SetPinRequest, Tzpk, ViewedPin},
    device_key,
};

impl EdgeState {
    /// Issues a tzpk for the device key of the body.
    ///
    /// # Errors
    /// The body is malformed, MGF1-SHA-1 has ended for the client, or the engine refused the call.
    pub(super) async fn issue_tzpk(&self, request: ApiRequest) -> Result<(StatusCode, Tzpk), Rejection> {
        let body: DeviceKeyRequest = body::parse(&request.body)?;
        let oaep_mgf1 = request.oaep_mgf1?;
        let (control_id, key) =
            (control_of(request.page_control, body.control_id)?, body::public_key(body.public_key)?);
        let call = proto::IssueTzpkRequest {
            tenant: request.tenant,
            audit_user: request.audit_user,
            control_id,
            device_public_key: key.clone(),
            oaep_mgf1: oaep_mgf1.into(),
        };
        let issued = self.call(request.id, call).await.map_err(|status| device_key_rejection(status, &key))?;
        let check_value = request.wants_kcv.then(|| body::hex(&issued.kcv));
        Ok((StatusCode::OK, Tzpk { tzpk: body::base64(&issued.encrypted_tzpk), check_value }))
    }

    /// Sets the PIN of the body's block.
    ///
    /// # Errors
    /// The body is malformed, or the engine refused the call.
    pub(super) async fn set_pin(&self, request: ApiRequest) -> Result<(StatusCode, PinSet), Rejection> {
        let body: SetPinRequest = body::parse(&request.body)?;
        let call = proto::SetPinRequest {
            tenant: request.tenant,
            audit_user: request.audit_user,
            control_id: control_of(request.page_control, body.control_id)?,
            pin_block: body::pin_block(body.pin_block)?,
        };
        self.call(request.id, call).await?;
        Ok((StatusCode::OK, PinSet {}))
    }

    /// Returns the PIN for the device key of the body.
    ///
    /// # Errors
    /// As [`issue_tzpk`](Self::issue_tzpk).
    pub(super) async fn view_pin(&self, request: ApiRequest) -> Result<(StatusCode, ViewedPin), Rejection> {
        let body: DeviceKeyRequest = body::parse(&request.body)?;
        let oaep_mgf1 = request.oaep_mgf1?;
        let (control_id, key) =
            (control_of(request.page_control, body.control_id)?, body::public_key(body.public_key)?);
        let call = proto::ViewPinRequest {
            tenant: request.tenant,
            audit_user: request.audit_user,
            control_id,
            device_public_key: key.clone(),
            oaep_mgf1: oaep_mgf1.into(),
        };
        let shown = self.call(request.id, call).await.map_err(|status| device_key_rejection(status, &key))?;
        let check_value = request.wants_kcv.then(|| body::hex(&shown.kcv));
        let (tzpk, pin_block) = (body::base64(&shown.encrypted_tzpk), body::base64(&shown.pin_block));
        Ok((StatusCode::OK, ViewedPin { tzpk, pin_block, check_value }))
    }
}

/// The controlId of a page's session, else that of the body.
fn control_of(page_control: Option<String>, of_body: Member) -> Result<String, ApiError> {
    page_control.map_or_else(|| body::control_id(of_body), Ok)
}

/// The error of the engine; if the engine rejects the device key `der`, with the mistake in it.
fn device_key_rejection(status: Status, der: &[u8]) -> Rejection {
    let rejection = Rejection::from(status);
    if rejection.error == ApiError::DEVICE_KEY_INVALID { device_key::mistake_in_der(der).into() } else { rejection }
}
