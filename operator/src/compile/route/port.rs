//! The Service ports that a route is attached to by a parentRef.

use weft_config::{ConsumerRoutes, ObjectRef, Protocol, RouteTable};
use weft_crds::status::Reason;

use super::backend::RuleKind;
use crate::compile::diagnostic::Diagnostic;
use crate::compile::{missing, value};
use crate::world::{DocumentKind, Key, Service, ServicePort, World};

/// A Service port that routes are attached to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::compile) struct ServicePortKey {
    pub(super) service: Key,
    pub(super) port: u16,
}

/// What a parentRef names: a Service, or one of its ports by number, by name, or by both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parent<'a> {
    pub(super) service: Key,
    pub(super) port: Option<u16>,
    pub(super) port_name: Option<&'a str>,
}

/// The Service ports of a parent that rules of one kind apply to, and the others.
#[derive(Debug, Default)]
pub(super) struct PortKeys {
    pub(super) found: Vec<ServicePortKey>,
    pub(super) others: Vec<ServicePortKey>,
}

// === impl ServicePortKey ===

impl ServicePortKey {
    pub(in crate::compile) fn new(namespace: &str, service: &str, port: u16) -> Self {
        Self { service: Key::new(namespace, service), port }
    }

    /// That a route does not apply to it.
    pub(super) fn is_of_another_protocol(&self) -> Diagnostic {
        Diagnostic::note(format!(
            "it does not apply to {self}, which is declared (by appProtocol or port name) as another protocol"
        ))
    }

    /// The document that its route table is part of, for routes of namespace `own`.
    pub(super) fn document(&self, own: &str) -> DocumentKind {
        if self.service.namespace == own { DocumentKind::Export } else { DocumentKind::Inbound }
    }

    /// The consumer routes of the private document.
    pub(in crate::compile) fn consumer(self, table: RouteTable) -> ConsumerRoutes {
        let service = ObjectRef { namespace: self.service.namespace, name: self.service.name };
        ConsumerRoutes { service, port: self.port, table }
    }
}

impl std::fmt::Display for ServicePortKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Service {} port {}", self.service, self.port)
    }
}

// === impl Parent ===

impl Parent<'_> {
    /// The ports that rules of this kind can apply to. `remedy` is the message's text on what applies to a port of
    /// another protocol.
    pub(super) fn port_keys(&self, world: &World, kind: RuleKind, remedy: &str) -> Result<PortKeys, (Reason, String)> {
        let key = &self.service;
        let service = world
            .service(&key.namespace, &key.name)
            .ok_or_else(|| (Reason::TargetNotFound, missing::service(world, key)))?;
        if !service.has_address() {
            return Err((Reason::UnsupportedTarget, value::no_address(service)));
        }
        let fits = |port: &ServicePort| match kind {
            RuleKind::Http => port.protocol != Protocol::Tcp,
            RuleKind::Stream => !matches!(port.protocol, Protocol::Http | Protocol::Http2),
        };
        let carries = match kind {
            RuleKind::Http => "opaque TCP",
            RuleKind::Stream => "HTTP",
        };
        let declared = format!("declared as {carries} (by appProtocol or port name): {remedy}");
        if let Some(found) = self.named(service)? {
            let port = found.port;
            if !fits(found) {
                return Err((Reason::UnsupportedTarget, format!("port {port} of Service {key} is {declared}")));
            }
            return Ok(PortKeys { found: vec![ServicePortKey { service: key.clone(), port }], others: Vec::new() });
        }
        if service.ports.is_empty() {
            return Err((Reason::UnsupportedTarget, value::no_port(service)));
        }
        let (fitting, others): (Vec<_>, Vec<_>) = service.ports.iter().partition(|port| fits(port));
        if fitting.is_empty() {
            return Err((Reason::UnsupportedTarget, format!("every port of Service {key} is {declared}")));
        }
        let keys = |ports: Vec<&ServicePort>| {
            ports.into_iter().map(|port| ServicePortKey { service: key.clone(), port: port.port }).collect()
        };
        Ok(PortKeys { found: keys(fitting), others: keys(others) })
    }

    /// The one port that it names. `None`: it names none, so all are meant.
    fn named<'s>(&self, service: &'s Service) -> Result<Option<&'s ServicePort>, (Reason, String)> {
        let not_found = |message| (Reason::TargetNotFound, message);
        let by_number = match self.port {
            Some(port) => Some(service.port(port).ok_or_else(|| not_found(missing::port(service, port)))?),
            None => None,
        };
        let Some(name) = self.port_name else { return Ok(by_number) };
        let by_name = service.ports.iter().find(|port| port.name == name);
        let by_name = by_name.ok_or_else(|| not_found(missing::port_name(service, name)))?;
        match by_number {
            Some(other) if other.port != by_name.port => Err(not_found(format!(
                "port {} of Service {} is not the port with the name {name} of sectionName, which is {}: remove one of \
                 the two",
                other.port, self.service, by_name.port
            ))),
            _ => Ok(Some(by_name)),
        }
    }
}
