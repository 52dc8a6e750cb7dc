//! Why the proxy responded or closed by itself, and the headers by which mesh proxies tell each other.

use http::StatusCode;
use http::header::HeaderName;

/// On a response that a proxy generated: the reason.
pub(crate) const REASON: HeaderName = HeaderName::from_static("weft-reason");
/// On a response that a proxy generated: the object and the rule that decided, `Kind/namespace/name/rule`.
pub(crate) const SOURCE: HeaderName = HeaderName::from_static("weft-source");
/// On a response that the backend's sidecar generated: the backend never received the request, so a retry is safe for
/// any method.
pub(crate) const UNPROCESSED: HeaderName = HeaderName::from_static("weft-unprocessed");

/// What docs/reference/reasons.md says about a reason.
#[cfg(test)]
pub(crate) struct Entry {
    pub(crate) reason: Reason,
    /// Which proxy: `client's`, `server's` or `both`.
    pub(crate) by: &'static str,
    /// What ends with it: `request`, `connection` or `both`.
    pub(crate) of: &'static str,
    pub(crate) meaning: &'static str,
    /// What to do about it.
    pub(crate) remedy: &'static str,
}

/// Defines [`Reason`] from a table, so that none is without its texts: code and status; which proxy it is of, and what
/// it ends; its meaning; what to do.
macro_rules! reasons {
    ($($name:ident: $code:literal $status:ident, $by:literal $of:literal, $meaning:literal, $remedy:literal;)*) => {
        /// Why the proxy generated a response, or why a TCP connection failed: a closed list, used in headers, logs and
        /// metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Reason {
            $(#[doc = $meaning] $name,)*
        }

        impl Reason {
            /// All reasons, in the order of the page.
            #[cfg(test)]
            pub(crate) const ENTRIES: &[Entry] = &[
                $(Entry { reason: Self::$name, by: $by, of: $of, meaning: $meaning, remedy: $remedy },)*
            ];

            pub(crate) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)*
                }
            }

            /// The reason of this code. None: this version does not know it.
            pub(crate) fn parse(code: &[u8]) -> Option<Self> {
                $(if code == $code.as_bytes() {
                    return Some(Self::$name);
                })*
                None
            }

            /// The status of the response, unless a rule sets one.
            pub(crate) fn status(self) -> StatusCode {
                match self {
                    $(Self::$name => StatusCode::$status,)*
                }
            }
        }
    };
}

reasons! {
    BadRequest: "bad-request" BAD_REQUEST, "both" "request",
        "The request is invalid or ambiguous: two readers could understand it differently.",
        "The body of the response, or `error` in the access log, names the fault. Correct the client.";
    SlowRequest: "slow-request" REQUEST_TIMEOUT, "both" "request",
        "The client sent its body below the minimum rate.",
        "Look for a slow or stuck client ([resilience](../resilience.md#faulty-and-slow-clients)).";
    ConnectRefused: "connect-refused" METHOD_NOT_ALLOWED, "both" "request",
        "No rule matches the CONNECT, or it was sent to a server's proxy.",
        "Add a rule with the method CONNECT to a MeshRoute of the Service ([tunnels](../routing.md#connect-tunnels)).";
    NoRoute: "no-route" NOT_FOUND, "client's" "both",
        "The port has routes, and none of their rules matches; for TLS, none matches the server name.",
        "Compare the request with the matches of the MeshRoutes of this Service, or add a rule without matches.";
    BackendNotFound: "backend-not-found" INTERNAL_SERVER_ERROR, "client's" "both",
        "The backend that the rule selected does not exist, or is in another namespace and no ReferenceGrant allows \
         it.",
        "The condition ResolvedRefs of the MeshRoute in `weft-source` names the backend. Correct the name, namespace, \
         port or subset.";
    ConfigUnavailable: "config-unavailable" SERVICE_UNAVAILABLE, "both" "both",
        "The proxy has no configuration of the backend: its namespace's document did not arrive, was refused, or does \
         not contain the Service port. A server's proxy: it has not read which policies there are, and lets nothing pass.",
        "The proxy's log says which document, and why; so does its /readyz.";
    NoEndpoints: "no-endpoints" SERVICE_UNAVAILABLE, "client's" "both",
        "The backend, or its subset, has no ready endpoint.",
        "Check that the pods of the Service are ready, and that the labels of the subset select some of them \
         ([services](../services.md#no-available-pod)).";
    NoLocalEndpoints: "no-local-endpoints" SERVICE_UNAVAILABLE, "client's" "both",
        "The backend has ready endpoints, but none on the client's node, and its internalTrafficPolicy is Local.",
        "Run a pod of the Service on each node of its clients, or set internalTrafficPolicy to Cluster.";
    ConnectFailed: "connect-failed" SERVICE_UNAVAILABLE, "both" "both",
        "No connection to the endpoint could be made. Of a server's proxy: the application does not listen.",
        "Check that the application listens on the Service's target port, and that no NetworkPolicy is in between.";
    UpstreamReset: "upstream-reset" BAD_GATEWAY, "both" "both",
        "The endpoint closed or reset the connection before its response was complete.",
        "Look at the application's log and restarts at that time. A retry with the code 502 hides single cases.";
    DownstreamReset: "downstream-reset" BAD_GATEWAY, "both" "connection",
        "The client reset the connection. Not a failure.",
        "Nothing, unless clients give up because they waited too long.";
    IdleTimeout: "idle-timeout" GATEWAY_TIMEOUT, "both" "connection",
        "No byte moved on the connection for the idle timeout.",
        "Send keep-alives in the application's protocol. [bounds.md](../bounds.md) has the timeout.";
    Draining: "draining" SERVICE_UNAVAILABLE, "both" "connection",
        "The pod was shutting down, and the connection did not end within the drain time.",
        "Let clients reconnect, or raise the annotation config.weft.dev/drain-seconds.";
    UpstreamProtocol: "upstream-protocol" BAD_GATEWAY, "both" "request",
        "The endpoint's response is invalid HTTP.",
        "The body of the response names the fault. Correct the application, or the protocol of the Service's port \
         (appProtocol).";
    ResponseTooLarge: "response-too-large" BAD_GATEWAY, "both" "request",
        "The endpoint's response exceeds a limit: that of the rule for bodies, or the proxy's for heads.",
        "Raise the limit of the rule in `weft-source`, or make the response smaller ([bounds](../bounds.md)).";
    RequestTimeout: "request-timeout" GATEWAY_TIMEOUT, "client's" "request",
        "The request was not complete within the rule's `timeouts.request`.",
        "Compare `duration_ms` with the application's own latency, then raise the timeout or make the application \
         faster.";
    AttemptTimeout: "attempt-timeout" GATEWAY_TIMEOUT, "client's" "request",
        "The endpoint did not respond within the rule's `timeouts.backendRequest`, and no retry was left.",
        "As for request-timeout; a retry with the code 504 tries another endpoint.";
    Overflow: "overflow" SERVICE_UNAVAILABLE, "client's" "both",
        "A limit of the MeshCluster is reached: maxRequests, maxConnections or maxPending.",
        "Raise the limit, or add endpoints. The limit applies to each client pod.";
    Overload: "overload" SERVICE_UNAVAILABLE, "both" "both",
        "The proxy is close to the memory limit of its container.",
        "Raise config.weft.dev/proxy-memory-limit; `weft_memory_utilization_ratio` is the current usage \
         ([resilience](../resilience.md#overload-protection-memory)).";
    PolicyDenied: "policy-denied" FORBIDDEN, "server's" "both",
        "A MeshPolicy denies the request or connection, or none allows it. One that is open ends when a change denies it.",
        "`weft-source` names the rule: of a Deny the one that matched, of an Allow the first that could have; `default` \
         is the policy's default. `src.identity` in the access log of the server's proxy says who called \
         ([policies](../policy.md)).";
    WrongDestination: "wrong-destination" MISDIRECTED_REQUEST, "both" "connection",
        "The destination is not this pod, or is a port of the proxy itself.",
        "Use the Service's port. [ARCHITECTURE.md](../../ARCHITECTURE.md) has the ports of the proxy.";
    DirectResponse: "direct-response" OK, "client's" "request",
        "The rule responds directly. Not a failure.",
        "Nothing: `weft-source` names the rule.";
    Redirect: "redirect" OK, "client's" "request",
        "The rule redirects. Not a failure.",
        "Nothing: `weft-source` names the rule.";
    MaxForwards: "max-forwards" NO_CONTENT, "both" "request",
        "An OPTIONS or TRACE request arrived with Max-Forwards 0. Not a failure.",
        "Nothing: the client asked for the response of this hop.";
    Fault: "fault" SERVICE_UNAVAILABLE, "client's" "request",
        "The rule injects a fault.",
        "Remove the filter from the rule in `weft-source` when the experiment is over.";
    CorsPreflight: "cors-preflight" NO_CONTENT, "client's" "request",
        "The rule answers a CORS preflight. Not a failure.",
        "Nothing: the browser sends the request itself next.";
    CorsRefused: "cors-refused" FORBIDDEN, "client's" "request",
        "The rule's CORS settings do not allow the origin of a preflight.",
        "Add the origin to `allowOrigins` of the rule in `weft-source`.";
    RateLimited: "rate-limited" TOO_MANY_REQUESTS, "client's" "request",
        "The rate limit of the rule is exceeded.",
        "Slow the client down, or raise the limit of the rule in `weft-source`.";
    NoServerName: "no-server-name" MISDIRECTED_REQUEST, "client's" "connection",
        "The port has TLS rules, and the TLS client sends no server name (SNI).",
        "Let the client send the name, or add a TCP rule for other connections.";
    MtlsHandshake: "mtls-handshake" SERVICE_UNAVAILABLE, "both" "both",
        "The mutual TLS handshake between two proxies failed: one of them refused the certificate of the other, or was cut \
         off.",
        "`error` in the access log, or the body of the response, says why ([identity](../identity.md)).";
    WrongIdentity: "wrong-identity" SERVICE_UNAVAILABLE, "client's" "both",
        "The endpoint proved another identity than that of its service account. Nothing was sent to it: its address may \
         belong to another pod by now.",
        "If it persists, compare the identity in `error` with the service account of the pod at `dst.endpoint`.";
    PlaintextRefused: "plaintext-refused" FORBIDDEN, "both" "both",
        "The mode of mutual TLS is Strict. Client's proxy: the endpoint has no identity. Server's: the client did not prove \
         one.",
        "Add a proxy to the pod that has none, or set the mode to Permissive ([identity](../identity.md)).";
    NoCertificate: "no-certificate" SERVICE_UNAVAILABLE, "both" "both",
        "The proxy has no certificate yet, or it has expired, and the connection is one for mutual TLS.",
        "The proxy's log and `/readyz` on its port 15021 say why it gets no certificate ([identity](../identity.md)).";
    TlsHandshake: "tls-handshake" BAD_REQUEST, "server's" "connection",
        "A TLS handshake failed.",
        "`error` in the access log says why.";
}

impl Reason {
    /// Whether the access log counts this as a failure.
    pub(crate) fn is_failure(self) -> bool {
        !matches!(
            self,
            Self::DirectResponse | Self::Redirect | Self::MaxForwards | Self::CorsPreflight | Self::DownstreamReset
        )
    }
}
