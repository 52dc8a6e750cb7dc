//! Consistent hashing: a key maps to the same endpoint in every proxy, and adding or removing an endpoint moves
//! little more than its own share of the keys. A table is built once for each set of endpoints.
//!
//! Ring hash moves the fewest keys; Maglev (Eisenbud et al., NSDI 2016) spreads them more evenly, with a lookup in
//! one step.

use std::net::{IpAddr, SocketAddr};

/// Entries of a Maglev table. A prime far above the number of endpoints. Source: Envoy's default.
const MAGLEV_SIZE: usize = 65_537;

/// Points of each endpoint on a ring: enough for shares to differ by a few percent only.
const RING_POINTS: usize = 256;

/// Most points of a ring. With many endpoints each has fewer; the number is halved until they fit, so that adding a
/// few endpoints moves few keys.
const RING_SIZE_MAX: usize = 65_536;

/// A table from keys to positions.
pub(crate) enum Table {
    /// Points on the ring with the position that each maps to, sorted by point.
    Ring(Vec<(u32, u32)>),
    Maglev(Vec<u32>),
}

/// A hash that is the same in every proxy and every version: FNV-1a, with the finalizer of MurmurHash3. Not keyed: a
/// client that chooses its key can choose its endpoint, as hash balancing intends.
#[inline]
pub fn hash(bytes: &[u8]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325;
    for byte in bytes {
        state = (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(state)
}

/// The hash of an address.
#[inline]
pub fn of_ip(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => hash(&v4.octets()),
        IpAddr::V6(v6) => hash(&v6.octets()),
    }
}

/// The id of an endpoint in session cookies. Hashed, so that cookies do not expose pod addresses.
#[inline]
pub fn session(address: SocketAddr) -> u64 {
    mix(of_endpoint(address) ^ 0x5e55_1055_e551_0500)
}

#[inline]
fn of_endpoint(address: SocketAddr) -> u64 {
    mix(of_ip(address.ip()) ^ u64::from(address.port()))
}

#[inline]
fn mix(mut state: u64) -> u64 {
    state = (state ^ (state >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    state = (state ^ (state >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    state ^ (state >> 33)
}

// === impl Table ===

impl Table {
    /// A ring. Positions index `endpoints`.
    pub(crate) fn ring(endpoints: &[SocketAddr]) -> Self {
        let mut points_each = RING_POINTS;
        while points_each > 1 && points_each * endpoints.len() > RING_SIZE_MAX {
            points_each /= 2;
        }
        let mut points = Vec::with_capacity(points_each * endpoints.len());
        for (position, endpoint) in endpoints.iter().enumerate() {
            let seed = of_endpoint(*endpoint);
            points.extend((0..points_each as u64).map(|number| {
                let point = mix(seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
                ((point >> 32) as u32, position as u32)
            }));
        }
        points.sort_unstable();
        Self::Ring(points)
    }

    /// A Maglev table. Positions index `endpoints`. Their order decides which endpoint gets a contested entry, so it
    /// must be the same in every proxy.
    pub(crate) fn maglev(endpoints: &[SocketAddr]) -> Self {
        const FREE: u32 = u32::MAX;
        let mut table = vec![FREE; MAGLEV_SIZE];
        // Each endpoint has a permutation of the entries, given by an offset and a step. In turn each endpoint takes
        // the next free entry of its permutation.
        let mut permutations: Vec<(usize, usize)> = endpoints
            .iter()
            .map(|endpoint| {
                let hash = of_endpoint(*endpoint);
                let step = mix(hash ^ 0x9e37_79b9_7f4a_7c15) as usize % (MAGLEV_SIZE - 1) + 1;
                (hash as usize % MAGLEV_SIZE, step)
            })
            .collect();
        let mut filled = 0;
        while filled < MAGLEV_SIZE && !permutations.is_empty() {
            for (position, (next, step)) in permutations.iter_mut().enumerate() {
                while table[*next] != FREE {
                    *next = (*next + *step) % MAGLEV_SIZE;
                }
                table[*next] = position as u32;
                filled += 1;
                if filled == MAGLEV_SIZE {
                    break;
                }
            }
        }
        table.retain(|position| *position != FREE);
        Self::Maglev(table)
    }

    /// The position that a key maps to: the first one, in the table's order from the key on, that `accepts` accepts.
    /// If it accepts none, the key's own.
    pub(crate) fn find(&self, key: u64, accepts: impl Fn(usize) -> bool) -> Option<usize> {
        match self {
            Self::Ring(points) => {
                let key = (key >> 32) as u32;
                let first = points.partition_point(|(point, _)| *point < key);
                walk(points.len(), first, |at| points[at].1, accepts)
            }
            Self::Maglev(table) => {
                let first = (key % table.len().max(1) as u64) as usize;
                walk(table.len(), first, |at| table[at], accepts)
            }
        }
    }
}

fn walk(size: usize, first: usize, at: impl Fn(usize) -> u32, accepts: impl Fn(usize) -> bool) -> Option<usize> {
    if size == 0 {
        return None;
    }
    let mut around = (0..size).map(|step| at((first + step) % size) as usize);
    around.find(|position| accepts(*position)).or_else(|| Some(at(first % size) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: u64 = 60_000;

    fn endpoints(count: u8) -> Vec<SocketAddr> {
        (1..=count).map(|number| SocketAddr::from(([198, 18, 128, number], 8080))).collect()
    }

    fn tables(endpoints: &[SocketAddr]) -> [(&'static str, Table); 2] {
        [("ring", Table::ring(endpoints)), ("maglev", Table::maglev(endpoints))]
    }

    fn keys() -> impl Iterator<Item = u64> {
        (0..KEYS).map(|number| hash(format!("user-{number}").as_bytes()))
    }

    fn position(table: &Table, key: u64) -> usize {
        table.find(key, |_| true).expect("endpoints")
    }

    #[test]
    fn keys_are_spread_evenly() {
        for (count, ring_percent) in [(2, 20), (10, 25), (100, 35)] {
            for ((name, table), percent) in tables(&endpoints(count)).into_iter().zip([ring_percent, 20]) {
                let mut shares = vec![0u64; count as usize];
                keys().for_each(|key| shares[position(&table, key)] += 1);
                let mean = KEYS / u64::from(count);
                let (least, most) = (shares.iter().min().expect("some"), shares.iter().max().expect("some"));
                let bound = mean * percent / 100;
                assert!(
                    *least >= mean - bound && *most <= mean + bound,
                    "{name} of {count}: {least} to {most}, mean {mean}"
                );
            }
        }
    }

    #[test]
    fn removing_an_endpoint_moves_few_other_keys() {
        let all = endpoints(10);
        let mut fewer = all.clone();
        let gone = fewer.remove(4);
        for ((name, before), (_, after)) in tables(&all).into_iter().zip(tables(&fewer)) {
            let (mut own, mut others) = (0, 0);
            for key in keys() {
                let (before, after) = (all[position(&before, key)], fewer[position(&after, key)]);
                own += u64::from(before == gone);
                others += u64::from(before != gone && before != after);
            }
            assert!((KEYS / 15..KEYS / 7).contains(&own), "{name}: a tenth was its own: {own}");
            match name {
                "ring" => assert_eq!(others, 0, "{name}: no other key moves"),
                _ => assert!(others < KEYS / 10, "{name}: about as many others move: {others}"),
            }
        }
    }

    #[test]
    fn keys_of_a_rejected_endpoint_move_to_the_next_one() {
        for (name, table) in tables(&endpoints(5)) {
            let key = hash(b"user-7");
            let first = position(&table, key);
            assert_eq!(first, position(&table, key), "{name}: the same key, the same endpoint");
            let second = table.find(key, |position| position != first).expect("endpoints");
            assert_ne!(second, first, "{name}");
            let third = table.find(key, |position| position != first && position != second).expect("endpoints");
            assert!(third != first && third != second, "{name}");
            assert_eq!(table.find(key, |_| false), Some(first), "{name}: all were tried");
        }
        for (name, table) in tables(&[]) {
            assert_eq!(table.find(1, |_| true), None, "{name}");
        }
    }

    #[test]
    fn hashes_do_not_change() {
        // So an upgrade of a proxy moves no session.
        assert_eq!(hash(b""), 0xefd0_1f60_ba99_2926);
        assert_eq!(hash(b"user-7"), 0x05f4_5893_168b_eb5f);
    }
}
