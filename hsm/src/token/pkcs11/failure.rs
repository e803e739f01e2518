//! Errors of PKCS#11 calls as the errors of this crate.

use cryptoki::error::{Error as CallError, RvError};

use crate::open_error::Pkcs11Error;

/// The error of the named call while a token is opened or probed, with the token's own text.
pub(super) fn call_failed(call: &'static str) -> impl Fn(CallError) -> Pkcs11Error {
    move |error| Pkcs11Error::Call { call, reason: error.to_string() }
}

/// The reason of [`crate::Error::Unavailable`] for a token that was open.
pub(super) fn reason(error: &CallError) -> &'static str {
    match error {
        CallError::Pkcs11(RvError::DeviceRemoved | RvError::TokenNotPresent, _) => "it was removed",
        CallError::Pkcs11(RvError::SessionHandleInvalid | RvError::SessionClosed, _) => "its session was closed",
        CallError::Pkcs11(RvError::UserNotLoggedIn, _) => "its login was lost",
        CallError::Pkcs11(RvError::CryptokiNotInitialized, _) => "its module was finalised",
        CallError::Pkcs11(RvError::KeyHandleInvalid | RvError::ObjectHandleInvalid, _) => "its keys are gone",
        CallError::Pkcs11(RvError::DeviceError | RvError::GeneralError | RvError::FunctionFailed, _) => "it failed",
        CallError::Pkcs11(RvError::DeviceMemory | RvError::HostMemory, _) => "it is out of memory",
        _ => "it refused a call",
    }
}
