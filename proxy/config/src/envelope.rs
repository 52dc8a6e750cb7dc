//! The ConfigMap format of a document: a readable header, and a body whose hash is in the header.
//!
//! The body is plain JSON while it is small, so that `kubectl get configmap -o yaml` shows it, and gzip otherwise.
//! Bodies are canonical: equal values give equal bytes (fields in declaration order, maps sorted), so an equal hash
//! means that nothing needs to be written.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The version of this format. A proxy refuses any other.
pub const FORMAT_VERSION: u32 = 1;

/// Largest body that is stored as plain JSON, in bytes.
const PLAIN_BYTES_MAX: usize = 4 * 1024;

/// Size limit of one object, header and body together as stored, in bytes. Kubernetes refuses 1 MiB; the margin
/// leaves room for the header and for base64.
pub const OBJECT_BYTES_MAX: usize = 900 * 1024;

/// Size limit of an unpacked body, in bytes, against gzip bombs.
pub const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;

const HEADER_KEY: &str = "header";
const BODY_KEY: &str = "body";
const BODY_GZIP_KEY: &str = "body.gz";

/// The header of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Header {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// The namespace of the document; empty for the index. For a document of pods: its name.
    pub namespace: String,
    /// Increases with every write, also when the object is deleted and restored.
    pub generation: u64,
    /// Increases only when the users' configuration changes, not when endpoints do.
    pub config_generation: u64,
    /// How the body is stored.
    pub encoding: Encoding,
    /// SHA-256 of the canonical body, before compression, in hexadecimal.
    pub sha256: String,
    /// Generations of other namespaces that must be staged before this document is used.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requires: BTreeMap<String, u64>,
    /// Number of times that the writers' lease had changed hands at the time of writing: a deposed writer has a
    /// smaller one.
    pub epoch: u64,
    /// The writer's signature of [`Header::signed_bytes`]; empty if the document is not signed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub signature: String,
}

/// How a body is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Plain JSON, in `data`.
    Json,
    /// Gzip, in `binaryData`.
    Gzip,
}

/// The two maps of a ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// `data`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    /// `binaryData`, decoded.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub binary: BTreeMap<String, Vec<u8>>,
}

/// The part of the header that the writer sets; the rest follows from the body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// See [`Header::namespace`].
    pub namespace: String,
    /// See [`Header::generation`].
    pub generation: u64,
    /// See [`Header::config_generation`].
    pub config_generation: u64,
    /// See [`Header::requires`].
    pub requires: BTreeMap<String, u64>,
    /// See [`Header::epoch`].
    pub epoch: u64,
}

/// Why a document cannot be read. The reader keeps its last good version.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// `data.header` or the body is missing.
    #[error("the object has no {0:?}")]
    Missing(&'static str),
    /// The header cannot be parsed.
    #[error("the header cannot be parsed: {0}")]
    Header(#[source] serde_json::Error),
    /// The format version is unknown to this reader.
    #[error("the document has format version {found}, this proxy reads {FORMAT_VERSION}: upgrade the proxy")]
    Version {
        /// The version in the header.
        found: u32,
    },
    /// The body cannot be unpacked, or exceeds [`BODY_BYTES_MAX`].
    #[error("the body cannot be unpacked: {0}")]
    Unpack(#[source] std::io::Error),
    /// The body does not match the hash in the header.
    #[error("the body's hash is {found}, the header has {expected}: the object was edited or damaged")]
    Hash {
        /// Hash of the body as read.
        found: String,
        /// Hash in the header.
        expected: String,
    },
    /// The body does not match the schema.
    #[error("the body cannot be parsed: {0}")]
    Body(#[source] serde_json::Error),
}

// === impl Header ===

impl Header {
    /// Reads only the header.
    pub fn read(envelope: &Envelope) -> Result<Self, DecodeError> {
        let text = envelope.data.get(HEADER_KEY).ok_or(DecodeError::Missing(HEADER_KEY))?;
        serde_json::from_str(text).map_err(DecodeError::Header)
    }

    /// What a signature is for: the name of the document, and the header without its signature. The name is in it
    /// because a document could be copied to another object; the body is, by its hash.
    pub fn signed_bytes(&self, document: &str) -> Vec<u8> {
        let unsigned = Self { signature: String::new(), ..self.clone() };
        [document.as_bytes(), b"\n", &canonical(&unsigned)].concat()
    }
}

// === impl Envelope ===

impl Envelope {
    /// Writes a document. The caller compares [`Envelope::stored_bytes`] with [`OBJECT_BYTES_MAX`].
    pub fn write<T: Serialize>(written: Written, body: &T) -> Self {
        Self::pack(written, &canonical(body))
    }

    /// Like [`Envelope::write`], with a signature, which `sign` makes of [`Header::signed_bytes`].
    pub fn write_signed<T: Serialize>(
        written: Written,
        body: &T,
        document: &str,
        sign: impl FnOnce(&[u8]) -> String,
    ) -> Self {
        Self::build(written, &canonical(body), |header| sign(&header.signed_bytes(document)))
    }

    /// Like [`Envelope::write`], for a body that is JSON already. The bytes are not checked.
    pub fn pack(written: Written, bytes: &[u8]) -> Self {
        Self::build(written, bytes, |_| String::new())
    }

    fn build(written: Written, bytes: &[u8], sign: impl FnOnce(&Header) -> String) -> Self {
        let Written { namespace, generation, config_generation, requires, epoch } = written;
        let encoding = if bytes.len() <= PLAIN_BYTES_MAX { Encoding::Json } else { Encoding::Gzip };
        let mut header = Header {
            format_version: FORMAT_VERSION,
            namespace,
            generation,
            config_generation,
            encoding,
            sha256: sha256(bytes),
            requires,
            epoch,
            signature: String::new(),
        };
        header.signature = sign(&header);
        let mut envelope = Self::default();
        envelope.data.insert(HEADER_KEY.into(), String::from_utf8_lossy(&canonical(&header)).into_owned());
        match encoding {
            Encoding::Json => {
                envelope.data.insert(BODY_KEY.into(), String::from_utf8_lossy(bytes).into_owned());
            }
            Encoding::Gzip => {
                envelope.binary.insert(BODY_GZIP_KEY.into(), gzip(bytes));
            }
        }
        envelope
    }

    /// Reads header and body, and checks the hash.
    pub fn read<T: DeserializeOwned>(&self) -> Result<(Header, T), DecodeError> {
        let header = Header::read(self)?;
        if header.format_version != FORMAT_VERSION {
            return Err(DecodeError::Version { found: header.format_version });
        }
        let bytes = match header.encoding {
            Encoding::Json => self.data.get(BODY_KEY).ok_or(DecodeError::Missing(BODY_KEY))?.as_bytes().to_vec(),
            Encoding::Gzip => {
                let packed = self.binary.get(BODY_GZIP_KEY).ok_or(DecodeError::Missing(BODY_GZIP_KEY))?;
                gunzip(packed).map_err(DecodeError::Unpack)?
            }
        };
        let found = sha256(&bytes);
        if found != header.sha256 {
            return Err(DecodeError::Hash { found, expected: header.sha256 });
        }
        let body = serde_json::from_slice(&bytes).map_err(DecodeError::Body)?;
        Ok((header, body))
    }

    /// The size that Kubernetes counts against its limit, in bytes.
    pub fn stored_bytes(&self) -> usize {
        self.data.values().map(String::len).sum::<usize>() + self.binary.values().map(Vec::len).sum::<usize>()
    }
}

/// The canonical bytes of a document.
fn canonical<T: Serialize>(body: &T) -> Vec<u8> {
    serde_json::to_vec(body).expect("wire documents have string keys and no failing serializers")
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    // The gzip header has no name and no time, so equal bodies give equal bytes.
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(bytes).expect("a Vec takes all");
    packer.finish().expect("a Vec takes all")
}

fn gunzip(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = BODY_BYTES_MAX as u64;
    flate2::read::GzDecoder::new(packed).take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() > BODY_BYTES_MAX {
        return Err(std::io::Error::other(format!("it unpacks to more than {BODY_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Export, Service};

    fn written() -> Written {
        Written { namespace: "shop".into(), generation: 7, config_generation: 3, epoch: 1, ..Written::default() }
    }

    fn export(services: usize) -> Export {
        Export {
            services: (0..services).map(|n| Service { name: format!("service-{n}"), ..Service::default() }).collect(),
        }
    }

    #[test]
    fn small_and_large_bodies_read_back() {
        for (services, encoding) in [(1, Encoding::Json), (2_000, Encoding::Gzip)] {
            let envelope = Envelope::write(written(), &export(services));
            let (header, body): (Header, Export) = envelope.read().expect("reads back");
            assert_eq!(header.encoding, encoding, "{services} services");
            assert_eq!(header.generation, 7);
            assert_eq!(body, export(services));
            assert_eq!(envelope, Envelope::write(written(), &export(services)), "equal values give equal bytes");
        }
    }

    #[test]
    fn edited_body_is_refused() {
        let mut envelope = Envelope::write(written(), &export(1));
        let body = envelope.data.get_mut(BODY_KEY).expect("plain");
        *body = body.replace("service-0", "service-1");
        let error = envelope.read::<Export>().expect_err("the hash does not match");
        assert!(matches!(error, DecodeError::Hash { .. }), "{error}");
    }

    #[test]
    fn signature_is_for_one_name_and_all_fields_of_the_header() {
        let mut message = Vec::new();
        let sign = |bytes: &[u8]| {
            message = bytes.to_vec();
            "signature".to_owned()
        };
        let envelope = Envelope::write_signed(written(), &export(1), "x.shop", sign);
        let (header, body): (Header, Export) = envelope.read().expect("reads");
        assert_eq!((header.signature.as_str(), body), ("signature", export(1)));
        assert_eq!(header.signed_bytes("x.shop"), message, "as the signer saw it");
        assert_ne!(header.signed_bytes("i.shop"), message, "another document");
        assert_ne!(Header { generation: 8, ..header.clone() }.signed_bytes("x.shop"), message, "another generation");
        assert_ne!(Header { sha256: String::new(), ..header }.signed_bytes("x.shop"), message, "another body");
    }

    #[test]
    fn unknown_field_is_refused() {
        #[derive(Serialize)]
        struct Newer {
            services: Vec<Service>,
            surprise: bool,
        }
        let envelope = Envelope::write(written(), &Newer { services: vec![], surprise: true });
        let error = envelope.read::<Export>().expect_err("unknown field");
        assert!(matches!(error, DecodeError::Body(_)), "{error}");
    }

    #[test]
    fn another_format_version_is_refused() {
        let mut envelope = Envelope::write(written(), &export(1));
        let header = envelope.data.get_mut(HEADER_KEY).expect("there");
        *header = header.replace("\"formatVersion\":1", "\"formatVersion\":2");
        assert!(matches!(envelope.read::<Export>(), Err(DecodeError::Version { found: 2 })));
    }

    #[test]
    fn gzip_bomb_is_refused() {
        let error = gunzip(&gzip(&vec![b' '; BODY_BYTES_MAX + 1])).expect_err("too large");
        assert!(error.to_string().contains("more than"), "{error}");
    }
}
