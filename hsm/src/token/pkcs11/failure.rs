//! A token's answers, in words of ours.

use cryptoki::error::{Error as CallError, RvError};

use crate::open_error::Pkcs11Error;

/// A call that failed while a token is opened or looked at: its name, and the token's own words.
pub(super) fn call_failed(call: &'static str) -> impl Fn(CallError) -> Pkcs11Error {
    move |error| Pkcs11Error::Call { call, reason: error.to_string() }
}

/// Why a token that was open is not available.
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
