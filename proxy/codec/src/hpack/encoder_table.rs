//! A mirror of the dynamic table of the peer's decoder.
//!
//! Its entries are found by a hash, in slots of one entry each. Entries that share a slot replace each other. That costs
//! a literal instead of an index, and is all that a peer who knows the hash can cause.

use std::collections::VecDeque;

#[cfg(test)]
use bytes::Bytes;
use http::HeaderName;

use super::table::STATIC;
use super::{FIELD_OVERHEAD, TABLE_BYTES_MAX};
#[cfg(test)]
use super::{Field, table};

/// Longest value of an entry, in bytes.
pub(super) const VALUE_BYTES_MAX: usize = 256;

/// As many as the smallest entries that fill a table, and a power of two. Commonly a third are used.
const SLOTS: usize = TABLE_BYTES_MAX / FIELD_OVERHEAD;

/// Size of the ring of values: see [`Table::store_value`].
const VALUES_BYTES: usize = TABLE_BYTES_MAX + VALUE_BYTES_MAX;

/// The table, the newest entry first.
pub(super) struct Table {
    entries: VecDeque<Entry>,
    size: usize,
    pub(super) size_max: usize,
    /// Entries ever inserted. It may wrap: what a slot refers to is compared.
    inserted: u32,
    slots: Box<Slots>,
    values: Vec<u8>,
    /// Where the next value is written.
    values_end: usize,
}

struct Entry {
    name: Name<HeaderName>,
    /// Offset and length of the value in `Table::values`.
    value: (u16, u16),
    size: u16,
}

struct Slots {
    fields: [Slot; SLOTS],
    names: [Slot; SLOTS],
}

#[derive(Clone, Copy)]
struct Slot {
    hash: u32,
    /// `Table::inserted` when the entry was inserted.
    number: u32,
}

/// The name of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Name<N> {
    /// A name of the static table, by its first index.
    Static(u8),
    Other(N),
}

fn mix(hash: u64, word: u64) -> u64 {
    // As in rustc's FxHash.
    (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
}

/// A hash whose upper bits are its best.
pub(super) fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let hash = mix(seed, bytes.len() as u64);
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(hash, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    // The last word of a long string overlaps with the one before: one load, and not one for each byte.
    let rest = match (bytes.last_chunk::<8>(), rest) {
        (_, []) => return hash,
        (Some(last), _) => u64::from_le_bytes(*last),
        (None, rest) => match (rest.first_chunk::<4>(), rest.last_chunk::<4>()) {
            (Some(first), Some(last)) => {
                u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*last)) << 32
            }
            _ => rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)),
        },
    };
    mix(hash, rest)
}

/// The part of a hash that is stored in a slot.
fn upper(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// The slot of a hash. Only its uppermost bits depend on all of the last word.
pub(super) fn slot(hash: u64) -> usize {
    (hash >> (u64::BITS - SLOTS.ilog2())) as usize
}

// === impl Table ===

impl Table {
    pub(super) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            size_max: TABLE_BYTES_MAX,
            inserted: 0,
            slots: Box::new(Slots { fields: [Slot::EMPTY; SLOTS], names: [Slot::EMPTY; SLOTS] }),
            values: Vec::new(),
            values_end: 0,
        }
    }

    /// The entry behind a slot and its HPACK index. Slots collide: the caller must compare.
    #[inline]
    fn lookup(&self, slot: Slot, hash: u64) -> Option<(&Entry, usize)> {
        if slot.hash != upper(hash) {
            return None;
        }
        let offset = self.inserted.wrapping_sub(slot.number) as usize;
        Some((self.entries.get(offset)?, STATIC.len() + 1 + offset))
    }

    /// The index of an entry with this name and value.
    #[inline]
    pub(super) fn field(&self, hash: u64, name: Name<&HeaderName>, value: &[u8]) -> Option<usize> {
        let (entry, index) = self.lookup(self.slots.fields[slot(hash)], hash)?;
        let (start, length) = (usize::from(entry.value.0), usize::from(entry.value.1));
        let is_same = entry.name.is(name) && self.values.get(start..start + length) == Some(value);
        is_same.then_some(index)
    }

    /// The index of an entry with this name.
    pub(super) fn name(&self, hash: u64, name: &HeaderName) -> Option<usize> {
        let (entry, index) = self.lookup(self.slots.names[slot(hash)], hash)?;
        entry.name.is(Name::Other(name)).then_some(index)
    }

    /// Inserts an entry that is not larger than the table.
    pub(super) fn insert(&mut self, name: Name<&HeaderName>, name_hash: u64, value: &[u8], hash: u64, size: usize) {
        self.evict(self.size_max.saturating_sub(size));
        let value = self.store_value(value);
        self.inserted = self.inserted.wrapping_add(1);
        self.slots.fields[slot(hash)] = Slot { hash: upper(hash), number: self.inserted };
        let name = match name {
            Name::Static(index) => Name::Static(index),
            Name::Other(name) => {
                self.slots.names[slot(name_hash)] = Slot { hash: upper(name_hash), number: self.inserted };
                Name::Other(name.clone())
            }
        };
        self.entries.push_front(Entry { name, value, size: size as u16 });
        self.size += size;
    }

    /// Copies a value into the ring: the value may be a slice of a whole read buffer.
    ///
    /// Values follow each other, and start over where the next would exceed the end. They never overwrite a value of
    /// the table: with the new one they fit into the table's size, and the gap at the end is shorter than the longest
    /// value.
    fn store_value(&mut self, value: &[u8]) -> (u16, u16) {
        if self.values_end + value.len() > VALUES_BYTES {
            self.values_end = 0;
        }
        let start = self.values_end;
        self.values_end += value.len();
        if self.values.len() < self.values_end {
            self.values.resize(self.values_end, 0);
        }
        self.values[start..self.values_end].copy_from_slice(value);
        (start as u16, value.len() as u16)
    }

    pub(super) fn resize(&mut self, size_max: usize) {
        self.size_max = size_max;
        self.evict(size_max);
    }

    /// Evicts the oldest entries until the size is at most `size`.
    fn evict(&mut self, size: usize) {
        while self.size > size
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= usize::from(oldest.size);
        }
    }

    /// The size, its limit, and the size of each entry, the newest first.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, Vec<usize>) {
        (self.size, self.size_max, self.entries.iter().map(|entry| entry.size.into()).collect())
    }

    /// The entries as fields, the newest first.
    #[cfg(test)]
    pub(super) fn fields(&self) -> Vec<Field> {
        assert!(self.values.len() <= VALUES_BYTES, "the values of all entries are bounded");
        let field = |entry: &Entry| {
            let (start, length) = (usize::from(entry.value.0), usize::from(entry.value.1));
            let value = &self.values[start..start + length];
            let name = match &entry.name {
                Name::Static(index) => STATIC[usize::from(*index) - 1].name.clone(),
                Name::Other(name) => table::Name::Header(name.clone()),
            };
            name.field(value, || Bytes::copy_from_slice(value))
        };
        self.entries.iter().map(field).collect()
    }

    /// Sets how many entries were ever inserted.
    #[cfg(test)]
    pub(super) fn set_inserted(&mut self, count: u32) {
        self.inserted = count;
    }
}

// === impl Slot ===

impl Slot {
    const EMPTY: Self = Self { hash: 0, number: 0 };
}

// === impl Name ===

impl Name<&HeaderName> {
    #[inline]
    pub(super) fn hash(self) -> u64 {
        match self {
            Self::Static(index) => mix(0, index.into()),
            Self::Other(name) => hash(u64::MAX, name.as_str().as_bytes()),
        }
    }

    pub(super) fn len(self) -> usize {
        match self {
            Self::Static(index) => STATIC[usize::from(index) - 1].name.len(),
            Self::Other(name) => name.as_str().len(),
        }
    }
}

impl Name<HeaderName> {
    fn is(&self, name: Name<&HeaderName>) -> bool {
        match (self, name) {
            (Self::Static(own), Name::Static(index)) => *own == index,
            (Self::Other(own), Name::Other(name)) => own == name,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte affects the slot, or fields that differ in one byte only would always collide.
    #[test]
    fn hash_depends_on_every_byte() {
        for length in 1..40 {
            let bytes = vec![b'a'; length];
            for at in 0..length {
                let slots = (0..=255_u8).map(|byte| {
                    let mut bytes = bytes.clone();
                    bytes[at] = byte;
                    slot(hash(1, &bytes))
                });
                let slots = slots.collect::<std::collections::HashSet<_>>().len();
                assert!(slots > SLOTS / 4, "byte {at} of {length} leads to {slots} slots");
            }
        }
    }

    #[test]
    fn hash_collisions_are_compared() {
        let mut table = Table::new();
        let [a, b] = ["x-a", "x-b"].map(HeaderName::from_static);
        table.insert(Name::Other(&a), 1, b"value", 2, 40);
        assert_eq!(table.field(2, Name::Other(&a), b"value"), Some(62));
        assert_eq!(table.name(1, &a), Some(62));
        for (name, value) in [(Name::Other(&b), "value"), (Name::Other(&a), "valuf"), (Name::Static(1), "value")] {
            assert_eq!(table.field(2, name, value.as_bytes()), None, "{name:?}: {value}");
        }
        assert_eq!(table.name(1, &b), None);
        assert_eq!(table.field(2 | 1 << 32, Name::Other(&a), b"value"), None);
        table.resize(0);
        assert_eq!((table.field(2, Name::Other(&a), b"value"), table.name(1, &a)), (None, None));
    }
}
