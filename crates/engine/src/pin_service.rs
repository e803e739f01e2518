//! The gRPC service of PINs: decode the message, run the use case, encode the reply. No logic.

use tonic::{Request, Response, Status, async_trait};
use zeroize::Zeroizing;

use super::{gate::Call, peer::Right, service::Services, wire};
use crate::pin::PinChange;
use proto::{self, pin_service_server};
use store::ZoneSet;

#[async_trait]
impl pin_service_server::PinService for Services {
    async fn issue_tzpk(
        &self,
        request: Request<proto::IssueTzpkRequest>,
    ) -> Result<Response<proto::IssueTzpkResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let control = wire::control_id(&message.control_id)?;
        let device = wire::device_key(&message.device_public_key, message.oaep_mgf1)?;

        let issued = call.run(self.pins.issue_tzpk(&caller, control, &device)).await?;
        self.count(&device);
        Ok(Response::new(proto::IssueTzpkResponse {
            encrypted_tzpk: issued.encrypted_tzpk,
            kcv: issued.check_value,
            expire_time: Some(audit_wire::timestamp(issued.expires_at)),
        }))
    }

    async fn set_pin(&self, request: Request<proto::SetPinRequest>) -> Result<Response<proto::SetPinResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let control = wire::control_id(&message.control_id)?;
        let block = wire::pin_block(&message.pin_block)?;

        call.run(self.pins.set_pin(&caller, control, &block)).await?;
        Ok(Response::new(proto::SetPinResponse {}))
    }

    async fn view_pin(
        &self,
        request: Request<proto::ViewPinRequest>,
    ) -> Result<Response<proto::ViewPinResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let control = wire::control_id(&message.control_id)?;
        let device = wire::device_key(&message.device_public_key, message.oaep_mgf1)?;

        let viewed = call.run(self.pins.view_pin(&caller, control, &device)).await?;
        self.count(&device);
        Ok(Response::new(proto::ViewPinResponse {
            encrypted_tzpk: viewed.encrypted_tzpk,
            pin_block: viewed.pin_block.as_bytes().to_vec(),
            kcv: viewed.check_value,
        }))
    }

    async fn set_pin_by_zone(
        &self,
        request: Request<proto::SetPinByZoneRequest>,
    ) -> Result<Response<proto::SetPinByZoneResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let plastic = wire::plastic_id(&message.plastic_id)?;
        let block = wire::zone_block(message.zone_block)?;

        let card = self.pins.admit_card(&caller, plastic).map_err(|error| call.failed(&error))?;
        let set = call.run(self.pins.set_pin_by_zone(&caller, &card, &block)).await?;
        Ok(Response::new(proto::SetPinByZoneResponse { unchanged: set == ZoneSet::Repeated }))
    }

    async fn get_pin_by_zone(
        &self,
        request: Request<proto::GetPinByZoneRequest>,
    ) -> Result<Response<proto::GetPinByZoneResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let plastic = wire::plastic_id(&message.plastic_id)?;
        let key = wire::zone_key(message.zone_key)?;

        let card = self.pins.admit_card(&caller, plastic).map_err(|error| call.failed(&error))?;
        let block = call.run(self.pins.get_pin_by_zone(&caller, &card, &key)).await?;
        Ok(Response::new(proto::GetPinByZoneResponse { pin_block: block.as_bytes().to_vec() }))
    }

    async fn verify_pin(
        &self,
        request: Request<proto::VerifyPinRequest>,
    ) -> Result<Response<proto::VerifyPinResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let plastic = wire::plastic_id(&message.plastic_id)?;
        let block = wire::zone_block(message.zone_block)?;
        let expected = wire::expected_value(message.reference)?;

        let verified = call.run(self.pins.verify_pin(&caller, plastic, &block, expected)).await?;
        Ok(Response::new(proto::VerifyPinResponse {
            result: wire::verification_result(&verified),
            remaining_try_count: verified.tries_left,
        }))
    }

    async fn change_pin(
        &self,
        request: Request<proto::ChangePinRequest>,
    ) -> Result<Response<proto::ChangePinResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let change = wire::pin_change(message.change)?;
        let rights: &[Right] = match change {
            PinChange::Zone { .. } => &[Right::VerifyPins],
            PinChange::Device { .. } => &[Right::SetPins],
        };
        self.gate.admit_rights(call, rights, &caller.tenant).await?;

        let verified = call.run(self.pins.change_pin(&caller, &change)).await?;
        Ok(Response::new(proto::ChangePinResponse {
            result: wire::verification_result(&verified),
            remaining_try_count: verified.tries_left,
        }))
    }

    async fn generate_pin(
        &self,
        request: Request<proto::GeneratePinRequest>,
    ) -> Result<Response<proto::GeneratePinResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let plastic = wire::plastic_id(&message.plastic_id)?;
        let digits = wire::digit_count(message.digit_count)?;

        call.run(self.pins.generate_pin(&caller, plastic, digits)).await?;
        Ok(Response::new(proto::GeneratePinResponse {}))
    }

    async fn export_pin(
        &self,
        request: Request<proto::ExportPinRequest>,
    ) -> Result<Response<proto::ExportPinResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let plastic = wire::plastic_id(&message.plastic_id)?;
        let (key, format) = (wire::zone_key(message.zone_key)?, wire::zone_format(message.format)?);

        let card = self.pins.admit_card(&caller, plastic).map_err(|error| call.failed(&error))?;
        let block = call.run(self.pins.export_pin(&caller, &card, &key, format)).await?;
        Ok(Response::new(proto::ExportPinResponse { pin_block: block.as_bytes().to_vec() }))
    }

    async fn derive_verification_value(
        &self,
        request: Request<proto::DeriveVerificationValueRequest>,
    ) -> Result<Response<proto::DeriveVerificationValueResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let plastic = wire::plastic_id(&message.plastic_id)?;
        let method = wire::value_method(message.method)?;

        let value = call.run(self.pins.derive_value(&caller, plastic, &method)).await?;
        Ok(Response::new(proto::DeriveVerificationValueResponse { digits: value.to_text() }))
    }

    async fn transfer_pin(
        &self,
        request: Request<proto::TransferPinRequest>,
    ) -> Result<Response<proto::TransferPinResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let source = wire::plastic_id(&message.source_plastic_id)?;
        let target = wire::plastic_id(&message.plastic_id)?;

        call.run(self.pins.transfer_pin(&caller, source, target)).await?;
        Ok(Response::new(proto::TransferPinResponse {}))
    }

    async fn translate_pin_block(
        &self,
        request: Request<proto::TranslatePinBlockRequest>,
    ) -> Result<Response<proto::TranslatePinBlockResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let block = wire::translation(message.item)?;

        let card = self.pins.admit_card(&caller, block.plastic).map_err(|error| call.failed(&error))?;
        let block = call.run(self.pins.translate_block(&caller, &card, &block)).await?;
        Ok(Response::new(proto::TranslatePinBlockResponse { pin_block: block.as_bytes().to_vec() }))
    }

    async fn seal_pan(
        &self,
        request: Request<proto::SealPanRequest>,
    ) -> Result<Response<proto::SealPanResponse>, Status> {
        let (_, extensions, mut message) = request.into_parts();
        let call = Call::of(&extensions)?;
        // Zeroizing wipes the number on every return.
        let number = Zeroizing::new(std::mem::take(&mut message.account_number));
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let plastic = wire::plastic_id(&message.plastic_id)?;
        let number = wire::account_number(&number)?.ok_or_else(wire::no_account_number)?;

        let sealed = call.run(self.pins.seal_account(&caller, plastic, number)).await?;
        Ok(Response::new(proto::SealPanResponse { sealed_account: sealed.as_bytes().to_vec() }))
    }
}
