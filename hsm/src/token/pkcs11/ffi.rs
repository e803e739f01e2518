//! The PKCS#11 functions that are called as C functions: C_Initialize with parameters, and the functions that return bytes.
//!
//! cryptoki first asks for the length of every output: a second call, which on some tokens repeats the work and on a network
//! HSM costs a round trip. It also returns clear blocks in unlocked memory. Here the caller knows the length, and the module
//! writes into the caller's locked memory, which is wiped. `cargo bench --bench tokens` measures the difference.
//! What must never enter: a call that cryptoki makes equally well.
//!
//! Some modules, such as p11-kit's client, return a new function list with its own state at each C_GetFunctionList. For such a
//! module cryptoki's calls are used.

#![expect(unsafe_code, reason = "C functions write into buffers of this crate")]

use std::{
    ffi::CStr,
    ops::Deref,
    path::Path,
    ptr::{self, NonNull},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11 as Module},
    error::{Error as CallError, Rv},
    mechanism::Mechanism,
    object::ObjectHandle,
    session::Session,
};
use cryptoki_sys::{
    CK_BYTE, CK_FUNCTION_LIST, CK_INFO, CK_MECHANISM, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_ULONG, CKR_OK,
};
use libloading::Library;
use zeroize::Zeroizing;

/// Calls C_Initialize, with parameters for a module that takes some. PKCS#11 3.1, 5.4 requires `pReserved` to be null; NSS
/// reads its parameters there (the directory of its database, the label of its token).
pub(super) fn initialize(module: &Module, parameters: Option<&CStr>) -> Result<(), CallError> {
    let flags = CInitializeFlags::OS_LOCKING_OK;
    let arguments = match parameters {
        None => CInitializeArgs::new(flags),
        // SAFETY: the pointer is to a string that ends with a zero and outlives the call. A module that takes parameters
        // reads the string and keeps no pointer to it; a module that takes none must reject the call.
        Some(text) => unsafe { CInitializeArgs::new_with_reserved(flags, NonNull::from(text).cast()) },
    };
    module.initialize(arguments)
}

/// `C_EncryptInit`, `C_DecryptInit`, `C_SignInit`.
type InitFunction = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_MECHANISM, CK_OBJECT_HANDLE) -> CK_RV;
/// `C_Encrypt`, `C_Decrypt`, `C_Sign`.
type WorkFunction =
    unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG) -> CK_RV;

/// The C functions of a module. The module stays loaded until this is dropped.
pub(super) struct Functions {
    list: CK_FUNCTION_LIST,
    _library: Library,
}

impl Functions {
    /// The functions of a module that cryptoki has loaded; `None` where the module returns another list at each call.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, CallError> {
        // SAFETY: cryptoki has loaded the same file before, so no initialiser of the library runs.
        let library = unsafe { Library::new(path) }?;
        let (mut list, mut again) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: every module exports this symbol with this type (PKCS#11 3.1, 5.4), and returns a pointer to a list that
        // is constant while the module is loaded.
        let found = unsafe {
            let get =
                library.get::<unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV>(b"C_GetFunctionList\0")?;
            Rv::from(get(&mut list)).into_result(Function::GetFunctionList)?;
            Rv::from(get(&mut again)).into_result(Function::GetFunctionList)?;
            *list.as_ref().ok_or(CallError::NullFunctionPointer)?
        };
        Ok((list == again).then_some(Self { list: found, _library: library }))
    }

    /// Whether these functions share the state that cryptoki has initialised.
    pub(super) fn are_initialised(&self) -> bool {
        let mut info = CK_INFO::default();
        // SAFETY: the module writes into a structure of this frame.
        self.list.C_GetInfo.is_some_and(|get_info| unsafe { get_info(&mut info) } == CKR_OK)
    }
}

/// A session with the C functions of its module. Dereferences to cryptoki's session for all other calls.
#[derive(Clone, Copy)]
pub(super) struct Calls<'a> {
    session: &'a Session,
    functions: Option<&'a Functions>,
}

impl Deref for Calls<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.session
    }
}

impl<'a> Calls<'a> {
    /// `session` and `functions` must belong to the same module.
    pub(super) fn new(session: &'a Session, functions: Option<&'a Functions>) -> Self {
        Self { session, functions }
    }

    /// `C_EncryptInit` and `C_Encrypt`: the ciphertext fills `out`.
    pub(super) fn encrypt(
        self,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        clear: &[u8],
        out: &mut [u8],
    ) -> Result<(), CallError> {
        let Some(Functions { list, .. }) = self.functions else {
            return copy(out, &Zeroizing::new(self.session.encrypt(mechanism, key, clear)?));
        };
        let init = (list.C_EncryptInit, Function::EncryptInit);
        self.run(init, (list.C_Encrypt, Function::Encrypt), mechanism, key, clear, out)
    }

    /// `C_DecryptInit` and `C_Decrypt`: the clear bytes fill `out`, and stay in no other memory of this process.
    pub(super) fn decrypt(
        self,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        cipher: &[u8],
        out: &mut [u8],
    ) -> Result<(), CallError> {
        let Some(Functions { list, .. }) = self.functions else {
            return copy(out, &Zeroizing::new(self.session.decrypt(mechanism, key, cipher)?));
        };
        let init = (list.C_DecryptInit, Function::DecryptInit);
        self.run(init, (list.C_Decrypt, Function::Decrypt), mechanism, key, cipher, out)
    }

    /// `C_SignInit` and `C_Sign`: the tag or signature fills `out`.
    pub(super) fn sign(
        self,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<(), CallError> {
        let Some(Functions { list, .. }) = self.functions else {
            return copy(out, &Zeroizing::new(self.session.sign(mechanism, key, message)?));
        };
        let init = (list.C_SignInit, Function::SignInit);
        self.run(init, (list.C_Sign, Function::Sign), mechanism, key, message, out)
    }

    /// Calls `init`, then `work` on `input`. The output must fill `out`.
    fn run(
        self,
        (init, init_name): (Option<InitFunction>, Function),
        (work, work_name): (Option<WorkFunction>, Function),
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<(), CallError> {
        let (init, work) = init.zip(work).ok_or(CallError::NullFunctionPointer)?;
        let (handle, mut mechanism) = (self.session.handle(), CK_MECHANISM::from(mechanism));
        let (input_length, mut length) = (length_of(input)?, length_of(out)?);
        // SAFETY: `init` is a function of the session's module. The mechanism and its parameters outlive both calls; the
        // module only reads them (PKCS#11 3.1, 5.8).
        let began = unsafe { init(handle, &mut mechanism, key.handle()) };
        Rv::from(began).into_result(init_name)?;
        // SAFETY: both buffers have the lengths passed. The module only reads the input, although its C type is mutable.
        let done = unsafe { work(handle, input.as_ptr().cast_mut(), input_length, out.as_mut_ptr(), &mut length) };
        Rv::from(done).into_result(work_name)?;
        check_filled(out, length)
    }

    /// `C_WrapKey`: the wrapped object fills `out`.
    pub(super) fn wrap(
        self,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        object: ObjectHandle,
        out: &mut [u8],
    ) -> Result<(), CallError> {
        let Some(functions) = self.functions else {
            let wrapped = self.session.wrap_key(mechanism, key, object)?;
            // cryptoki does not shorten its buffer to the length that the token wrote.
            return copy(out, wrapped.get(..out.len()).unwrap_or_default());
        };
        let wrap = functions.list.C_WrapKey.ok_or(CallError::NullFunctionPointer)?;
        let mut mechanism: CK_MECHANISM = mechanism.into();
        let mut length = length_of(out)?;
        let (handle, key, object) = (self.session.handle(), key.handle(), object.handle());
        // SAFETY: the mechanism and its parameters outlive the call, and the buffer has the length passed.
        let done = unsafe { wrap(handle, &mut mechanism, key, object, out.as_mut_ptr(), &mut length) };
        Rv::from(done).into_result(Function::WrapKey)?;
        check_filled(out, length)
    }
}

fn length_of(buffer: &[u8]) -> Result<CK_ULONG, CallError> {
    Ok(CK_ULONG::try_from(buffer.len())?)
}

fn copy(out: &mut [u8], answer: &[u8]) -> Result<(), CallError> {
    check_filled(out, length_of(answer)?)?;
    out.copy_from_slice(answer);
    Ok(())
}

/// Rejects an output of another length than the mechanism has.
fn check_filled(out: &[u8], length: CK_ULONG) -> Result<(), CallError> {
    if length_of(out)? == length { Ok(()) } else { Err(CallError::InvalidValue) }
}
