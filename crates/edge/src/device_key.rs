//! The mistake in a rejected device key, for the client's developer. The engine decides which keys are valid; this module
//! only explains a rejection.

use x509_parser::{
    oid_registry::{OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION},
    prelude::{FromDer, X509Certificate},
    public_key::{PublicKey, RSAPublicKey},
    x509::SubjectPublicKeyInfo,
};

use super::mistake::Mistake;

/// The bits of a modulus that the engine accepts.
const MODULUS_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// The mistake in a `publicKey` that is not standard base64.
pub(super) fn mistake_in_text(text: &str) -> Mistake {
    if text.contains("-----") {
        Mistake::KeyPem
    } else if text.contains(char::is_whitespace) {
        Mistake::KeyBlanks
    } else if text.contains(['-', '_']) {
        Mistake::KeyUrlSafe
    } else {
        Mistake::KeyNotBase64
    }
}

/// The mistake in the bytes of a rejected `publicKey`.
pub(super) fn mistake_in_der(der: &[u8]) -> Mistake {
    match SubjectPublicKeyInfo::from_der(der) {
        Ok((rest, info)) => mistake_in_info(rest, &info),
        Err(_) if X509Certificate::from_der(der).is_ok() => Mistake::KeyCertificate,
        Err(_) => match content_of_sequence(der) {
            // The version of a private key: 0 in PKCS #1 and PKCS #8, 1 in PKCS #8 and SEC 1.
            Some([0x02, 0x01, 0x00..=0x01, ..]) => Mistake::KeyPrivate,
            // The modulus.
            Some([0x02, ..]) => Mistake::KeyPkcs1,
            _ => Mistake::KeyMalformed,
        },
    }
}

fn mistake_in_info(rest: &[u8], info: &SubjectPublicKeyInfo<'_>) -> Mistake {
    if info.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        return Mistake::KeyEc;
    }
    if info.algorithm.algorithm != OID_PKCS1_RSAENCRYPTION {
        return Mistake::KeyNotRsa;
    }
    let Ok(PublicKey::RSA(key)) = info.parsed() else { return Mistake::KeyMalformed };
    let bits = bits_of(key.modulus);
    if !MODULUS_BITS.contains(&bits) {
        return Mistake::KeySize(bits);
    }
    if !is_exponent(&key) {
        return Mistake::KeyExponent;
    }
    if rest.is_empty() { Mistake::KeyMalformed } else { Mistake::KeyTrailing }
}

fn bits_of(modulus: &[u8]) -> usize {
    let leading = modulus.iter().take_while(|byte| **byte == 0).count();
    let significant = modulus.get(leading..).unwrap_or_default();
    let zeros = significant.first().map_or(0, |byte| byte.leading_zeros() as usize);
    (significant.len() * 8).saturating_sub(zeros)
}

fn is_exponent(key: &RSAPublicKey<'_>) -> bool {
    key.try_exponent().is_ok_and(|exponent| exponent % 2 == 1 && (3..=u64::from(u32::MAX)).contains(&exponent))
}

/// The content of a DER SEQUENCE of at most 65,535 bytes.
fn content_of_sequence(der: &[u8]) -> Option<&[u8]> {
    match der {
        [0x30, 0x81, _, content @ ..] | [0x30, 0x82, _, _, content @ ..] => Some(content),
        [0x30, 0..=0x7F, content @ ..] => Some(content),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mistake_in_the_text_is_named() {
        for (text, mistake) in [
            ("-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----", Mistake::KeyPem),
            ("MIIB\nIjAN", Mistake::KeyBlanks),
            ("MIIB_-AN", Mistake::KeyUrlSafe),
            ("MIIBI", Mistake::KeyNotBase64),
        ] {
            assert_eq!(mistake_in_text(text), mistake, "{text}");
        }
    }

    #[test]
    fn a_key_without_a_subject_public_key_info_is_named_by_its_first_bytes() {
        for (der, mistake) in [
            (&[0x30, 0x82, 0x04, 0xA4, 0x02, 0x01, 0x00, 0x02][..], Mistake::KeyPrivate),
            (&[0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20], Mistake::KeyPrivate),
            (&[0x30, 0x82, 0x01, 0x0A, 0x02, 0x82, 0x01, 0x01, 0x00], Mistake::KeyPkcs1),
            (&[], Mistake::KeyMalformed),
            (&[0x30], Mistake::KeyMalformed),
            (b"not DER", Mistake::KeyMalformed),
        ] {
            assert_eq!(mistake_in_der(der), mistake, "{der:02x?}");
        }
    }
}
