//! Routes of the Gateway API that are attached to a Service: HTTPRoute, GRPCRoute, TLSRoute and TCPRoute.

use std::collections::BTreeSet;

use kube::api::DynamicObject;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_crds::{Condition, Status, names};
use weft_gateway_api::{GrpcRouteSpec, HttpRouteSpec, ParentReference, TcpRouteSpec, TlsRouteSpec, VERSION};

use super::key::{Kind, ObjectId};
use super::mesh_object::Meta;

/// A route of the Gateway API. A spec that does not parse is stored as the error, as in a
/// [`MeshObject`](super::MeshObject).
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayRoute {
    /// Its kind.
    pub kind: Kind,
    /// The version of the API in which it was read: `v1`, unless the cluster does not serve that.
    pub version: String,
    /// Metadata.
    pub meta: Meta,
    /// The spec, or why it does not parse.
    pub spec: Result<GatewaySpec, String>,
    /// The parents that are core Services, in the order of the spec, also of a spec that does not parse.
    pub services: Vec<ParentReference>,
    /// The parents that lack `group: ""` and so are no Services: a mistake that nobody else tells.
    pub mistaken: Vec<ParentReference>,
    /// Paths of fields in the spec that the types do not have, such as `rules[0].filters[1].externalAuth`.
    pub unknown_fields: Vec<String>,
    /// Namespaces that these parents and the rules name.
    pub namespaces: BTreeSet<String>,
    /// `status.parents`, of all controllers.
    pub parents: Vec<ParentStatus>,
}

/// The spec of a route of the Gateway API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewaySpec {
    /// Of an HTTPRoute.
    Http(HttpRouteSpec),
    /// Of a GRPCRoute.
    Grpc(GrpcRouteSpec),
    /// Of a TLSRoute.
    Tls(TlsRouteSpec),
    /// Of a TCPRoute.
    Tcp(TcpRouteSpec),
}

/// An entry of `status.parents`.
#[derive(Clone, Debug, PartialEq)]
pub enum ParentStatus {
    /// Written by this operator.
    Own(OwnStatus),
    /// Of another controller; it stays as it is.
    Other(Value),
}

/// An entry of `status.parents` that this operator wrote.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnStatus {
    /// The parentRef of the spec that it is about.
    pub parent_ref: ParentReference,
    /// Conditions of the route at this parent.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

// === impl GatewayRoute ===

impl GatewayRoute {
    /// Reads a route of the Gateway API. `None`: it has no Service as parent and no status of this operator, so nothing
    /// of it is kept.
    pub fn read(kind: Kind, object: DynamicObject) -> Option<Self> {
        let DynamicObject { metadata, data, .. } = object;
        let parents: Vec<ParentStatus> =
            list(&data["status"]["parents"]).iter().cloned().map(ParentStatus::from).collect();
        let spec = &data["spec"];
        let parent_refs: Vec<ParentReference> =
            list(&spec["parentRefs"]).iter().filter_map(|parent| ParentReference::deserialize(parent).ok()).collect();
        let mistaken: Vec<ParentReference> =
            parent_refs.iter().filter(|parent| parent.lacks_core_group()).cloned().collect();
        let services: Vec<ParentReference> = parent_refs.into_iter().filter(ParentReference::is_service).collect();
        if services.is_empty()
            && mistaken.is_empty()
            && !parents.iter().any(|parent| matches!(parent, ParentStatus::Own(_)))
        {
            return None;
        }
        let mut namespaces = services.iter().filter_map(|service| service.namespace.clone()).collect();
        collect_namespaces(&spec["rules"], &mut namespaces);
        let mut unknown_fields = Vec::new();
        let spec = match kind {
            Kind::HttpRoute => parse(spec, GatewaySpec::Http, &mut unknown_fields),
            Kind::GrpcRoute => parse(spec, GatewaySpec::Grpc, &mut unknown_fields),
            Kind::TlsRoute => parse(spec, GatewaySpec::Tls, &mut unknown_fields),
            Kind::TcpRoute => parse(spec, GatewaySpec::Tcp, &mut unknown_fields),
            Kind::Cluster | Kind::Mesh | Kind::Policy | Kind::Route => return None,
        };
        let (version, meta) = (VERSION.to_owned(), Meta::from(metadata));
        Some(Self { kind, version, meta, spec, services, mistaken, unknown_fields, namespaces, parents })
    }

    /// Reads a route in a version that Weft does not read: its spec is this error.
    pub fn read_unsupported(kind: Kind, version: &str, error: String, object: DynamicObject) -> Option<Self> {
        let route = Self::read(kind, object)?;
        Some(Self { version: version.to_owned(), spec: Err(error), unknown_fields: Vec::new(), ..route })
    }

    /// Its identity.
    pub fn id(&self) -> ObjectId {
        ObjectId { kind: self.kind, key: self.meta.key.clone() }
    }

    /// The status that this operator wrote for a parent.
    pub fn own_status(&self, parent: &ParentReference) -> Option<&OwnStatus> {
        self.parents.iter().find_map(|entry| match entry {
            ParentStatus::Own(own) if own.parent_ref == *parent => Some(own),
            ParentStatus::Own(_) | ParentStatus::Other(_) => None,
        })
    }
}

// === impl OwnStatus ===

impl OwnStatus {
    /// The `metadata.generation` that the conditions refer to.
    pub fn observed_generation(&self) -> Option<i64> {
        self.conditions.first().and_then(|condition| condition.observed_generation)
    }

    /// The same in the form of Weft's own kinds.
    pub fn status(&self) -> Status {
        Status { observed_generation: self.observed_generation(), conditions: self.conditions.clone() }
    }
}

// === impl ParentStatus ===

impl ParentStatus {
    /// The entry as it is written.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Own(OwnStatus { parent_ref, conditions }) => {
                json!({ "parentRef": parent_ref, "controllerName": names::CONTROLLER, "conditions": conditions })
            }
            Self::Other(entry) => entry.clone(),
        }
    }
}

impl From<Value> for ParentStatus {
    /// An own entry that does not parse is about no parent, so it is removed and written again.
    fn from(entry: Value) -> Self {
        match entry["controllerName"] == names::CONTROLLER {
            true => Self::Own(serde_json::from_value(entry).unwrap_or_default()),
            false => Self::Other(entry),
        }
    }
}

/// The items of a list; none of anything else.
fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn parse<S: DeserializeOwned + Serialize>(
    raw: &Value,
    of: fn(S) -> GatewaySpec,
    unknown_fields: &mut Vec<String>,
) -> Result<GatewaySpec, String> {
    let spec = S::deserialize(raw).map_err(|error| error.to_string())?;
    let known = serde_json::to_value(&spec).map_err(|error| error.to_string())?;
    collect_unknown(raw, &known, "", unknown_fields);
    Ok(of(spec))
}

/// Collects the paths of fields in `raw` that are not in `known`, which is written from what was read.
fn collect_unknown(raw: &Value, known: &Value, path: &str, unknown: &mut Vec<String>) {
    match (raw, known) {
        (Value::Object(raw), Value::Object(known)) => {
            for (name, value) in raw {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match known.get(name) {
                    Some(known) => collect_unknown(value, known, &path, unknown),
                    // Empty lists are not written.
                    None if value.is_null() || value.as_array().is_some_and(Vec::is_empty) => {}
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(raw), Value::Array(known)) => {
            for (index, (value, known)) in raw.iter().zip(known).enumerate() {
                collect_unknown(value, known, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

/// Collects the namespaces of all references: no other field has this name.
fn collect_namespaces(value: &Value, namespaces: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            namespaces.extend(fields.get("namespace").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|field| collect_namespaces(field, namespaces));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_namespaces(item, namespaces)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: Kind, spec: Value, status: Value) -> Option<GatewayRoute> {
        let object = json!({"metadata": {"namespace": "shop", "name": "r"}, "spec": spec, "status": status});
        GatewayRoute::read(kind, serde_json::from_value(object).expect("an object"))
    }

    fn service() -> Value {
        json!({"group": "", "kind": "Service", "name": "web", "namespace": "web"})
    }

    #[test]
    fn routes_of_gateways_are_not_kept() {
        let gateway = json!({"parentRefs": [{"name": "edge"}], "rules": [{}]});
        let status = |controller| json!({"parents": [{"parentRef": service(), "controllerName": controller}]});
        assert_eq!(read(Kind::HttpRoute, gateway.clone(), json!(null)), None);
        assert_eq!(read(Kind::HttpRoute, gateway.clone(), status("example.com/gateway")), None);
        let left = read(Kind::HttpRoute, gateway, status(names::CONTROLLER)).expect("has a status to remove");
        assert_eq!(left.services, []);
        let mistaken = json!({"parentRefs": [{"kind": "Service", "name": "web"}], "rules": [{}]});
        let mistaken = read(Kind::HttpRoute, mistaken, json!(null)).expect("its status says what is missing");
        assert_eq!((mistaken.services.len(), mistaken.mistaken.len()), (0, 1));
        let both = json!({"parentRefs": [{"name": "edge"}, service()], "rules": [{}]});
        let both = read(Kind::HttpRoute, both, json!(null)).expect("has a Service");
        assert_eq!(both.services.len(), 1);
        assert!(matches!(&both.spec, Ok(GatewaySpec::Http(spec)) if spec.parent_refs.len() == 2), "{both:?}");
    }

    #[test]
    fn namespaces_of_backends_and_mirrors_are_references() {
        let mirror = |namespace| json!({"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "m", "namespace": namespace}}});
        let spec = json!({
            "parentRefs": [{"name": "edge", "namespace": "edge"}, service()],
            "rules": [{
                "filters": [mirror("a")],
                "backendRefs": [{"name": "b", "namespace": "b", "filters": [mirror("c")]}, {"name": "d"}],
            }],
        });
        let route = read(Kind::GrpcRoute, spec, json!(null)).expect("has a Service");
        assert_eq!(route.namespaces, ["a", "b", "c", "web"].map(str::to_owned).into(), "not that of a Gateway");
    }

    #[test]
    fn fields_of_a_newer_api_are_listed() {
        let spec = json!({
            "parentRefs": [service()],
            "rules": [
                {"name": "old", "filters": [], "backendRefs": [{"name": "web", "port": 80}]},
                {"sessionPersistence": {"type": "Cookie"}, "filters": [
                    {"type": "ExternalAuth", "externalAuth": {"protocol": "HTTP"}},
                ]},
            ],
        });
        let route = read(Kind::HttpRoute, spec, json!(null)).expect("has a Service");
        assert_eq!(route.unknown_fields, ["rules[1].filters[0].externalAuth", "rules[1].sessionPersistence"]);
    }

    #[test]
    fn a_spec_that_does_not_parse_keeps_its_services() {
        let spec = json!({"parentRefs": [service()], "rules": [{"backendRefs": [{"name": "web", "port": "http"}]}]});
        let route = read(Kind::TcpRoute, spec, json!(null)).expect("has a Service");
        assert_eq!(route.services[0].name, "web");
        let error = route.spec.expect_err("a port is a number");
        assert!(error.contains("http"), "{error}");
    }

    #[test]
    fn entries_of_other_controllers_stay_as_they_are() {
        let entries = json!([
            {"parentRef": {"name": "edge", "future": 1}, "controllerName": "example.com/gateway", "conditions": [], "x": 2},
            {"parentRef": service(), "controllerName": names::CONTROLLER, "conditions": []},
        ]);
        let route = read(Kind::TlsRoute, json!({"parentRefs": [service()]}), json!({"parents": entries}));
        let route = route.expect("has a Service");
        let written: Vec<Value> = route.parents.iter().map(ParentStatus::to_json).collect();
        assert_eq!(json!(written), entries);
        assert!(route.own_status(&route.services[0]).is_some());
    }
}
