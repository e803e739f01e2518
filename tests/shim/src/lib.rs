//! A PKCS#11 module for tests, in front of a real one: it forwards every call, fails calls on command, and records
//! every output buffer. It consists of C calls, so it is `unsafe` throughout; no product code links it.
//!
//! - `PINSEAL_SHIM_MODULE`: the real module.
//! - `PINSEAL_SHIM_COMMAND`: a file. While it is there, calls that hold a session fail with the hexadecimal CK_RV in it.
//! - `PINSEAL_SHIM_TOKEN_FLAGS`: a file. While it is there, the token says that the hexadecimal CK_FLAGS in it are set.
//! - `PINSEAL_SHIM_LOGIN`: a file. While it is there, C_Login answers the hexadecimal CK_RV in it.
//! - `PINSEAL_SHIM_TRACE`: a file. Each call adds a line: its name, then in hexadecimal what came out.
//! - `PINSEAL_SHIM_ESCAPE`: a directory. While it is there, the module tries to get out (`escape.rs`): once when it is
//!   loaded, and once at a decryption after there is a file `serving` in it; each writes what it tried beside that.
//!
//! The function list has no other calls that return bytes: a call that the trace does not show was not made.

#![allow(non_snake_case, reason = "the names are those of PKCS#11")]

mod escape;

use std::{
    env, fs,
    io::Write,
    ptr, slice,
    sync::{Mutex, OnceLock},
};

use cryptoki_sys::*;
use libloading::Library;

struct Real {
    functions: CK_FUNCTION_LIST,
    /// Stays loaded until the process ends.
    _library: Library,
}

// The function list is constant once loaded.
unsafe impl Sync for Real {}
unsafe impl Send for Real {}

static REAL: OnceLock<Option<Real>> = OnceLock::new();
static SHIM: OnceLock<Shim> = OnceLock::new();
static TRACE: Mutex<()> = Mutex::new(());

/// The list that the caller gets.
struct Shim(CK_FUNCTION_LIST);

unsafe impl Sync for Shim {}
unsafe impl Send for Shim {}

fn real() -> Option<&'static Real> {
    REAL.get_or_init(|| {
        let path = env::var_os("PINSEAL_SHIM_MODULE")?;
        // SAFETY: the test names a PKCS#11 module; loading one runs its initialisers, as it does without the shim.
        let library = unsafe { Library::new(path) }.ok()?;
        let mut list: *mut CK_FUNCTION_LIST = ptr::null_mut();
        // SAFETY: every PKCS#11 module exports this symbol with this type, and returns a static list.
        let functions = unsafe {
            let get = library
                .get::<unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV>(b"C_GetFunctionList\0")
                .ok()?;
            if get(&mut list) != CKR_OK || list.is_null() {
                return None;
            }
            *list
        };
        Some(Real { functions, _library: library })
    })
    .as_ref()
}

/// The current commanded failure.
fn commanded() -> Option<CK_RV> {
    number_in("PINSEAL_SHIM_COMMAND")
}

/// The hexadecimal number in the file that a variable names.
fn number_in(variable: &str) -> Option<CK_ULONG> {
    let text = fs::read_to_string(env::var_os(variable)?).ok()?;
    CK_ULONG::from_str_radix(text.trim(), 16).ok()
}

fn trace(call: &str, out: &[u8]) {
    let Some(path) = env::var_os("PINSEAL_SHIM_TRACE") else { return };
    let _held = TRACE.lock();
    let Ok(mut file) = fs::File::options().create(true).append(true).open(path) else { return };
    let hexadecimal: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
    let _ = writeln!(file, "{call} {hexadecimal}");
}

/// Calls the real function, unless a failure is commanded.
macro_rules! forward {
    ($name:ident($($argument:expr),*)) => {
        match (commanded(), real().and_then(|real| real.functions.$name)) {
            (Some(failure), _) => failure,
            // SAFETY: the arguments are the caller's own, handed on unchanged.
            (None, Some(function)) => unsafe { function($($argument),*) },
            (None, None) => CKR_FUNCTION_NOT_SUPPORTED,
        }
    };
}

/// Records the bytes that a successful call wrote into a buffer of the caller.
///
/// # Safety
/// `out` is null, or has `length` bytes, as PKCS#11 asks of every caller.
unsafe fn trace_out(call: &str, result: CK_RV, out: *const CK_BYTE, length: *const CK_ULONG) {
    if result == CKR_OK && !out.is_null() && !length.is_null() {
        // SAFETY: see above; the real module has just filled it in.
        trace(call, unsafe { slice::from_raw_parts(out, *length as usize) });
    }
}

unsafe extern "C" fn C_OpenSession(
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    application: *mut std::ffi::c_void,
    notify: CK_NOTIFY,
    session: *mut CK_SESSION_HANDLE,
) -> CK_RV {
    forward!(C_OpenSession(slot, flags, application, notify, session))
}

unsafe extern "C" fn C_GetTokenInfo(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    let result = forward!(C_GetTokenInfo(slot, info));
    // SAFETY: PKCS#11 has the caller hand in a structure, which the real module has just filled in.
    if let (CKR_OK, Some(flags), Some(info)) = (result, number_in("PINSEAL_SHIM_TOKEN_FLAGS"), unsafe { info.as_mut() })
    {
        info.flags |= flags;
    }
    result
}

unsafe extern "C" fn C_Login(
    session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: *mut CK_UTF8CHAR,
    length: CK_ULONG,
) -> CK_RV {
    trace("C_Login", &[]);
    if let Some(failure) = number_in("PINSEAL_SHIM_LOGIN") {
        return failure;
    }
    forward!(C_Login(session, user, pin, length))
}

unsafe extern "C" fn C_GenerateRandom(session: CK_SESSION_HANDLE, out: *mut CK_BYTE, length: CK_ULONG) -> CK_RV {
    let result = forward!(C_GenerateRandom(session, out, length));
    // SAFETY: PKCS#11 has the caller say how long `out` is.
    unsafe { trace_out("C_GenerateRandom", result, out, &length) };
    result
}

unsafe extern "C" fn C_DecryptInit(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    trace("C_DecryptInit", &[]);
    escape::try_while_serving();
    forward!(C_DecryptInit(session, mechanism, key))
}

macro_rules! ciphers {
    ($($name:ident),+) => {$(
        unsafe extern "C" fn $name(
            session: CK_SESSION_HANDLE,
            data: *mut CK_BYTE,
            data_length: CK_ULONG,
            out: *mut CK_BYTE,
            length: *mut CK_ULONG,
        ) -> CK_RV {
            let result = forward!($name(session, data, data_length, out, length));
            // SAFETY: PKCS#11 has the caller say how long `out` is.
            unsafe { trace_out(stringify!($name), result, out, length) };
            result
        }
    )+};
}

ciphers!(C_Decrypt, C_Encrypt, C_Sign);

unsafe extern "C" fn C_WrapKey(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    wrapping: CK_OBJECT_HANDLE,
    key: CK_OBJECT_HANDLE,
    out: *mut CK_BYTE,
    length: *mut CK_ULONG,
) -> CK_RV {
    let result = forward!(C_WrapKey(session, mechanism, wrapping, key, out, length));
    // SAFETY: PKCS#11 has the caller say how long `out` is.
    unsafe { trace_out("C_WrapKey", result, out, length) };
    result
}

unsafe extern "C" fn C_UnwrapKey(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    unwrapping: CK_OBJECT_HANDLE,
    wrapped: *mut CK_BYTE,
    wrapped_length: CK_ULONG,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    trace("C_UnwrapKey", &[]);
    forward!(C_UnwrapKey(session, mechanism, unwrapping, wrapped, wrapped_length, template, count, key))
}

unsafe extern "C" fn C_GetAttributeValue(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    let result = forward!(C_GetAttributeValue(session, object, template, count));
    if result == CKR_OK && !template.is_null() {
        // SAFETY: PKCS#11 has the caller hand in `count` attributes, each with a buffer of its length or none.
        for attribute in unsafe { slice::from_raw_parts(template, count as usize) } {
            if attribute.type_ == CKA_VALUE {
                trace("C_GetAttributeValue(CKA_VALUE)", &[]);
            }
            let value = attribute.pValue.cast::<CK_BYTE>();
            // SAFETY: as above.
            unsafe { trace_out("C_GetAttributeValue", result, value, &attribute.ulValueLen) };
        }
    }
    result
}

/// Takes functions out of a list.
macro_rules! withhold {
    ($functions:ident: $($name:ident),+) => { $( $functions.$name = None; )+ };
}

/// The one symbol a module must have.
///
/// # Safety
/// `list` is a place for a pointer, as PKCS#11 asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    escape::try_while_loading();
    let Some(real) = real() else { return CKR_GENERAL_ERROR };
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    let shim = SHIM.get_or_init(|| {
        let mut functions = real.functions;
        functions.C_GetFunctionList = Some(C_GetFunctionList);
        functions.C_GetTokenInfo = Some(C_GetTokenInfo);
        functions.C_Login = Some(C_Login);
        functions.C_OpenSession = Some(C_OpenSession);
        functions.C_GenerateRandom = Some(C_GenerateRandom);
        functions.C_DecryptInit = Some(C_DecryptInit);
        functions.C_Decrypt = Some(C_Decrypt);
        functions.C_Encrypt = Some(C_Encrypt);
        functions.C_Sign = Some(C_Sign);
        functions.C_WrapKey = Some(C_WrapKey);
        functions.C_UnwrapKey = Some(C_UnwrapKey);
        functions.C_GetAttributeValue = Some(C_GetAttributeValue);
        withhold!(functions: C_DecryptUpdate, C_DecryptFinal, C_EncryptUpdate, C_EncryptFinal, C_SignFinal);
        withhold!(functions: C_SignRecover, C_VerifyRecover, C_Digest, C_DigestFinal, C_GetOperationState);
        withhold!(functions: C_DigestEncryptUpdate, C_DecryptDigestUpdate, C_SignEncryptUpdate, C_DecryptVerifyUpdate);
        Shim(functions)
    });
    // SAFETY: checked above; callers read the list and never write it.
    unsafe { *list = ptr::from_ref(&shim.0).cast_mut() };
    CKR_OK
}
