//! What holds for any header blocks. Checked by unit tests and by fuzzing.

use bytes::{Bytes, BytesMut};

use super::decode::Decoder;
use super::encode::Encoder;
use super::{Field, TABLE_BYTES_MAX};

/// Whatever can be decoded can be encoded, once and again, and decodes to the same fields.
pub fn check_properties(block: &[u8]) {
    let [mut decoder, mut other] = [(); 2].map(|()| Decoder::new(TABLE_BYTES_MAX));
    let mut encoder = Encoder::new();
    // Pieces are blocks of their own, so that later ones refer to table entries of earlier ones.
    for block in block.chunks(64) {
        let mut fields = Vec::new();
        if decoder.decode(Bytes::copy_from_slice(block), |field, _| fields.push(field)).is_err() {
            return;
        }
        fields.retain(|field| !matches!(field, Field::Malformed | Field::Protocol));
        for _ in 0..2 {
            assert_eq!(decode(&mut other, encode(&mut encoder, &fields)), fields);
        }
    }
}

/// A block of these fields.
pub(super) fn encode(encoder: &mut Encoder, fields: &[Field]) -> Bytes {
    let mut out = BytesMut::new();
    encoder.begin(&mut out);
    for field in fields {
        match field {
            Field::Authority(authority) => encoder.authority(authority.as_str(), &mut out),
            Field::Method(method) => encoder.method(method, &mut out),
            Field::Path(path) => encoder.path(path.as_str(), &mut out),
            Field::Scheme(scheme) => encoder.scheme(scheme.as_str(), &mut out),
            Field::Status(status) => encoder.status(*status, &mut out),
            Field::Header(name, value) => encoder.header(name, value, &mut out),
            Field::Protocol | Field::Malformed => panic!("{field:?} cannot be encoded"),
        }
    }
    out.freeze()
}

/// The fields of a block that an encoder wrote.
pub(super) fn decode(decoder: &mut Decoder, block: Bytes) -> Vec<Field> {
    let mut fields = Vec::new();
    decoder.decode(block, |field, _| fields.push(field)).expect("what was encoded can be decoded");
    fields
}
