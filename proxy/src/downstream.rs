//! A downstream connection, as shared by everything that serves it.

use std::cell::{Cell, OnceCell};
use std::net::SocketAddr;
use std::rc::Rc;

use http::HeaderValue;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::task_tracker::TaskTrackerToken;
use weft_identity::{Account, SpiffeId};

use crate::callers::OpenCall;
use crate::changes::Changes;
use crate::direction::Direction;
use crate::identity::Protocol;
use crate::orig_dst::original_destination;
use crate::policy::Call;
use crate::reason::Reason;
use crate::security::{Security, Why};
use crate::telemetry::handles::Open;
use crate::value::RuleName;
use crate::worker::Worker;

/// A downstream connection. It counts as open until the last request and the last tunnel on it are over.
pub(crate) struct Downstream {
    pub(crate) worker: Rc<Worker>,
    pub(crate) direction: Direction,
    pub(crate) peer: SocketAddr,
    /// The original destination, before redirection.
    pub(crate) destination: SocketAddr,
    /// Who the client is, once it has proven that.
    pub(crate) caller: OnceCell<Box<Caller>>,
    /// Why plaintext of the client is accepted.
    plaintext: Cell<Why>,
    /// Set for a caller that Strict would refuse. Boxed: few are.
    recorded: Cell<Option<Box<OpenCall>>>,
    _permit: OwnedSemaphorePermit,
    _tracked: TaskTrackerToken,
    _open: Open,
}

/// Who the client is, by its certificate.
pub(crate) struct Caller {
    pub(crate) id: SpiffeId,
    /// What its proxy speaks inside of TLS.
    protocol: Protocol,
    /// Whether it is of the trust domain of this pod.
    is_of_domain: bool,
    /// What the application is told of it: the value of `x-forwarded-client-cert`.
    pub(crate) header: Option<HeaderValue>,
}

impl Caller {
    /// A client that has proven to be `id` to this pod, which is `own`. Source of the form: Envoy.
    pub(crate) fn new(id: SpiffeId, own: &SpiffeId, protocol: Protocol) -> Self {
        let header = HeaderValue::try_from(format!("By={own};URI={id}")).ok();
        Self { header, protocol, is_of_domain: id.trust_domain() == own.trust_domain(), id }
    }

    /// Its name in metrics: `namespace/service account`, or the whole identity if it is of another trust domain.
    pub(crate) fn label(&self) -> String {
        if self.is_of_domain {
            format!("{}/{}", self.id.namespace(), self.id.service_account())
        } else {
            self.id.to_string()
        }
    }

    /// The service account that policies know it by. None: it is of another trust domain, whose accounts are others.
    pub(crate) fn account(&self) -> Option<&Account> {
        self.is_of_domain.then(|| self.id.account())
    }
}

impl Downstream {
    /// The call that policies judge: to which port, and by whom.
    pub(crate) fn call(&self) -> Call<'_> {
        Call { port: self.destination.port(), caller: self.caller.get().and_then(|caller| caller.account()) }
    }

    /// Whether its requests are of HTTP/1.1 though they come as streams of HTTP/2.
    pub(crate) fn multiplexes_http1(&self) -> bool {
        self.caller.get().is_some_and(|caller| caller.protocol == Protocol::MultiplexedHttp1)
    }

    /// The changes after which its calls are judged again.
    pub(crate) fn changes(&self) -> Option<&Rc<Changes>> {
        (self.direction == Direction::Inbound).then_some(&self.worker.changes)
    }

    /// How the connection is secured.
    pub(crate) fn security(&self) -> Security {
        let shared = &self.worker.shared;
        match self.direction {
            Direction::Outbound => Security::None,
            Direction::Inbound if self.caller.get().is_some() => Security::Mtls,
            Direction::Inbound if shared.tls.is_some() => Security::Tls,
            Direction::Inbound if shared.identity.is_expected() => Security::Plaintext(self.plaintext.get()),
            Direction::Inbound => Security::Plaintext(Why::NoIdentity),
        }
    }

    /// Counts an inbound call that has ended, by its caller, if `reason` is that a rule denied it.
    pub(crate) fn count_denied(&self, reason: Option<Reason>, rule_name: Option<&RuleName>) {
        if let (Direction::Inbound, Some(Reason::PolicyDenied), Some(rule_name)) = (self.direction, reason, rule_name) {
            let caller = self.caller.get().map(|caller| caller.label()).unwrap_or_default();
            self.worker.handles.denied(rule_name, caller);
        }
    }

    /// Sets why plaintext of the client is accepted.
    pub(crate) fn set_plaintext(&self, why: Why) {
        self.plaintext.set(why);
        if why != Why::Permissive {
            self.end_record();
        }
    }

    /// Records a client whose plaintext was let pass, if Strict would refuse it.
    pub(crate) fn record_caller(&self) {
        if self.security() == Security::Plaintext(Why::Permissive) {
            let (ip, port) = (self.peer.ip(), self.destination.port());
            let begin = || Box::new(self.worker.shared.callers.begin(ip, port, self.worker.now()));
            self.recorded.set(Some(self.recorded.take().unwrap_or_else(begin)));
        }
    }

    fn end_record(&self) {
        if let Some(recorded) = self.recorded.take() {
            recorded.end(self.worker.now());
        }
    }

    /// A connection that was just accepted, with its listener's permit. None: it is already closed.
    pub(crate) fn new(
        worker: &Rc<Worker>,
        direction: Direction,
        stream: &TcpStream,
        peer: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) -> Option<Rc<Self>> {
        let shared = &worker.shared;
        let original = original_destination(stream, peer).ok()?;
        let destination = match (direction, shared.application) {
            (Direction::Inbound, Some(application)) if shared.own_ports.contains(&original.port()) => application,
            _ => original,
        };
        Some(Rc::new(Self {
            worker: worker.clone(),
            direction,
            peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
            destination,
            caller: OnceCell::new(),
            plaintext: Cell::new(Why::Permissive),
            recorded: Cell::new(None),
            _permit: permit,
            _tracked: shared.connections.token(),
            _open: worker.handles.connection(direction),
        }))
    }
}

impl Drop for Downstream {
    fn drop(&mut self) {
        self.end_record();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caller_of_another_trust_domain_has_no_account() {
        let id = |domain: &str| -> SpiffeId { format!("spiffe://{domain}/ns/shop/sa/web").parse().expect("an id") };
        let account = |domain| Caller::new(id(domain), &id("cluster.local"), Protocol::Http1).account().cloned();
        assert_eq!(account("cluster.local"), Some(id("cluster.local").account().clone()));
        for other in ["cluster.localhost", "cluster", "local", "other.local"] {
            assert_eq!(account(other), None, "{other}");
        }
    }
}
