//! Whether clients apply a route or a cluster: the proxies of the pods that send the requests do.
//!
//! A route to a Service of another namespace applies to clients in its own namespace; other routes, and clusters, to
//! all clients. Which pods are clients is not known. That a namespace has pods and none with a proxy is a mistake, or
//! the intention where clients are in other namespaces.

use weft_crds::status::Reason;

use super::pods::{Pods, count, enable};
use crate::compile::diagnostic::Diagnostic;

/// Where the clients of an object are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clients {
    /// In the object's own namespace.
    Own,
    /// In any namespace.
    Any,
}

/// Why clients do not apply an object of the namespace. `elsewhere`: a pod of another namespace has a proxy.
pub(super) fn check(name: &str, pods: &Pods<'_>, clients: Clients, elsewhere: bool) -> Option<Diagnostic> {
    let elsewhere = elsewhere && clients == Clients::Any;
    let which = format!("in namespace {name}");
    if pods.all.is_empty() {
        let hint = if pods.enabled { String::new() } else { format!("; {}, so that they get one", enable(name)) };
        let message = format!("no ready pod can send requests by it: it applies to pods with a proxy{hint}");
        return (!elsewhere).then(|| Diagnostic::limited(Reason::NoPods, message));
    }
    if pods.all.iter().any(|pod| pod.has_proxy) {
        let forgotten = pods.not_restarted();
        let count = count(forgotten.len(), pods.all.len(), &which);
        let message = format!("{count}, and it does not apply to what they send: {}", pods.remedies(&forgotten));
        return (!forgotten.is_empty()).then(|| Diagnostic::limited(Reason::NoProxy, message));
    }
    let text = pods.without_proxy(&pods.all, &which)?;
    Some(match (clients, elsewhere) {
        (Clients::Any, true) => {
            Diagnostic::limited(Reason::NoProxy, format!("it applies only to clients in other namespaces: {text}"))
        }
        (Clients::Any, false) => {
            Diagnostic::ineffective(Reason::NoProxy, format!("no client applies it, in no namespace: {text}"))
        }
        (Clients::Own, _) => Diagnostic::ineffective(
            Reason::NoProxy,
            format!("no client applies it, and it is for clients in its own namespace only: {text}"),
        ),
    })
}
