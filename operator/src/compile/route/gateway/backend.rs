//! References to backends: Services, in the words of MeshRoute.

use weft_crds::refs::ServiceKind;
use weft_crds::route;
use weft_crds::status::Reason;
use weft_gateway_api::{BackendObjectReference, BackendRef, HttpBackendRef};

/// The Service that a reference names, with weight 1. An error if it names something else.
pub(super) fn service(reference: &BackendObjectReference) -> Result<route::BackendRef, (Reason, String)> {
    let BackendObjectReference { group, kind, name, namespace, port } = reference;
    let (group, kind) = (group.as_deref().unwrap_or_default(), kind.as_deref().unwrap_or("Service"));
    if (group, kind) != ("", "Service") {
        let group = if group.is_empty() { String::new() } else { format!(".{group}") };
        let message = format!("backend {name} is of kind {kind}{group}, which is not supported: name a Service");
        return Err((Reason::InvalidKind, message));
    }
    let number = port.and_then(self::port);
    let port = number.ok_or_else(|| {
        let message = match port {
            Some(port) => format!("backend {name}: {port} is no port"),
            None => format!("backend {name} needs a port of the Service"),
        };
        (Reason::BackendNotFound, message)
    })?;
    Ok(route::BackendRef {
        kind: ServiceKind::Service,
        namespace: namespace.clone(),
        name: name.clone(),
        port,
        subset: None,
        weight: 1,
    })
}

/// A port number.
pub(super) fn port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port > 0)
}

/// The weight of a backend; 1 by default.
pub(super) fn weight(weight: Option<i32>) -> u32 {
    weight.map_or(1, |weight| u32::try_from(weight).unwrap_or(0))
}

/// What a backend of an HTTPRoute refers to.
pub(super) fn of_http(backend: &HttpBackendRef) -> BackendObjectReference {
    let HttpBackendRef { filters: _, group, kind, name, namespace, port, weight: _ } = backend.clone();
    BackendObjectReference { group, kind, name, namespace, port }
}

/// What a backend of a TLSRoute or TCPRoute refers to.
pub(super) fn of_stream(backend: &BackendRef) -> BackendObjectReference {
    let BackendRef { group, kind, name, namespace, port, weight: _ } = backend.clone();
    BackendObjectReference { group, kind, name, namespace, port }
}
