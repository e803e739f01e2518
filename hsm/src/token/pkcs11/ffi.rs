//! The calls of PKCS#11 that are made as C: initialising a module with words of its own, and those that give out bytes.
//!
//! cryptoki asks for the length of every answer first, which is a second call (on some tokens the whole work, on a
//! network HSM a round trip), and gives a clear block out in memory of its own. Here an answer has the length that is
//! known beforehand, and is written where it belongs: into locked memory that is wiped. `cargo bench --bench tokens` is
//! the reason for this module. What must never enter: a call that cryptoki makes as well.
//!
//! A module may hand out another list of functions, with a state of its own, each time it is asked, as p11-kit's client
//! does. Of such a one cryptoki's calls are used.

#![expect(unsafe_code, reason = "C calls into buffers of ours")]

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
use cryptoki_sys::{CK_FUNCTION_LIST, CK_INFO, CK_MECHANISM, CK_RV, CK_ULONG, CKR_OK};
use libloading::Library;
use zeroize::Zeroizing;

/// Initialises a module, with parameters where it takes some.
///
/// PKCS#11 3.1, 5.4 keeps `pReserved` null; NSS reads its parameters there (where its database is, what its token is
/// called).
pub(super) fn initialize(module: &Module, parameters: Option<&CStr>) -> Result<(), CallError> {
    let flags = CInitializeFlags::OS_LOCKING_OK;
    let arguments = match parameters {
        None => CInitializeArgs::new(flags),
        // SAFETY: it points at a string that ends with a zero and outlives the call. A module that takes parameters
        // reads it and keeps no pointer to it; one that takes none must refuse it.
        Some(text) => unsafe { CInitializeArgs::new_with_reserved(flags, NonNull::from(text).cast()) },
    };
    module.initialize(arguments)
}

/// The functions of a module that is loaded already; it stays loaded while this lives.
pub(super) struct Functions {
    list: CK_FUNCTION_LIST,
    _library: Library,
}

impl Functions {
    /// Of the module at a path; none where its list is not always the same.
    pub(super) fn of(path: &Path) -> Result<Option<Self>, CallError> {
        // SAFETY: cryptoki has loaded the same file just before, so no initialiser runs but those that ran already.
        let library = unsafe { Library::new(path) }?;
        let (mut list, mut again) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: every module exports this symbol with this type (PKCS#11 3.1, 5.4), and fills in a pointer to a list
        // of its own that is constant while it is loaded.
        let found = unsafe {
            let get =
                library.get::<unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV>(b"C_GetFunctionList\0")?;
            Rv::from(get(&mut list)).into_result(Function::GetFunctionList)?;
            Rv::from(get(&mut again)).into_result(Function::GetFunctionList)?;
            *list.as_ref().ok_or(CallError::NullFunctionPointer)?
        };
        Ok((list == again).then_some(Self { list: found, _library: library }))
    }

    /// Whether they are of the state that cryptoki has initialised.
    pub(super) fn are_initialised(&self) -> bool {
        let mut info = CK_INFO::default();
        // SAFETY: the structure is the caller's own, to be filled in.
        self.list.C_GetInfo.is_some_and(|get_info| unsafe { get_info(&mut info) } == CKR_OK)
    }
}

/// A session, and the functions of its module.
#[derive(Clone, Copy)]
pub(super) struct Calls<'a> {
    session: &'a Session,
    functions: Option<&'a Functions>,
}

/// What cryptoki does well.
impl Deref for Calls<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.session
    }
}

impl<'a> Calls<'a> {
    /// Both are of one module.
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
        let Some(functions) = self.functions else {
            return copied(out, &Zeroizing::new(self.session.encrypt(mechanism, key, clear)?));
        };
        let (list, handle) = (&functions.list, self.session.handle());
        let init = list.C_EncryptInit.ok_or(CallError::NullFunctionPointer)?;
        let encrypt = list.C_Encrypt.ok_or(CallError::NullFunctionPointer)?;
        let mut mechanism: CK_MECHANISM = mechanism.into();
        let mut length = length_of(out)?;
        // SAFETY: the mechanism and its parameters outlive the call; the module reads and keeps them (PKCS#11 3.1, 5.8).
        let began = unsafe { init(handle, &mut mechanism, key.handle()) };
        Rv::from(began).into_result(Function::EncryptInit)?;
        // SAFETY: both buffers have the lengths said, and the input is only read, whatever the C type says.
        let done =
            unsafe { encrypt(handle, clear.as_ptr().cast_mut(), length_of(clear)?, out.as_mut_ptr(), &mut length) };
        Rv::from(done).into_result(Function::Encrypt)?;
        filled(out, length)
    }

    /// `C_DecryptInit` and `C_Decrypt`: the clear bytes fill `out`, and are nowhere else.
    pub(super) fn decrypt(
        self,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        cipher: &[u8],
        out: &mut [u8],
    ) -> Result<(), CallError> {
        let Some(functions) = self.functions else {
            return copied(out, &Zeroizing::new(self.session.decrypt(mechanism, key, cipher)?));
        };
        let (list, handle) = (&functions.list, self.session.handle());
        let init = list.C_DecryptInit.ok_or(CallError::NullFunctionPointer)?;
        let decrypt = list.C_Decrypt.ok_or(CallError::NullFunctionPointer)?;
        let mut mechanism: CK_MECHANISM = mechanism.into();
        let mut length = length_of(out)?;
        // SAFETY: as in `encrypt`.
        let began = unsafe { init(handle, &mut mechanism, key.handle()) };
        Rv::from(began).into_result(Function::DecryptInit)?;
        // SAFETY: as in `encrypt`.
        let done =
            unsafe { decrypt(handle, cipher.as_ptr().cast_mut(), length_of(cipher)?, out.as_mut_ptr(), &mut length) };
        Rv::from(done).into_result(Function::Decrypt)?;
        filled(out, length)
    }

    /// `C_SignInit` and `C_Sign`: the tag fills `out`.
    pub(super) fn sign(
        self,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<(), CallError> {
        let Some(functions) = self.functions else {
            return copied(out, &Zeroizing::new(self.session.sign(mechanism, key, message)?));
        };
        let (list, handle) = (&functions.list, self.session.handle());
        let init = list.C_SignInit.ok_or(CallError::NullFunctionPointer)?;
        let sign = list.C_Sign.ok_or(CallError::NullFunctionPointer)?;
        let mut mechanism: CK_MECHANISM = mechanism.into();
        let mut length = length_of(out)?;
        // SAFETY: as in `encrypt`.
        let began = unsafe { init(handle, &mut mechanism, key.handle()) };
        Rv::from(began).into_result(Function::SignInit)?;
        // SAFETY: as in `encrypt`.
        let done =
            unsafe { sign(handle, message.as_ptr().cast_mut(), length_of(message)?, out.as_mut_ptr(), &mut length) };
        Rv::from(done).into_result(Function::Sign)?;
        filled(out, length)
    }

    /// `C_WrapKey`: an object under a key fills `out`.
    pub(super) fn wrap(
        self,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        object: ObjectHandle,
        out: &mut [u8],
    ) -> Result<(), CallError> {
        let Some(functions) = self.functions else {
            let wrapped = self.session.wrap_key(mechanism, key, object)?;
            // Not cut off where the token wrote less than the buffer holds.
            return copied(out, wrapped.get(..out.len()).unwrap_or_default());
        };
        let wrap = functions.list.C_WrapKey.ok_or(CallError::NullFunctionPointer)?;
        let mut mechanism: CK_MECHANISM = mechanism.into();
        let mut length = length_of(out)?;
        let (handle, key, object) = (self.session.handle(), key.handle(), object.handle());
        // SAFETY: as in `encrypt`.
        let done = unsafe { wrap(handle, &mut mechanism, key, object, out.as_mut_ptr(), &mut length) };
        Rv::from(done).into_result(Function::WrapKey)?;
        filled(out, length)
    }
}

fn length_of(buffer: &[u8]) -> Result<CK_ULONG, CallError> {
    Ok(CK_ULONG::try_from(buffer.len())?)
}

fn copied(out: &mut [u8], answer: &[u8]) -> Result<(), CallError> {
    filled(out, length_of(answer)?)?;
    out.copy_from_slice(answer);
    Ok(())
}

/// A token that answers with another length than the mechanism has is not to be trusted.
fn filled(out: &[u8], length: CK_ULONG) -> Result<(), CallError> {
    if length_of(out)? == length { Ok(()) } else { Err(CallError::InvalidValue) }
}
