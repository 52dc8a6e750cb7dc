//! MeshRoutes: their Service ports (parentRefs), their rules, and conflicts between routes with equal matches.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weft_config::{
    Action, Backend, BackendTarget, ClusterRef, ConsumerRoutes, Fault, FaultAbort, FaultDelay, HeaderEdit, Hedge,
    Match, Mirror, ObjectRef, PathRewrite, Protocol, RateLimit, Redirect, Respond, Retry, Rewrite, RouteTable, Rule,
    ServerName, StreamRule,
};
use weft_crds::MeshRouteSpec;
use weft_crds::refs::ParentRef;
use weft_crds::route::{self, FilterType, HttpRule, PathMatchType, PathModifierType, Scheme};
use weft_crds::status::Reason;

use super::compiled::Compiled;
use super::diagnostic::Diagnostic;
use super::precedence::{self, Rank, age};
use super::{cluster, value};
use crate::world::{DocumentKind, Key, Kind, Namespace, ObjectId, Route, Service, World};

const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const BACKOFF_MIN: Duration = Duration::from_millis(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
const ATTEMPTS_MAX: u32 = 10;
const AFTER_MIN: Duration = Duration::from_millis(1);
const AFTER_MAX: Duration = Duration::from_secs(60);
const HEDGES_MAX: u32 = 3;
const MIRRORS_MAX: usize = 4;
const PER_MIN: Duration = Duration::from_secs(1);
const PER_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const RATE_MAX: u32 = 1_000_000;
const DELAY_MIN: Duration = Duration::from_millis(1);
const DELAY_MAX: Duration = Duration::from_secs(5 * 60);

/// A Service port that routes are attached to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ServicePortKey {
    service: Key,
    port: u16,
}

/// A valid route with at least one Service port.
struct AttachedRoute<'a> {
    route: &'a Route,
    rules: Vec<(Rule, Vec<Match>)>,
    /// TLS and TCP rules with their server names; no names for the TCP rule.
    streams: Vec<(StreamRule, Vec<String>)>,
    /// The Service ports that its HTTP rules apply to, and those that its TLS and TCP rules apply to.
    http_ports: BTreeSet<ServicePortKey>,
    stream_ports: BTreeSet<ServicePortKey>,
    /// Number of its matches over all ports, and how many of them an older route or earlier rule already has.
    matches: usize,
    conflicting: usize,
    conflicts: Vec<Diagnostic>,
}

/// What a rule matches: HTTP requests, or TLS and TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RuleKind {
    Http,
    Stream,
}

/// The route tables by Service port: ports of the namespace's own Services, and ports of other namespaces' Services
/// for the clients in this namespace (consumer routes).
pub(super) fn compile(
    world: &World,
    name: &str,
    namespace: &Namespace,
    compiled: &mut Compiled,
) -> BTreeMap<ServicePortKey, RouteTable> {
    let mut routes: Vec<&Route> = namespace.routes.values().collect();
    routes.sort_by_key(|route| age(&route.meta));

    let mut attached = Vec::new();
    for route in routes {
        let outcome = compiled.objects.entry(id(route)).or_default();
        match attach(world, route, &mut outcome.diagnostics) {
            Ok(found) => attached.push(found),
            Err(refused) => outcome.diagnostics.push(refused),
        }
    }
    let port_keys: BTreeSet<ServicePortKey> = attached.iter().flat_map(AttachedRoute::port_keys).cloned().collect();
    let tables: BTreeMap<ServicePortKey, RouteTable> = port_keys
        .into_iter()
        .map(|port_key| (port_key.clone(), table(&port_key, &mut attached)))
        .filter(|(_, t)| !t.matches.is_empty() || !t.streams.is_empty())
        .collect();

    for attached in attached {
        let documents: BTreeSet<DocumentKind> = attached.port_keys().map(|port_key| port_key.document(name)).collect();
        let AttachedRoute { route, matches, conflicting, conflicts, .. } = attached;
        let outcome = compiled.objects.entry(id(route)).or_default();
        if conflicting == matches {
            // All its matches conflict: only the conflicts are reported.
            let messages: Vec<&str> = conflicts.iter().map(|conflict| conflict.message.as_str()).collect();
            outcome.diagnostics = vec![Diagnostic::refused(Reason::Conflicted, messages.join("; "))];
            continue;
        }
        outcome.diagnostics.extend(conflicts);
        outcome.documents.extend(documents);
    }
    for (port_key, table) in &tables {
        require(name, port_key, table, compiled);
    }
    tables
}

/// Records which other namespaces' exports the documents depend on.
fn require(name: &str, port_key: &ServicePortKey, table: &RouteTable, compiled: &mut Compiled) {
    let mut dependencies: BTreeSet<String> = compiled.inbound.dependencies.drain(..).collect();
    if port_key.service.namespace != name {
        dependencies.insert(port_key.service.namespace.clone());
    }
    // Mirrored requests may be dropped for a moment, so the documents do not wait for their targets' namespaces.
    let mirrors = table.rules.iter().flat_map(|rule| &rule.mirrors).map(|mirror| &mirror.target.namespace);
    dependencies.extend(mirrors.filter(|namespace| *namespace != name).cloned());
    let of_rules = table.rules.iter().filter_map(|rule| match &rule.action {
        Action::Forward { backends, .. } => Some(backends),
        Action::Redirect(_) | Action::Respond(_) => None,
    });
    for backend in of_rules.chain(table.streams.iter().map(|rule| &rule.backends)).flatten() {
        let BackendTarget::Cluster(target) = &backend.target else { continue };
        match port_key.document(name) {
            DocumentKind::Inbound => {
                compiled.inbound_requires.insert(target.namespace.clone());
            }
            _ if target.namespace != name => {
                compiled.export_requires.insert(target.namespace.clone());
            }
            _ => {}
        }
        if target.namespace != name {
            dependencies.insert(target.namespace.clone());
        }
    }
    compiled.inbound.dependencies = dependencies.into_iter().collect();
}

/// Validates a route and finds its Service ports. An error means that the whole route is rejected.
fn attach<'a>(
    world: &World,
    route: &'a Route,
    diagnostics: &mut Vec<Diagnostic>,
) -> Result<AttachedRoute<'a>, Diagnostic> {
    let spec = route
        .spec
        .as_ref()
        .map_err(|error| Diagnostic::refused(Reason::Invalid, format!("the object cannot be parsed: {error}")))?;
    let MeshRouteSpec { parent_refs, http, tls, tcp } = spec;

    let key = &route.meta.key;
    let mut unresolved = Vec::new();
    let mut note = |name: &str, found: Vec<(Reason, String)>| {
        unresolved.extend(
            found.into_iter().map(|(reason, what)| Diagnostic::unresolved(reason, format!("rule {name}: {what}"))),
        );
    };
    let refused =
        |name: &str, message: String| Diagnostic::refused(Reason::UnsupportedValue, format!("rule {name}: {message}"));
    let mut rules = Vec::new();
    for (index, rule) in http.iter().enumerate() {
        let name = rule.name.clone().unwrap_or_else(|| index.to_string());
        let mut found = Vec::new();
        let compiled = self::rule(world, key, &name, rule, &mut found);
        rules.push(compiled.map_err(|message| refused(&name, message))?);
        note(&name, found);
    }
    let mut streams = Vec::new();
    for (index, route::TlsRule { name, matches, backend_refs }) in tls.iter().enumerate() {
        let name = name.clone().unwrap_or_else(|| format!("tls-{index}"));
        let mut found = Vec::new();
        let names = value::server_names(matches).map_err(|message| refused(&name, message))?;
        let compiled = stream(world, key, &name, backend_refs, &mut found);
        streams.push((compiled.map_err(|message| refused(&name, message))?, names));
        note(&name, found);
    }
    for (index, route::TcpRule { name, backend_refs }) in tcp.iter().enumerate() {
        let name = name.clone().unwrap_or_else(|| format!("tcp-{index}"));
        let mut found = Vec::new();
        let compiled = stream(world, key, &name, backend_refs, &mut found);
        streams.push((compiled.map_err(|message| refused(&name, message))?, Vec::new()));
        note(&name, found);
    }
    if rules.is_empty() && streams.is_empty() {
        return Err(Diagnostic::refused(Reason::UnsupportedValue, "a route needs http, tls or tcp rules"));
    }
    diagnostics.append(&mut unresolved);

    let mut misses: Vec<(Reason, String)> = Vec::new();
    let mut attach = |kind: RuleKind, any: bool| {
        let mut port_keys = BTreeSet::new();
        for parent in parent_refs.iter().filter(|_| any) {
            match self::port_keys(world, &key.namespace, parent, kind) {
                Ok(found) => port_keys.extend(found),
                // Report an error that both kinds of rules have once.
                Err(miss) if misses.contains(&miss) => {}
                Err(miss) => misses.push(miss),
            }
        }
        port_keys
    };
    let http_ports = attach(RuleKind::Http, !rules.is_empty());
    let stream_ports = attach(RuleKind::Stream, !streams.is_empty());
    if http_ports.is_empty() && stream_ports.is_empty() {
        let messages: Vec<&str> = misses.iter().map(|(_, message)| message.as_str()).collect();
        let reason = misses.first().map_or(Reason::TargetNotFound, |(reason, _)| *reason);
        return Err(Diagnostic::refused(reason, messages.join("; ")));
    }
    diagnostics.extend(misses.into_iter().map(|(_, message)| Diagnostic::partial(message)));
    Ok(AttachedRoute {
        route,
        rules,
        streams,
        http_ports,
        stream_ports,
        matches: 0,
        conflicting: 0,
        conflicts: Vec::new(),
    })
}

/// The Service ports of a parentRef that rules of this kind can apply to.
fn port_keys(
    world: &World,
    own: &str,
    parent: &ParentRef,
    kind: RuleKind,
) -> Result<Vec<ServicePortKey>, (Reason, String)> {
    let ParentRef { kind: _, namespace, name, port } = parent;
    let key = Key::new(namespace.as_deref().unwrap_or(own), name);
    let service = world
        .service(&key.namespace, name)
        .ok_or_else(|| (Reason::TargetNotFound, format!("Service {key} does not exist")))?;
    if !service.has_address() {
        return Err((Reason::UnsupportedTarget, value::no_address(service)));
    }
    let fits = |protocol: Protocol| match kind {
        RuleKind::Http => protocol != Protocol::Tcp,
        RuleKind::Stream => !matches!(protocol, Protocol::Http | Protocol::Http2),
    };
    let (carries, rules) = match kind {
        RuleKind::Http => ("opaque TCP", "no HTTP rules"),
        RuleKind::Stream => ("HTTP", "no TLS or TCP rules"),
    };
    let declared = format!("declared as {carries} (by appProtocol or port name): {rules} apply to it");
    match port {
        Some(port) => {
            let found = service
                .port(*port)
                .ok_or_else(|| (Reason::TargetNotFound, format!("Service {key} has no TCP port {port}")))?;
            if !fits(found.protocol) {
                return Err((Reason::UnsupportedTarget, format!("port {port} of Service {key} is {declared}")));
            }
            Ok(vec![ServicePortKey { service: key, port: *port }])
        }
        None => {
            let ports = service.ports.iter().filter(|port| fits(port.protocol));
            let port_keys: Vec<ServicePortKey> =
                ports.map(|port| ServicePortKey { service: key.clone(), port: port.port }).collect();
            if port_keys.is_empty() {
                return Err((Reason::UnsupportedTarget, format!("every port of Service {key} is {declared}")));
            }
            Ok(port_keys)
        }
    }
}

/// The route table of one Service port: the matches of all routes in order of precedence, and their rules.
fn table(port_key: &ServicePortKey, attached: &mut [AttachedRoute<'_>]) -> RouteTable {
    // Indices: the route (sorted by age and name), its rule, the rule's match.
    let mut all: Vec<(Rank, [usize; 3])> = Vec::new();
    for (r, route) in attached.iter().enumerate().filter(|(_, route)| route.http_ports.contains(port_key)) {
        for (n, (_, matches)) in route.rules.iter().enumerate() {
            all.extend(matches.iter().enumerate().map(|(m, condition)| (precedence::rank(condition), [r, n, m])));
        }
    }
    all.sort();

    let mut table = RouteTable::default();
    let mut taken: BTreeMap<String, [usize; 2]> = BTreeMap::new();
    let mut rules: BTreeMap<[usize; 2], usize> = BTreeMap::new();
    for (_, [r, n, m]) in all {
        let (rule, matches) = &attached[r].rules[n];
        let condition = &matches[m];
        let rule_name = rule.name.clone();
        attached[r].matches += 1;
        match taken.get(&precedence::canonical(&attached[r].rules[n].1[m])) {
            None => {
                let condition = &attached[r].rules[n].1[m];
                taken.insert(precedence::canonical(condition), [r, n]);
                let index = *rules.entry([r, n]).or_insert_with(|| {
                    table.rules.push(attached[r].rules[n].0.clone());
                    table.rules.len() - 1
                });
                table.matches.push(Match { rule: index, ..condition.clone() });
            }
            Some(&[winner, winner_rule]) => {
                let what = precedence::describe(condition);
                let by = attached[winner].rules[winner_rule].0.name.clone();
                conflict(port_key, attached, [winner, r], [&by, &rule_name], &what);
            }
        }
    }
    streams(port_key, attached, &mut table);
    table
}

/// The TLS and TCP rules of one Service port.
fn streams(port_key: &ServicePortKey, attached: &mut [AttachedRoute<'_>], table: &mut RouteTable) {
    // `None` is the TCP rule. Indices: the route (sorted by age and name), its rule.
    let mut all: Vec<(Option<String>, [usize; 2])> = Vec::new();
    for (r, route) in attached.iter().enumerate().filter(|(_, route)| route.stream_ports.contains(port_key)) {
        for (n, (_, names)) in route.streams.iter().enumerate() {
            all.extend(names.iter().map(|name| (Some(name.clone()), [r, n])));
            all.extend(names.is_empty().then_some((None, [r, n])));
        }
    }
    let mut taken: BTreeMap<Option<String>, [usize; 2]> = BTreeMap::new();
    let mut indices: BTreeMap<[usize; 2], usize> = BTreeMap::new();
    for (name, [r, n]) in all {
        attached[r].matches += 1;
        if let Some(&[winner, winner_rule]) = taken.get(&name) {
            let what = name.map_or_else(|| "TCP connections".to_owned(), |name| format!("server name {name}"));
            let [by, of] = [[winner, winner_rule], [r, n]].map(|[r, n]| attached[r].streams[n].0.name.clone());
            conflict(port_key, attached, [winner, r], [&by, &of], &what);
            continue;
        }
        taken.insert(name.clone(), [r, n]);
        let rule = *indices.entry([r, n]).or_insert_with(|| {
            table.streams.push(attached[r].streams[n].0.clone());
            table.streams.len() - 1
        });
        match name {
            Some(name) => table.tls.push(ServerName { rule, name }),
            None => table.tcp = Some(rule),
        }
    }
    table.tls.sort_by_cached_key(|server| precedence::server_rank(&server.name));
}

/// Adds a diagnostic to both routes with equal matches. `rules` are the names of their rules.
fn conflict(
    port_key: &ServicePortKey,
    attached: &mut [AttachedRoute<'_>],
    [winner, loser]: [usize; 2],
    [by, of]: [&str; 2],
    what: &str,
) {
    let [winner_key, loser_key] = [winner, loser].map(|r| attached[r].route.meta.key.clone());
    attached[loser].conflicting += 1;
    if winner == loser {
        let message = format!("rule {of} at {port_key}: {what}: rule {by} of the same route matches first");
        attached[loser].conflicts.push(Diagnostic::partial(message));
    } else {
        let message = format!("rule {of} at {port_key}: {what}: MeshRoute {winner_key} (rule {by}) takes precedence");
        attached[loser].conflicts.push(Diagnostic::partial(message));
        let note = Diagnostic::note(format!("at {port_key}: {what}: takes precedence over MeshRoute {loser_key}"));
        attached[winner].conflicts.push(note);
    }
}

/// Compiles an HTTP rule. References that do not resolve are added to `unresolved`.
fn rule(
    world: &World,
    route: &Key,
    name: &str,
    rule: &HttpRule,
    unresolved: &mut Vec<(Reason, String)>,
) -> Result<(Rule, Vec<Match>), String> {
    let HttpRule { name: _, matches, filters, backend_refs, timeouts, retry, hedge } = rule;
    if matches.iter().any(matches_connect) {
        check_connect(rule)?;
    }
    let mut compiled = Rule {
        route: ObjectRef { namespace: route.namespace.clone(), name: route.name.clone() },
        name: name.to_owned(),
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
        cors: None,
        rate_limit: None,
        fault: Fault::default(),
        mirrors: Vec::new(),
        action: Action::Forward { backends: Vec::new(), rewrite: Rewrite::default() },
        request_timeout_ms: None,
        attempt_timeout_ms: None,
        retry: None,
        hedge: None,
    };
    let by_prefix = !matches.is_empty()
        && matches.iter().all(|m| m.path.as_ref().is_some_and(|path| path.kind == PathMatchType::PathPrefix));
    let mut rewrite = Rewrite::default();
    let mut answer = None;
    for filter in filters {
        match (filter.kind, &filter.request_mirror) {
            // The only filter with a reference, which may not resolve.
            (FilterType::RequestMirror, Some(mirror)) => {
                compiled.mirrors.extend(self::mirror(world, route, mirror, unresolved)?);
            }
            _ => apply_filter(filter, by_prefix, &mut compiled, &mut rewrite, &mut answer)?,
        }
    }
    if compiled.mirrors.len() > MIRRORS_MAX {
        return Err(format!("{} RequestMirror filters: at most {MIRRORS_MAX} are allowed", compiled.mirrors.len()));
    }
    compiled.action = match answer {
        Some(_) if !backend_refs.is_empty() => {
            return Err("a rule with RequestRedirect or DirectResponse has no backend: remove its backendRefs".into());
        }
        Some(_) if !compiled.mirrors.is_empty() => {
            return Err(
                "RequestMirror has no effect with RequestRedirect or DirectResponse: there is no request to copy"
                    .into(),
            );
        }
        Some(answer) => answer,
        None => {
            if backend_refs.iter().all(|backend| backend.weight == 0) {
                return Err("the weights of backendRefs sum to zero: give at least one a weight above 0".into());
            }
            let backends = backend_refs
                .iter()
                .map(|backend| self::backend(world, route, backend, RuleKind::Http, unresolved))
                .collect();
            Action::Forward { backends, rewrite }
        }
    };
    if let Some(route::Timeouts { request, backend_request }) = timeouts {
        let limit = |text: &Option<weft_crds::Duration>, field| match text {
            // 0s: no timeout.
            Some(text) => value::duration(text, field, Duration::ZERO, TIMEOUT_MAX).map(|ms| (ms > 0).then_some(ms)),
            None => Ok(None),
        };
        compiled.request_timeout_ms = limit(request, "timeouts.request")?;
        compiled.attempt_timeout_ms = limit(backend_request, "timeouts.backendRequest")?;
    }
    compiled.retry = retry.as_ref().map(self::retry).transpose()?;
    compiled.hedge = hedge.as_ref().map(|hedge| self::hedge(hedge, &compiled)).transpose()?;
    let matches = if matches.is_empty() {
        vec![Match::default()]
    } else {
        matches.iter().map(condition).collect::<Result<_, _>>()?
    };
    Ok((compiled, matches))
}

fn matches_connect(condition: &route::HttpMatch) -> bool {
    condition.method == Some(route::Method::Connect)
}

/// Rejects fields that do not apply to a CONNECT tunnel.
fn check_connect(rule: &HttpRule) -> Result<(), String> {
    let HttpRule { name: _, matches, filters, backend_refs: _, timeouts, retry, hedge } = rule;
    if !matches.iter().all(matches_connect) {
        return Err(
            "a rule that matches CONNECT cannot match other methods: move its other matches to another rule".into()
        );
    }
    if matches.iter().any(|condition| condition.path.is_some() || !condition.query_params.is_empty()) {
        return Err("CONNECT requests have no path and no query: match them by headers".into());
    }
    let is_allowed = |filter: &&route::HttpFilter| {
        matches!(filter.kind, FilterType::ResponseHeaderModifier | FilterType::RateLimit | FilterType::Fault)
    };
    if let Some(other) = filters.iter().find(|filter| !is_allowed(filter)) {
        let allowed = "only ResponseHeaderModifier, RateLimit and Fault are allowed";
        return Err(format!("a rule that matches CONNECT cannot have a filter of type {:?}: {allowed}", other.kind));
    }
    let field = match timeouts {
        _ if retry.is_some() => Some("retry"),
        _ if hedge.is_some() => Some("hedge"),
        Some(route::Timeouts { request: _, backend_request: Some(_) }) => Some("timeouts.backendRequest"),
        _ => None,
    };
    match field {
        None => Ok(()),
        Some(field) => Err(format!(
            "a rule that matches CONNECT cannot have {field}: other pods are tried anyway; set connect.timeout in the \
             MeshCluster to limit connection attempts"
        )),
    }
}

fn apply_filter(
    filter: &route::HttpFilter,
    by_prefix: bool,
    rule: &mut Rule,
    rewrite: &mut Rewrite,
    answer: &mut Option<Action>,
) -> Result<(), String> {
    let route::HttpFilter {
        kind,
        request_header_modifier,
        response_header_modifier,
        request_redirect,
        url_rewrite,
        direct_response,
        cors,
        fault,
        request_mirror: _,
        rate_limit,
    } = filter;
    let needed = || format!("a filter of type {kind:?} requires the field of that name");
    match kind {
        FilterType::RequestHeaderModifier => {
            rule.request_headers = value::header_edit(request_header_modifier.as_ref().ok_or_else(needed)?)?;
        }
        FilterType::ResponseHeaderModifier => {
            rule.response_headers = value::header_edit(response_header_modifier.as_ref().ok_or_else(needed)?)?;
        }
        FilterType::UrlRewrite => {
            let route::UrlRewrite { hostname, path } = url_rewrite.as_ref().ok_or_else(needed)?;
            let path = path.as_ref().map(|path| path_rewrite(path, by_prefix)).transpose()?;
            *rewrite = Rewrite { hostname: hostname.clone(), path };
        }
        FilterType::RequestRedirect => {
            let route::RequestRedirect { scheme, hostname, path, port, status_code } =
                request_redirect.as_ref().ok_or_else(needed)?;
            let scheme = scheme.map(|scheme| match scheme {
                Scheme::Http => "http".to_owned(),
                Scheme::Https => "https".to_owned(),
            });
            let path = path.as_ref().map(|path| path_rewrite(path, by_prefix)).transpose()?;
            let redirect = Redirect { scheme, hostname: hostname.clone(), port: *port, path, status: *status_code };
            set_answer(answer, Action::Redirect(redirect))?;
        }
        FilterType::DirectResponse => {
            let route::DirectResponse { status, body } = direct_response.as_ref().ok_or_else(needed)?;
            set_answer(answer, Action::Respond(Respond { status: *status, body: body.clone() }))?;
        }
        FilterType::Cors => rule.cors = Some(value::cors(cors.as_ref().ok_or_else(needed)?)?),
        FilterType::Fault => rule.fault = self::fault(fault.as_ref().ok_or_else(needed)?)?,
        FilterType::RequestMirror => return Err(needed()),
        FilterType::RateLimit => rule.rate_limit = Some(self::rate_limit(rate_limit.as_ref().ok_or_else(needed)?)?),
    }
    Ok(())
}

/// Compiles a TLS or TCP rule.
fn stream(
    world: &World,
    route: &Key,
    name: &str,
    backend_refs: &[route::BackendRef],
    unresolved: &mut Vec<(Reason, String)>,
) -> Result<StreamRule, String> {
    if backend_refs.iter().all(|backend| backend.weight == 0) {
        return Err("the weights of backendRefs sum to zero: give at least one a weight above 0".into());
    }
    let backend = |backend| self::backend(world, route, backend, RuleKind::Stream, unresolved);
    Ok(StreamRule {
        route: ObjectRef { namespace: route.namespace.clone(), name: route.name.clone() },
        name: name.to_owned(),
        backends: backend_refs.iter().map(backend).collect(),
    })
}

fn rate_limit(limit: &route::RateLimit) -> Result<RateLimit, String> {
    let route::RateLimit { requests, per, burst, key } = limit;
    let burst = burst.unwrap_or(*requests);
    for (field, count) in [("requests", *requests), ("burst", burst)] {
        if !(1..=RATE_MAX).contains(&count) {
            return Err(format!("rateLimit.{field}: {count} is not between 1 and {RATE_MAX}"));
        }
    }
    let per_ms = value::duration(per, "rateLimit.per", PER_MIN, PER_MAX)?;
    let key = key.as_ref().map(value::rate_limit_key).transpose()?;
    Ok(RateLimit { requests: *requests, per_ms, burst, key })
}

fn fault(fault: &route::Fault) -> Result<Fault, String> {
    let route::Fault { delay, abort } = fault;
    let read_delay = |delay: &route::FaultDelay| -> Result<FaultDelay, String> {
        let route::FaultDelay { duration, percent, fraction } = delay;
        let duration_ms = value::duration(duration, "fault.delay.duration", DELAY_MIN, DELAY_MAX)?;
        Ok(FaultDelay { duration_ms, share: value::fraction(*percent, fraction.as_ref())? })
    };
    let read_abort = |abort: &route::FaultAbort| -> Result<FaultAbort, String> {
        let route::FaultAbort { status, percent, fraction } = abort;
        if !(400..600).contains(status) {
            return Err(format!("fault.abort.status: {status} is not between 400 and 599"));
        }
        Ok(FaultAbort { status: *status, share: value::fraction(*percent, fraction.as_ref())? })
    };
    Ok(Fault { delay: delay.as_ref().map(read_delay).transpose()?, abort: abort.as_ref().map(read_abort).transpose()? })
}

fn set_answer(answer: &mut Option<Action>, action: Action) -> Result<(), String> {
    match answer.replace(action) {
        None => Ok(()),
        Some(_) => Err("RequestRedirect and DirectResponse cannot be combined".into()),
    }
}

fn path_rewrite(path: &route::PathModifier, by_prefix: bool) -> Result<PathRewrite, String> {
    let route::PathModifier { kind, replace_full_path, replace_prefix_match } = path;
    let needed = || format!("a path modifier of type {kind:?} requires the field of that name");
    match kind {
        PathModifierType::ReplaceFullPath => Ok(PathRewrite::Full(replace_full_path.clone().ok_or_else(needed)?)),
        PathModifierType::ReplacePrefixMatch if !by_prefix => {
            Err("ReplacePrefixMatch needs a PathPrefix in every match of the rule".into())
        }
        PathModifierType::ReplacePrefixMatch => {
            Ok(PathRewrite::Prefix(replace_prefix_match.clone().ok_or_else(needed)?))
        }
    }
}

fn retry(retry: &route::Retry) -> Result<Retry, String> {
    let route::Retry { attempts, codes, methods, backoff } = retry;
    if !(1..=ATTEMPTS_MAX).contains(attempts) {
        return Err(format!("retry.attempts: {attempts} is not between 1 and {ATTEMPTS_MAX}"));
    }
    Ok(Retry {
        attempts: *attempts,
        codes: codes.clone(),
        methods: methods.iter().map(|method| value::method(*method)).collect(),
        backoff_ms: value::duration(backoff, "retry.backoff", BACKOFF_MIN, BACKOFF_MAX)?,
    })
}

/// `rule` has its timeouts already.
fn hedge(hedge: &route::Hedge, rule: &Rule) -> Result<Hedge, String> {
    let route::Hedge { after, attempts } = hedge;
    if matches!(rule.action, Action::Redirect(_) | Action::Respond(_)) {
        return Err("hedge has no effect with RequestRedirect or DirectResponse: remove it".into());
    }
    if !(1..=HEDGES_MAX).contains(attempts) {
        return Err(format!("hedge.attempts: {attempts} is not between 1 and {HEDGES_MAX}"));
    }
    let after_ms = value::duration(after, "hedge.after", AFTER_MIN, AFTER_MAX)?;
    for (field, limit) in
        [("timeouts.request", rule.request_timeout_ms), ("timeouts.backendRequest", rule.attempt_timeout_ms)]
    {
        if limit.is_some_and(|limit| limit <= after_ms) {
            return Err(format!("hedge.after must be shorter than {field}: no hedged request would be sent"));
        }
    }
    Ok(Hedge { after_ms, attempts: *attempts })
}

fn condition(condition: &route::HttpMatch) -> Result<Match, String> {
    let route::HttpMatch { path, headers, query_params, method } = condition;
    let headers = headers.iter().map(value::header).collect::<Result<_, _>>()?;
    let query = query_params.iter().map(value::query).collect::<Result<_, _>>()?;
    Ok(Match {
        rule: 0,
        path: path.as_ref().map(value::path).transpose()?,
        method: method.map(value::method),
        headers: value::first_of_each(headers),
        query: value::first_of_each(query),
    })
}

/// A weighted backend. If its reference does not resolve, only its share of requests fails.
fn backend(
    world: &World,
    route: &Key,
    backend: &route::BackendRef,
    kind: RuleKind,
    unresolved: &mut Vec<(Reason, String)>,
) -> Backend {
    let route::BackendRef { kind: _, namespace, name, port, subset, weight } = backend;
    let key = Key::new(namespace.as_deref().unwrap_or(&route.namespace), name);
    let (while_missing, while_empty) = match kind {
        RuleKind::Http => ("requests to it are answered 500", "requests to it are answered 503"),
        RuleKind::Stream => ("connections to it are closed", "connections to it are closed"),
    };
    let target = match resolve(world, &key, *port, subset.as_deref(), while_empty, unresolved) {
        Ok(target) => BackendTarget::Cluster(target),
        Err((reason, message)) => {
            unresolved.push((reason, format!("{message}: {while_missing}")));
            BackendTarget::Invalid(message)
        }
    };
    Backend { weight: *weight, target }
}

/// The mirror filter. `None` if its reference does not resolve: requests must not fail because of it.
fn mirror(
    world: &World,
    route: &Key,
    mirror: &route::RequestMirror,
    unresolved: &mut Vec<(Reason, String)>,
) -> Result<Option<Mirror>, String> {
    let route::RequestMirror { backend_ref, percent, fraction, host_suffix } = mirror;
    let route::MirrorRef { kind: _, namespace, name, port, subset } = backend_ref;
    let share = value::fraction(*percent, fraction.as_ref())?;
    let key = Key::new(namespace.as_deref().unwrap_or(&route.namespace), name);
    match resolve(world, &key, *port, subset.as_deref(), "nothing is mirrored to it", unresolved) {
        Ok(target) => Ok(Some(Mirror { target, share, host_suffix: host_suffix.clone() })),
        Err((reason, message)) => {
            unresolved.push((reason, format!("{message}: nothing is mirrored to it")));
            Ok(None)
        }
    }
}

/// The cluster of a backend reference. `while_empty` is the message's text on what happens while the subset has no
/// pod.
fn resolve(
    world: &World,
    key: &Key,
    port: u16,
    subset: Option<&str>,
    while_empty: &str,
    unresolved: &mut Vec<(Reason, String)>,
) -> Result<ClusterRef, (Reason, String)> {
    let missing = |message: String| (Reason::BackendNotFound, message);
    let (Some(namespace), Some(service)) = (world.namespace(&key.namespace), world.service(&key.namespace, &key.name))
    else {
        return Err(missing(format!("Service {key} does not exist")));
    };
    check_backend(service, port).map_err(missing)?;
    let found = |subset: Option<&str>| ClusterRef {
        namespace: key.namespace.clone(),
        service: key.name.clone(),
        port,
        subset: subset.map(str::to_owned),
    };
    let Some(subset) = subset else { return Ok(found(None)) };
    let declared =
        cluster::governing(namespace, &key.name).filter(|spec| spec.subsets.iter().any(|s| s.name == subset));
    match declared {
        None => {
            Err((Reason::SubsetNotFound, format!("no accepted MeshCluster declares subset {subset} of Service {key}")))
        }
        Some(spec) => {
            if !cluster::is_populated(namespace, service, spec, subset) {
                let message = format!("subset {subset} of Service {key} has no ready pod: {while_empty}");
                unresolved.push((Reason::SubsetNotFound, message));
            }
            Ok(found(Some(subset)))
        }
    }
}

fn check_backend(service: &Service, port: u16) -> Result<(), String> {
    if !service.has_address() {
        return Err(value::no_address(service));
    }
    match service.port(port) {
        Some(_) => Ok(()),
        None => Err(format!("Service {} has no TCP port {port}", service.key)),
    }
}

fn id(route: &Route) -> ObjectId {
    ObjectId { kind: Kind::Route, key: route.meta.key.clone() }
}

// === impl AttachedRoute ===

impl AttachedRoute<'_> {
    fn port_keys(&self) -> impl Iterator<Item = &ServicePortKey> {
        self.http_ports.union(&self.stream_ports)
    }
}

// === impl ServicePortKey ===

impl ServicePortKey {
    pub(super) fn new(namespace: &str, service: &str, port: u16) -> Self {
        Self { service: Key::new(namespace, service), port }
    }

    /// The document that its route table is part of, for routes of namespace `own`.
    fn document(&self, own: &str) -> DocumentKind {
        if self.service.namespace == own { DocumentKind::Export } else { DocumentKind::Inbound }
    }

    /// The consumer routes of the private document.
    pub(super) fn consumer(self, table: RouteTable) -> ConsumerRoutes {
        let service = ObjectRef { namespace: self.service.namespace, name: self.service.name };
        ConsumerRoutes { service, port: self.port, table }
    }
}

impl std::fmt::Display for ServicePortKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Service {} port {}", self.service, self.port)
    }
}
