//! Documents of pods, by the prefixes of their addresses. The index lists a prefix as long as its document exists: it is
//! written before, and deleted after.

use std::collections::BTreeMap;
use std::time::Instant;

use weft_config::Prefix;
use weft_config::bootstrap::pods_name;

use super::Reconciler;
use super::state::{INDEX, State};
use crate::compile;
use crate::render::Body;
use crate::world::DocumentKind;

// === impl Reconciler ===

impl Reconciler {
    /// Writes the documents of prefixes, and marks the index if it is to list others. Returns the prefixes without pods.
    pub(super) async fn write_pods(&self, state: &mut State, prefixes: Vec<Prefix>, epoch: u64) -> Vec<Prefix> {
        let (mut jobs, mut without_pods) = (Vec::new(), Vec::new());
        for prefix in &prefixes {
            let body = compile::pods(&state.world, *prefix);
            if body.pods.is_empty() {
                without_pods.push(*prefix);
            } else {
                self.plan(state, &pods_name(*prefix), Body::Pods(body), BTreeMap::new(), epoch, &mut jobs);
            }
        }
        self.write(state, jobs, epoch).await;
        if prefixes.iter().any(|prefix| state.is_listed(*prefix) != state.is_to_list(*prefix)) {
            state.dirty.insert(INDEX.to_owned());
        }
        without_pods
    }

    /// Deletes the documents of prefixes without pods, once the index does not list them.
    pub(super) async fn remove_pods(&self, state: &mut State, without_pods: Vec<Prefix>, epoch: u64) {
        for prefix in without_pods {
            let scope = pods_name(prefix);
            if state.is_listed(prefix) {
                state.retry(&scope, Instant::now());
            } else {
                self.delete(state, DocumentKind::Pods, &scope, epoch).await;
            }
        }
    }
}
