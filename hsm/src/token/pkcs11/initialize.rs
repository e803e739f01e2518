//! The one call of PKCS#11 that takes a raw pointer: initialising a module with words of its own.
//!
//! PKCS#11 3.1, 5.4 keeps `pReserved` null; NSS reads its parameters there (where its database is, what its token is
//! called). What must never enter: any other call.

#![expect(unsafe_code, reason = "a module's own parameters are handed over by a raw pointer")]

use std::{ffi::CStr, ptr::NonNull};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11 as Module},
    error::Error as CallError,
};

/// Initialises a module, with parameters where it takes some.
pub(super) fn initialize(module: &Module, parameters: Option<&CStr>) -> Result<(), CallError> {
    let flags = CInitializeFlags::OS_LOCKING_OK;
    let arguments = match parameters {
        None => CInitializeArgs::new(flags),
        // SAFETY: it points at a string that ends with a zero and outlives the call. A module that takes parameters
        // reads it and keeps no pointer to it; one that takes none must refuse it (PKCS#11 3.1, 5.4).
        Some(text) => unsafe { CInitializeArgs::new_with_reserved(flags, NonNull::from(text).cast()) },
    };
    module.initialize(arguments)
}
