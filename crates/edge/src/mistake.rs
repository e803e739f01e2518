//! The mistakes of clients that share an errorCode: one text for each.

use thiserror::Error;

/// A mistake in a request. Its text replaces the general message of its errorCode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum Mistake {
    #[error("the Authorization header occurs more than once: send it once")]
    AuthorizationRepeated,

    #[error("the Host header is missing: every request of HTTP/1.1 has one, and of HTTP/2 :authority or Host")]
    HostMissing,
    #[error("the Host header occurs more than once: send it once")]
    HostRepeated,
    #[error("the Host header is not a host name or address with an optional port")]
    HostMalformed,
    #[error("Host and :authority differ: send one of them, or the same value")]
    HostDiffers,

    #[error(
        "auditUser begins with web-view, in any case and after any spaces, as those of pages do: name another user"
    )]
    AuditUserOfPage,

    #[error("the body is empty: send a JSON object")]
    BodyEmpty,
    #[error("the body ended early or its chunks are malformed: send the whole request again")]
    BodyCut,
    #[error("the body is not JSON in UTF-8: check quotes, commas and brackets, and send no byte order mark")]
    BodyNotJson,
    #[error("the body is JSON but not an object: send an object with the members of the contract")]
    BodyNotObject,
    #[error("a member of the contract occurs more than once in the body: send it once")]
    MemberRepeated,
    #[error("the member {0} is missing: add it to the body")]
    MemberMissing(&'static str),
    #[error("the member {0} is not a JSON string: put its value in quotes")]
    MemberNotText(&'static str),
    #[error("pageId is not 32 hexadecimal digits in lower case: send the 16 random bytes of the page in this form")]
    PageId,

    #[error("the body is not a form in UTF-8: send controlId as application/x-www-form-urlencoded")]
    BodyNotForm,
    #[error("the form does not have the field controlId once, with the controlId of an open control")]
    FormControlId,
    #[error("the body is a form: send application/x-www-form-urlencoded, without a Content-Encoding")]
    TypeNotForm,

    #[error("the query parameter zpkIndex is missing: add the index of the zone key, for example zpkIndex=0")]
    ZpkIndexMissing,
    #[error("the query parameter zpkIndex occurs more than once: send it once")]
    ZpkIndexRepeated,
    #[error("pinBlock has {0} characters: send 16 hexadecimal digits, or 32 where the zone has ISO 9564 format 4")]
    BlockLength(usize),
    #[error("pinBlock has a character that is not a hexadecimal digit: send 0 to 9 and A to F, in either case")]
    BlockNotHex,

    #[error("publicKey has PEM markers: send the base64 between them, in one line")]
    KeyPem,
    #[error("publicKey has blanks or line ends: send the base64 in one line")]
    KeyBlanks,
    #[error("publicKey is base64 of the URL alphabet: use the standard alphabet, with + and /")]
    KeyUrlSafe,
    #[error("publicKey is not standard base64 with padding: check its characters and the = at its end")]
    KeyNotBase64,
    #[error("publicKey is a certificate: send only its SubjectPublicKeyInfo")]
    KeyCertificate,
    #[error("publicKey is a private key, which must never leave the device: make another key, and send its public key")]
    KeyPrivate,
    #[error(
        "publicKey is a PKCS #1 RSAPublicKey: send the SubjectPublicKeyInfo (X.509, the default of Java and OpenSSL)"
    )]
    KeyPkcs1,
    #[error("publicKey is an EC key: use an RSA key of 2048 to 4096 bits")]
    KeyEc,
    #[error(
        "publicKey has an algorithm other than rsaEncryption (1.2.840.113549.1.1.1): use an RSA key for encryption"
    )]
    KeyNotRsa,
    #[error("publicKey is an RSA key of {0} bits: use 2048 to 4096 bits")]
    KeySize(usize),
    #[error("publicKey has an exponent that is not odd, less than 3 or longer than 4 bytes: use 65537")]
    KeyExponent,
    #[error("publicKey has bytes after the SubjectPublicKeyInfo: send the key alone")]
    KeyTrailing,
    #[error(
        "publicKey is not a DER SubjectPublicKeyInfo: send the bytes that X509EncodedKeySpec or `openssl pkey -pubout -outform der` gives"
    )]
    KeyMalformed,
}
