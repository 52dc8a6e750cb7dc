//! Who is at which address: the pods with an identity, by the prefixes of their addresses.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_config::{PodIdentity, Pods, Prefix};

use crate::world::{Pod, World};

/// Compiles the document of a prefix. Without pods, there is to be none.
pub fn pods(world: &World, prefix: Prefix) -> Pods {
    let mut at: BTreeMap<IpAddr, &Pod> = BTreeMap::new();
    for pod in world.pods_in(prefix) {
        for address in pod.identified.iter().filter(|address| Prefix::of(**address) == prefix) {
            let holder = at.entry(*address).or_insert(pod);
            if claim(pod) > claim(holder) {
                *holder = pod;
            }
        }
    }
    let identities = at.into_iter().map(|(address, pod)| {
        let (namespace, service_account) = (pod.key.namespace.clone(), pod.service_account.clone());
        (address, PodIdentity { namespace, service_account, excluded: pod.excluded.clone() })
    });
    Pods { pods: identities.collect() }
}

/// Two pods may have the same address in their status: that of one that is gone, or was cut off from its node, is given
/// to another before the status says so. Then the one that lives on has it, else the one that was created last.
fn claim(pod: &Pod) -> (Reverse<bool>, i64, &str) {
    (Reverse(pod.deleting), pod.created, &pod.uid)
}
