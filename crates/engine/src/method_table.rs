//! The table of access: each gRPC method of an engine, with the rights that admit a caller and the tenants that the call covers.
//!
//! [`Gate`](super::gate::Gate) admits calls by this table alone: a method without a row is not served. Health and reflection
//! are not here: they show no data of a card, a key or a tenant. Reflection, and the health of the engine as a whole, serve
//! every certificate of `client_roots`; the health of a service serves those with a right for one of its methods.

use super::peer::{Right, Role};
use audit::entry::Method;

/// The access to one method.
#[derive(Debug)]
pub(super) struct MethodAccess {
    /// The path of the method in a gRPC request.
    pub(super) path: &'static str,
    /// The method in an audit event.
    pub(super) method: Method,
    /// The caller needs one of these rights.
    pub(super) rights: &'static [Right],
    /// The tenants that the call covers.
    pub(super) tenants: CoveredTenants,
}

impl MethodAccess {
    /// The name of the method's service, such as `pinseal.v1.PinService`.
    pub(super) fn service(&self) -> &'static str {
        self.path.trim_start_matches('/').split('/').next().unwrap_or_default()
    }
}

/// The tenants that a call covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CoveredTenants {
    /// The tenant that the request names: one of the caller's.
    Named,
    /// The tenants of the caller: the reply has no data of another tenant.
    OfCaller,
    /// All tenants: a caller that is limited to tenants is denied.
    All,
}

/// The rights of which an edge has one or more.
const RIGHTS_OF_EDGES: &[Right] = &[Right::SetPins, Right::ViewPins, Right::SetPinsByZone, Right::GetPinsByZone];

/// Every method of every service of an engine, each once.
pub(super) static METHOD_TABLE: [MethodAccess; 30] = {
    use CoveredTenants::{All, Named, OfCaller};
    const fn row(
        path: &'static str,
        method: Method,
        rights: &'static [Right],
        tenants: CoveredTenants,
    ) -> MethodAccess {
        MethodAccess { path, method, rights, tenants }
    }
    [
        // The service then checks the right for the scope of the control, here and in the next row.
        row("/pinseal.v1.ControlService/OpenControl", Method::OpenControl, &[Right::SetPins, Right::ViewPins], Named),
        row("/pinseal.v1.ControlService/StartPage", Method::StartPage, &[Right::SetPins, Right::ViewPins], Named),
        row("/pinseal.v1.PinService/IssueTzpk", Method::IssueTzpk, &[Right::SetPins], Named),
        row("/pinseal.v1.PinService/SetPin", Method::SetPin, &[Right::SetPins], Named),
        row("/pinseal.v1.PinService/ViewPin", Method::ViewPin, &[Right::ViewPins], Named),
        row("/pinseal.v1.PinService/SetPinByZone", Method::SetPinByZone, &[Right::SetPinsByZone], Named),
        row("/pinseal.v1.PinService/GetPinByZone", Method::GetPinByZone, &[Right::GetPinsByZone], Named),
        row("/pinseal.v1.PinService/VerifyPin", Method::VerifyPin, &[Right::VerifyPins], Named),
        // The service then checks the right for blocks of a zone, or for those of a device.
        row("/pinseal.v1.PinService/ChangePin", Method::ChangePin, &[Right::VerifyPins, Right::SetPins], Named),
        row("/pinseal.v1.PinService/GeneratePin", Method::GeneratePin, &[Right::Cards], Named),
        row("/pinseal.v1.PinService/ExportPin", Method::ExportPin, &[Right::ExportPins], Named),
        row(
            "/pinseal.v1.PinService/DeriveVerificationValue",
            Method::DeriveVerificationValue,
            &[Right::ExportPins],
            Named,
        ),
        row("/pinseal.v1.PinService/TransferPin", Method::TransferPin, &[Right::Cards], Named),
        row("/pinseal.v1.PinService/TranslatePinBlock", Method::TranslatePinBlock, &[Right::TranslateBlocks], Named),
        row("/pinseal.v1.PinService/SealPan", Method::SealPan, &[Right::TranslateBlocks], Named),
        row("/pinseal.v1.BulkService/TranslatePinBlocks", Method::TranslatePinBlocks, &[Right::TranslateBlocks], Named),
        row("/pinseal.v1.BulkService/ExportPins", Method::ExportPins, &[Right::ExportPins], Named),
        row("/pinseal.v1.BulkService/SetPins", Method::SetPins, &[Right::SetPinsByZone], Named),
        row("/pinseal.v1.CardService/RegisterCard", Method::RegisterCard, &[Right::Cards], Named),
        row("/pinseal.v1.CardService/FindCard", Method::FindCard, &[Right::Cards], Named),
        row("/pinseal.v1.CardService/ResetTries", Method::ResetTries, &[Right::Cards], Named),
        row("/pinseal.v1.EventService/FollowEvents", Method::FollowEvents, &[Right::Cards], Named),
        row("/pinseal.v1.AuditService/ExportAudit", Method::ExportAudit, &[Right::Audit], OfCaller),
        // A checkpoint has the number of all entries, which the sequence numbers of a tenant's entries show too.
        row("/pinseal.v1.AuditService/GetCheckpoint", Method::GetCheckpoint, &[Right::Audit], OfCaller),
        row(
            "/pinseal.v1.AuditService/RecordRejectedCredentials",
            Method::RecordRejectedCredentials,
            RIGHTS_OF_EDGES,
            OfCaller,
        ),
        row("/pinseal.v1.AuditService/RecordClientDenial", Method::RecordClientDenial, RIGHTS_OF_EDGES, Named),
        // Each call of the stream is admitted by the row of its method.
        row("/pinseal.v1.EdgeService/ExchangeCalls", Method::ExchangeCalls, RIGHTS_OF_EDGES, Named),
        row("/pinseal.v1.KeyService/ListKeys", Method::ListKeys, &[Right::Keys], All),
        row("/pinseal.v1.KeyService/WatchRotation", Method::WatchRotation, &[Right::Rotation], All),
        row("/pinseal.v1.KeyService/CountRecords", Method::CountRecords, &[Right::Keys], All),
    ]
};

impl Role {
    /// The paths of the methods that the role may call.
    pub fn methods(self) -> impl Iterator<Item = &'static str> {
        let may_call = move |access: &&MethodAccess| self.rights().iter().any(|right| access.rights.contains(right));
        METHOD_TABLE.iter().filter(may_call).map(|access| access.path)
    }
}

/// The access to the method of this path; `None` for a path that no engine serves.
pub(super) fn access_to(path: &str) -> Option<&'static MethodAccess> {
    METHOD_TABLE.iter().find(|access| access.path == path)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn the_table_has_every_method_of_the_descriptors_once() {
        let described = FileDescriptorSet::decode(proto::DESCRIPTOR_SET).unwrap();
        let mut methods = Vec::new();
        for file in &described.file {
            for service in &file.service {
                let path = |name: &str| format!("/{}.{}/{name}", file.package(), service.name());
                methods.extend(service.method.iter().map(|method| path(method.name())));
            }
        }
        let mut rows: Vec<_> = METHOD_TABLE.iter().map(|access| access.path.to_owned()).collect();
        assert!(methods.len() > 5, "the descriptors have no methods");
        rows.sort();
        methods.sort();
        assert_eq!(rows, methods);
    }

    #[test]
    fn each_method_has_one_row() {
        for access in &METHOD_TABLE {
            assert_eq!(METHOD_TABLE.iter().filter(|other| other.method == access.method).count(), 1, "{access:?}");
            assert_eq!(access_to(access.path).map(|found| found.method), Some(access.method));
        }
        assert!(access_to("/pinseal.v1.PinService/Setpin").is_none());
    }
}
