//! What a certificate says, as far as the rules of this crate need it.

use std::time::Duration;

use rustls::pki_types::UnixTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
#[cfg(feature = "issue")]
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;

/// A certificate, read.
pub(crate) struct Parsed<'a>(X509Certificate<'a>);

/// The bytes are not a certificate, or an extension that is needed cannot be read or occurs twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it cannot be parsed as a certificate of X.509")]
pub struct Unreadable;

/// The extended key usages that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Purposes {
    pub(crate) server_auth: bool,
    pub(crate) client_auth: bool,
}

// === impl Parsed ===

impl<'a> Parsed<'a> {
    pub(crate) fn new(der: &'a [u8]) -> Result<Self, Unreadable> {
        match X509Certificate::from_der(der) {
            Ok(([], certificate)) => Ok(Self(certificate)),
            _ => Err(Unreadable),
        }
    }

    /// All URIs among its alternative names. A name that cannot be read makes the certificate unreadable.
    pub(crate) fn uris(&self) -> Result<Vec<&'a str>, Unreadable> {
        let Some(names) = self.0.subject_alternative_name().map_err(|_| Unreadable)? else { return Ok(Vec::new()) };
        let mut uris = Vec::new();
        for name in &names.value.general_names {
            match name {
                GeneralName::URI(uri) => uris.push(*uri),
                GeneralName::Invalid(..) => return Err(Unreadable),
                _ => {}
            }
        }
        Ok(uris)
    }

    /// Whether it may issue certificates, by its basic constraints and its key usage.
    pub(crate) fn is_authority(&self) -> Result<bool, Unreadable> {
        let usage = self.0.key_usage().map_err(|_| Unreadable)?;
        Ok(self.is_ca()? && usage.is_none_or(|usage| usage.value.key_cert_sign()))
    }

    pub(crate) fn is_ca(&self) -> Result<bool, Unreadable> {
        Ok(self.0.basic_constraints().map_err(|_| Unreadable)?.is_some_and(|constraints| constraints.value.ca))
    }

    /// Whether its key may sign, and neither certificates nor revocation lists. SPIFFE requires that this is said.
    pub(crate) fn is_for_signatures_only(&self) -> Result<bool, Unreadable> {
        let usage = self.0.key_usage().map_err(|_| Unreadable)?;
        Ok(usage.is_some_and(|usage| {
            let usage = usage.value;
            usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign()
        }))
    }

    /// Its extended key usages, if it has any.
    pub(crate) fn purposes(&self) -> Result<Option<Purposes>, Unreadable> {
        let purposes = self.0.extended_key_usage().map_err(|_| Unreadable)?;
        Ok(purposes.map(|purposes| Purposes {
            server_auth: purposes.value.server_auth,
            client_auth: purposes.value.client_auth,
        }))
    }

    pub(crate) fn not_after(&self) -> UnixTime {
        unix(self.0.validity().not_after.timestamp())
    }
}

#[cfg(feature = "issue")]
impl<'a> Parsed<'a> {
    pub(crate) fn not_before(&self) -> UnixTime {
        unix(self.0.validity().not_before.timestamp())
    }

    /// Its subject, DER.
    pub(crate) fn subject(&self) -> &'a [u8] {
        self.0.tbs_certificate.subject.as_raw()
    }

    /// Its SubjectPublicKeyInfo, DER.
    pub(crate) fn public_key(&self) -> &'a [u8] {
        self.0.tbs_certificate.subject_pki.raw
    }

    /// Its SubjectKeyIdentifier.
    pub(crate) fn key_id(&self) -> Option<&'a [u8]> {
        self.0.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
            _ => None,
        })
    }

    /// Its serial number in hexadecimal.
    pub(crate) fn serial(&self) -> String {
        self.0.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn unix(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}
