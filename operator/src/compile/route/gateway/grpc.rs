//! What a GRPCRoute has in common with an HTTPRoute, as an HTTPRoute has it.

use weft_gateway_api::{GrpcBackendRef, GrpcRouteFilter, HttpBackendRef, HttpRouteFilter};

/// A backend of a GRPCRoute as one of an HTTPRoute.
pub(super) fn backend(backend: &GrpcBackendRef) -> HttpBackendRef {
    let GrpcBackendRef { filters, group, kind, name, namespace, port, weight } = backend.clone();
    let filters = filters.iter().map(filter).collect();
    HttpBackendRef { filters, group, kind, name, namespace, port, weight }
}

/// A filter of a GRPCRoute as one of an HTTPRoute.
pub(super) fn filter(filter: &GrpcRouteFilter) -> HttpRouteFilter {
    let GrpcRouteFilter { extension_ref, request_header_modifier, request_mirror, response_header_modifier, r#type } =
        filter.clone();
    HttpRouteFilter {
        extension_ref,
        request_header_modifier,
        request_mirror,
        response_header_modifier,
        r#type,
        ..HttpRouteFilter::default()
    }
}
