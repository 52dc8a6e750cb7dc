//! Writes X.509 certificates (RFC 5280). What is in them is decided by [`crate::issue`] and [`crate::authority`].

use rustls::SignatureScheme;
use rustls::pki_types::{AlgorithmIdentifier, CertificateDer, UnixTime, alg_id};
use rustls::sign::SigningKey;

use crate::date::date;
use crate::der::{self, sequence, value};

/// Object identifiers, encoded.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const SUBJECT_KEY_ID: &[u8] = &[0x55, 0x1d, 0x0e];
const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

/// The content of a KeyUsage: the number of unused bits, and the bits.
const DIGITAL_SIGNATURE: [u8; 2] = [7, 0x80];
const KEY_CERT_SIGN_AND_CRL_SIGN: [u8; 2] = [1, 0x06];

/// From this year on, times are a GeneralizedTime. Source: RFC 5280, 4.1.2.5.
const GENERALIZED_FROM: i32 = 2050;

/// Signature schemes in order of preference: a key supports one kind of them.
const SCHEMES: [(SignatureScheme, AlgorithmIdentifier); 4] = [
    (SignatureScheme::ECDSA_NISTP256_SHA256, alg_id::ECDSA_SHA256),
    (SignatureScheme::ECDSA_NISTP384_SHA384, alg_id::ECDSA_SHA384),
    (SignatureScheme::ED25519, alg_id::ED25519),
    (SignatureScheme::RSA_PKCS1_SHA256, alg_id::RSA_PKCS1_SHA256),
];

/// What stands in a certificate. All names and keys are DER.
pub(crate) struct Certificate<'a> {
    pub(crate) serial: [u8; SERIAL_BYTES],
    pub(crate) issuer: &'a [u8],
    /// SubjectKeyIdentifier of the issuer.
    pub(crate) issuer_key_id: &'a [u8],
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
    pub(crate) subject: &'a [u8],
    pub(crate) public_key: &'a [u8],
    /// The URI in the SubjectAltName.
    pub(crate) uri: &'a str,
    pub(crate) usage: Usage,
}

/// What the key of a certificate may be used for.
#[derive(Clone, Copy)]
pub(crate) enum Usage {
    /// To sign certificates, with at most so many issuers below.
    Authority(u8),
    /// To authenticate in TLS, as server and as client.
    Tls,
    /// To sign documents: without an extended key usage, which every TLS peer of the mesh needs.
    Documents,
}

/// The length of a serial number: 128 bits, of which the first is zero, so that the number is positive.
pub(crate) const SERIAL_BYTES: usize = 16;

/// Signing failed: the key supports no scheme of ours, or the library has no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the key cannot sign")]
pub struct SignError;

// === impl Certificate ===

impl Certificate<'_> {
    /// The certificate, signed by the key of its issuer.
    pub(crate) fn sign(&self, key: &dyn SigningKey) -> Result<CertificateDer<'static>, SignError> {
        let offered = SCHEMES.map(|(scheme, _)| scheme);
        let signer = key.choose_scheme(&offered).ok_or(SignError)?;
        let algorithm = SCHEMES.iter().find(|(scheme, _)| *scheme == signer.scheme()).ok_or(SignError)?.1;
        let algorithm = sequence(&[&algorithm]);
        let content = self.content(&algorithm);
        let signature = signer.sign(&content).map_err(|_| SignError)?;
        Ok(sequence(&[&content, &algorithm, &der::bit_string(&signature)]).into())
    }

    /// The TBSCertificate.
    fn content(&self, algorithm: &[u8]) -> Vec<u8> {
        let version3 = value(der::context_constructed(0), &[&value(der::INTEGER, &[&[2]])]);
        let validity = sequence(&[&time(self.not_before), &time(self.not_after)]);
        let extensions = value(der::context_constructed(3), &[&self.extensions()]);
        let serial = value(der::INTEGER, &[&self.serial]);
        sequence(&[&version3, &serial, algorithm, self.issuer, &validity, self.subject, self.public_key, &extensions])
    }

    fn extensions(&self) -> Vec<u8> {
        let authority_key = sequence(&[&value(der::context(0), &[self.issuer_key_id])]);
        let names = sequence(&[&value(der::context(6), &[self.uri.as_bytes()])]);
        // Source: RFC 5280, 4.2.1.6: critical if there is no subject.
        let without_subject = self.subject == sequence(&[]);
        let usage_bits = match self.usage {
            Usage::Authority(_) => KEY_CERT_SIGN_AND_CRL_SIGN,
            Usage::Tls | Usage::Documents => DIGITAL_SIGNATURE,
        };
        let mut extensions = vec![
            extension(AUTHORITY_KEY_ID, false, &authority_key),
            extension(SUBJECT_ALT_NAME, without_subject, &names),
            extension(KEY_USAGE, true, &value(der::BIT_STRING, &[&usage_bits])),
        ];
        match self.usage {
            Usage::Authority(issuers_below) => {
                let constraints =
                    sequence(&[&value(der::BOOLEAN, &[&[0xff]]), &value(der::INTEGER, &[&[issuers_below]])]);
                extensions.push(extension(BASIC_CONSTRAINTS, true, &constraints));
                let key_id = value(der::OCTET_STRING, &[&key_id(self.public_key)]);
                extensions.push(extension(SUBJECT_KEY_ID, false, &key_id));
            }
            Usage::Tls => {
                let purposes = sequence(&[&value(der::OID, &[SERVER_AUTH]), &value(der::OID, &[CLIENT_AUTH])]);
                extensions.push(extension(EXTENDED_KEY_USAGE, false, &purposes));
                extensions.push(extension(BASIC_CONSTRAINTS, true, &sequence(&[])));
            }
            Usage::Documents => extensions.push(extension(BASIC_CONSTRAINTS, true, &sequence(&[]))),
        }
        sequence(&extensions.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }
}

/// A name with a common name only.
pub(crate) fn name(common_name: &str) -> Vec<u8> {
    let attribute = sequence(&[&value(der::OID, &[COMMON_NAME]), &value(der::UTF8_STRING, &[common_name.as_bytes()])]);
    sequence(&[&value(der::SET, &[&attribute])])
}

/// A key identifier: the first 160 bits of the SHA-256 of the key. Source: RFC 7093, 2, method 1, but over the whole
/// SubjectPublicKeyInfo (method 4).
pub(crate) fn key_id(public_key: &[u8]) -> [u8; 20] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, public_key);
    let mut id = [0; 20];
    id.copy_from_slice(&digest.as_ref()[..20]);
    id
}

/// A random serial number.
pub(crate) fn serial() -> Result<[u8; SERIAL_BYTES], SignError> {
    let mut serial = [0; SERIAL_BYTES];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| SignError)?;
    // Positive, and of a fixed length in the shortest form: the first octet is from 0x40 to 0x7f.
    serial[0] = serial[0] & 0x3f | 0x40;
    Ok(serial)
}

fn extension(id: &[u8], critical: bool, content: &[u8]) -> Vec<u8> {
    let (id, content) = (value(der::OID, &[id]), value(der::OCTET_STRING, &[content]));
    let critical = if critical { value(der::BOOLEAN, &[&[0xff]]) } else { Vec::new() };
    sequence(&[&id, &critical, &content])
}

fn time(at: UnixTime) -> Vec<u8> {
    let date = date(at);
    let (year, month, day) = date.to_calendar_date();
    let (hour, minute, second) = date.to_hms();
    let rest = format!("{:02}{day:02}{hour:02}{minute:02}{second:02}Z", u8::from(month));
    if year < GENERALIZED_FROM {
        value(der::UTC_TIME, &[format!("{:02}{rest}", year % 100).as_bytes()])
    } else {
        value(der::GENERALIZED_TIME, &[format!("{year:04}{rest}").as_bytes()])
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_have_two_digits_of_the_year_until_2049_and_four_from_then_on() {
        for (seconds, expected) in [
            (0, "700101000000Z"),
            (1_800_000_000, "270115080000Z"),
            (2_524_607_999, "491231235959Z"),
            (2_524_608_000, "20500101000000Z"),
            (u64::MAX, "99991231235959Z"),
        ] {
            let written = time(UnixTime::since_unix_epoch(Duration::from_secs(seconds)));
            assert_eq!(&written[2..], expected.as_bytes(), "{seconds}");
        }
    }

    #[test]
    fn serial_numbers_differ_and_are_positive() {
        let serials: std::collections::BTreeSet<_> = (0..1000).map(|_| serial().unwrap()).collect();
        assert_eq!(serials.len(), 1000);
        assert!(serials.iter().all(|serial| (0x40..0x80).contains(&serial[0])));
    }
}
