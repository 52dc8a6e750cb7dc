//! MeshRoutes: where they are attached, what they say, and who wins where two say something about the same request.

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

use super::diagnostic::{Diagnostic, Kind, ObjectId};
use super::precedence::{self, Rank, seniority};
use super::{Compiled, cluster, value};
use crate::world::{DocumentKind, Key, Namespace, Route, Service, World};

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

/// A port of a Service that routes are attached to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    service: Key,
    port: u16,
}

/// A route that could be in force.
struct Attached<'a> {
    route: &'a Route,
    rules: Vec<(Rule, Vec<Match>)>,
    /// With the names that lead to them; none for the one that takes all other connections.
    streams: Vec<(StreamRule, Vec<String>)>,
    /// Where its rules for HTTP are held against requests, and its others against connections.
    http_places: BTreeSet<Place>,
    stream_places: BTreeSet<Place>,
    /// Matches at all places, and how many of them another route took.
    matches: usize,
    lost: usize,
    conflicts: Vec<Diagnostic>,
}

/// What rules are held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speech {
    Http,
    Bytes,
}

/// What becomes of the share of a backend that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    Answered,
    Closed,
}

/// The tables of all Service ports that the namespace's routes govern: of its own Services, and of others' for its own
/// clients.
pub(super) fn compile(
    world: &World,
    name: &str,
    namespace: &Namespace,
    compiled: &mut Compiled,
) -> BTreeMap<Place, RouteTable> {
    let mut routes: Vec<&Route> = namespace.routes.values().collect();
    routes.sort_by_key(|route| seniority(&route.meta));

    let mut attached = Vec::new();
    for route in routes {
        let outcome = compiled.objects.entry(id(route)).or_default();
        match attach(world, route, &mut outcome.diagnostics) {
            Ok(found) => attached.push(found),
            Err(refused) => outcome.diagnostics.push(refused),
        }
    }
    let places: BTreeSet<Place> = attached.iter().flat_map(Attached::places).cloned().collect();
    let tables: BTreeMap<Place, RouteTable> = places
        .into_iter()
        .map(|place| (place.clone(), table(&place, &mut attached)))
        .filter(|(_, t)| !t.matches.is_empty() || !t.streams.is_empty())
        .collect();

    for attached in attached {
        let documents: BTreeSet<DocumentKind> = attached.places().map(|place| place.document(name)).collect();
        let Attached { route, matches, lost, conflicts, .. } = attached;
        let outcome = compiled.objects.entry(id(route)).or_default();
        if lost == matches {
            // Nothing of it is left, so nothing else is worth saying.
            let messages: Vec<&str> = conflicts.iter().map(|conflict| conflict.message.as_str()).collect();
            outcome.diagnostics = vec![Diagnostic::refused(Reason::Conflicted, messages.join("; "))];
            continue;
        }
        outcome.diagnostics.extend(conflicts);
        outcome.documents.extend(documents);
    }
    for (place, table) in &tables {
        require(name, place, table, compiled);
    }
    tables
}

/// Notes what the namespace needs of others.
fn require(name: &str, place: &Place, table: &RouteTable, compiled: &mut Compiled) {
    let mut dependencies: BTreeSet<String> = compiled.inbound.dependencies.drain(..).collect();
    if place.service.namespace != name {
        dependencies.insert(place.service.namespace.clone());
    }
    // Copies may be lost for a moment, so nothing waits for the namespaces that they go to.
    let mirrors = table.rules.iter().flat_map(|rule| &rule.mirrors).map(|mirror| &mirror.target.namespace);
    dependencies.extend(mirrors.filter(|namespace| *namespace != name).cloned());
    let of_rules = table.rules.iter().filter_map(|rule| match &rule.action {
        Action::Forward { backends, .. } => Some(backends),
        Action::Redirect(_) | Action::Respond(_) => None,
    });
    for backend in of_rules.chain(table.streams.iter().map(|rule| &rule.backends)).flatten() {
        let BackendTarget::Cluster(target) = &backend.target else { continue };
        match place.document(name) {
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

/// Reads a route and finds its places. An error means that none of it is in force.
fn attach<'a>(world: &World, route: &'a Route, diagnostics: &mut Vec<Diagnostic>) -> Result<Attached<'a>, Diagnostic> {
    let spec = route
        .spec
        .as_ref()
        .map_err(|error| Diagnostic::refused(Reason::Invalid, format!("the object cannot be read: {error}")))?;
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
    let mut attach = |speech: Speech, any: bool| {
        let mut places = BTreeSet::new();
        for parent in parent_refs.iter().filter(|_| any) {
            match self::places(world, &key.namespace, parent, speech) {
                Ok(found) => places.extend(found),
                // What is missing is missing for both kinds of rules.
                Err(miss) if misses.contains(&miss) => {}
                Err(miss) => misses.push(miss),
            }
        }
        places
    };
    let http_places = attach(Speech::Http, !rules.is_empty());
    let stream_places = attach(Speech::Bytes, !streams.is_empty());
    if http_places.is_empty() && stream_places.is_empty() {
        let messages: Vec<&str> = misses.iter().map(|(_, message)| message.as_str()).collect();
        let reason = misses.first().map_or(Reason::TargetNotFound, |(reason, _)| *reason);
        return Err(Diagnostic::refused(reason, messages.join("; ")));
    }
    diagnostics.extend(misses.into_iter().map(|(_, message)| Diagnostic::partial(message)));
    Ok(Attached { route, rules, streams, http_places, stream_places, matches: 0, lost: 0, conflicts: Vec::new() })
}

/// The ports that a parentRef means, as far as rules of this kind can be held against them.
fn places(world: &World, own: &str, parent: &ParentRef, speech: Speech) -> Result<Vec<Place>, (Reason, String)> {
    let ParentRef { kind: _, namespace, name, port } = parent;
    let key = Key::new(namespace.as_deref().unwrap_or(own), name);
    let service = world
        .service(&key.namespace, name)
        .ok_or_else(|| (Reason::TargetNotFound, format!("Service {key} does not exist")))?;
    if !service.has_address() {
        return Err((Reason::UnsupportedTarget, value::no_address(service)));
    }
    let fits = |protocol: Protocol| match speech {
        Speech::Http => protocol != Protocol::Tcp,
        Speech::Bytes => !matches!(protocol, Protocol::Http | Protocol::Http2),
    };
    let (carries, rules) = match speech {
        Speech::Http => ("opaque TCP", "no HTTP rule"),
        Speech::Bytes => ("HTTP", "no TLS or TCP rule"),
    };
    let declared = format!("declared to carry {carries} (by its appProtocol or name): {rules} can be held against it");
    match port {
        Some(port) => {
            let found = service
                .port(*port)
                .ok_or_else(|| (Reason::TargetNotFound, format!("Service {key} has no TCP port {port}")))?;
            if !fits(found.protocol) {
                return Err((Reason::UnsupportedTarget, format!("port {port} of Service {key} is {declared}")));
            }
            Ok(vec![Place { service: key, port: *port }])
        }
        None => {
            let ports = service.ports.iter().filter(|port| fits(port.protocol));
            let places: Vec<Place> = ports.map(|port| Place { service: key.clone(), port: port.port }).collect();
            if places.is_empty() {
                return Err((Reason::UnsupportedTarget, format!("every port of Service {key} is {declared}")));
            }
            Ok(places)
        }
    }
}

/// All matches of all routes at one place, in order of precedence, and the rules that are left.
fn table(place: &Place, attached: &mut [Attached<'_>]) -> RouteTable {
    // Indices stand for: the route (they are in order of age and name), its rule, the rule's match.
    let mut all: Vec<(Rank, [usize; 3])> = Vec::new();
    for (r, route) in attached.iter().enumerate().filter(|(_, route)| route.http_places.contains(place)) {
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
        match taken.get(&precedence::text(&attached[r].rules[n].1[m])) {
            None => {
                let condition = &attached[r].rules[n].1[m];
                taken.insert(precedence::text(condition), [r, n]);
                let index = *rules.entry([r, n]).or_insert_with(|| {
                    table.rules.push(attached[r].rules[n].0.clone());
                    table.rules.len() - 1
                });
                table.matches.push(Match { rule: index, ..condition.clone() });
            }
            Some(&[winner, winner_rule]) => {
                let what = precedence::describe(condition);
                let by = attached[winner].rules[winner_rule].0.name.clone();
                conflict(place, attached, [winner, r], [&by, &rule_name], &what);
            }
        }
    }
    streams(place, attached, &mut table);
    table
}

/// The rules for connections at one place: by the name asked for, and for all others.
fn streams(place: &Place, attached: &mut [Attached<'_>], table: &mut RouteTable) {
    // None stands for all other connections. Indices stand for: the route (they are in order of age and name), its rule.
    let mut all: Vec<(Option<String>, [usize; 2])> = Vec::new();
    for (r, route) in attached.iter().enumerate().filter(|(_, route)| route.stream_places.contains(place)) {
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
            let what = name.map_or_else(|| "connections of bytes".to_owned(), |name| format!("server name {name}"));
            let [by, of] = [[winner, winner_rule], [r, n]].map(|[r, n]| attached[r].streams[n].0.name.clone());
            conflict(place, attached, [winner, r], [&by, &of], &what);
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

/// Tells two routes of which the one came first. `rules` are the names of theirs.
fn conflict(
    place: &Place,
    attached: &mut [Attached<'_>],
    [winner, loser]: [usize; 2],
    [by, of]: [&str; 2],
    what: &str,
) {
    let [winner_key, loser_key] = [winner, loser].map(|r| attached[r].route.meta.key.clone());
    attached[loser].lost += 1;
    if winner == loser {
        let told = format!("rule {of} at {place}: {what}: rule {by} takes it before");
        attached[loser].conflicts.push(Diagnostic::partial(told));
    } else {
        let told = format!("rule {of} at {place}: {what}: MeshRoute {winner_key} (rule {by}) came first");
        attached[loser].conflicts.push(Diagnostic::partial(told));
        let note = Diagnostic::note(format!("at {place}: {what}: takes precedence over MeshRoute {loser_key}"));
        attached[winner].conflicts.push(note);
    }
}

/// One rule. `unresolved` takes what it names that is not there.
fn rule(
    world: &World,
    route: &Key,
    name: &str,
    rule: &HttpRule,
    unresolved: &mut Vec<(Reason, String)>,
) -> Result<(Rule, Vec<Match>), String> {
    let HttpRule { name: _, matches, filters, backend_refs, timeouts, retry, hedge } = rule;
    if matches.iter().any(takes_connect) {
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
            // Alone among filters it names an object, which may not be there.
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
        Some(_) if !backend_refs.is_empty() => return Err("it answers by itself and has backendRefs too".into()),
        Some(_) if !compiled.mirrors.is_empty() => {
            return Err("it answers by itself: RequestMirror has no request to copy".into());
        }
        Some(answer) => answer,
        None => {
            if backend_refs.iter().all(|backend| backend.weight == 0) {
                return Err("the weights of backendRefs sum to zero".into());
            }
            let backends = backend_refs
                .iter()
                .map(|backend| self::backend(world, route, backend, Share::Answered, unresolved))
                .collect();
            Action::Forward { backends, rewrite }
        }
    };
    if let Some(route::Timeouts { request, backend_request }) = timeouts {
        let limit = |text: &Option<weft_crds::Duration>, field| match text {
            // 0s says: no limit.
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

fn takes_connect(condition: &route::HttpMatch) -> bool {
    condition.method == Some(route::Method::Connect)
}

/// Refuses what means nothing to a tunnel.
fn check_connect(rule: &HttpRule) -> Result<(), String> {
    let HttpRule { name: _, matches, filters, backend_refs: _, timeouts, retry, hedge } = rule;
    if !matches.iter().all(takes_connect) {
        return Err("it takes CONNECT, and so nothing else: put its other matches into a rule of their own".into());
    }
    if matches.iter().any(|condition| condition.path.is_some() || !condition.query_params.is_empty()) {
        return Err("a CONNECT has neither path nor query: match it by headers".into());
    }
    let means_something = |filter: &&route::HttpFilter| {
        matches!(filter.kind, FilterType::ResponseHeaderModifier | FilterType::RateLimit | FilterType::Fault)
    };
    if let Some(other) = filters.iter().find(|filter| !means_something(filter)) {
        let allowed = "only ResponseHeaderModifier, RateLimit and Fault are allowed";
        return Err(format!("it takes CONNECT and has a filter of type {:?}: {allowed}", other.kind));
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
            "it takes CONNECT and has {field}: remove it: other pods are tried anyway, and connect.timeout in the MeshCluster \
             bounds each connection"
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
    let needed = || format!("a filter of type {kind:?} does not have the field that its type names");
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

/// A rule for connections.
fn stream(
    world: &World,
    route: &Key,
    name: &str,
    backend_refs: &[route::BackendRef],
    unresolved: &mut Vec<(Reason, String)>,
) -> Result<StreamRule, String> {
    if backend_refs.iter().all(|backend| backend.weight == 0) {
        return Err("the weights of backendRefs sum to zero".into());
    }
    let backend = |backend| self::backend(world, route, backend, Share::Closed, unresolved);
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
        Some(_) => Err("it answers in two ways".into()),
    }
}

fn path_rewrite(path: &route::PathModifier, by_prefix: bool) -> Result<PathRewrite, String> {
    let route::PathModifier { kind, replace_full_path, replace_prefix_match } = path;
    let needed = || format!("a path modifier of type {kind:?} does not have the field that its type names");
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

/// Timeouts are compiled already.
fn hedge(hedge: &route::Hedge, rule: &Rule) -> Result<Hedge, String> {
    let route::Hedge { after, attempts } = hedge;
    if matches!(rule.action, Action::Redirect(_) | Action::Respond(_)) {
        return Err("it answers by itself: hedge has no request to send".into());
    }
    if !(1..=HEDGES_MAX).contains(attempts) {
        return Err(format!("hedge.attempts: {attempts} is not between 1 and {HEDGES_MAX}"));
    }
    let after_ms = value::duration(after, "hedge.after", AFTER_MIN, AFTER_MAX)?;
    for (field, limit) in
        [("timeouts.request", rule.request_timeout_ms), ("timeouts.backendRequest", rule.attempt_timeout_ms)]
    {
        if limit.is_some_and(|limit| limit <= after_ms) {
            return Err(format!("hedge.after is not shorter than {field}: no other pod would be asked"));
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

/// Where a share goes. What is not there costs its share alone.
fn backend(
    world: &World,
    route: &Key,
    backend: &route::BackendRef,
    share: Share,
    unresolved: &mut Vec<(Reason, String)>,
) -> Backend {
    let route::BackendRef { kind: _, namespace, name, port, subset, weight } = backend;
    let key = Key::new(namespace.as_deref().unwrap_or(&route.namespace), name);
    let (while_missing, while_empty) = match share {
        Share::Answered => ("its share is answered 500", "its share is answered 503"),
        Share::Closed => ("its share is closed", "its share is closed"),
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

/// Where copies go. Nowhere, if that is not there: the requests themselves are not to feel it.
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
    match resolve(world, &key, *port, subset.as_deref(), "nothing is mirrored there", unresolved) {
        Ok(target) => Ok(Some(Mirror { target, share, host_suffix: host_suffix.clone() })),
        Err((reason, message)) => {
            unresolved.push((reason, format!("{message}: nothing is mirrored there")));
            Ok(None)
        }
    }
}

/// The cluster that a reference means. `while_empty` says what follows while the subset has no pod.
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
            Err((Reason::SubsetNotFound, format!("no MeshCluster in force declares subset {subset} of Service {key}")))
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

// === impl Attached ===

impl Attached<'_> {
    fn places(&self) -> impl Iterator<Item = &Place> {
        self.http_places.union(&self.stream_places)
    }
}

// === impl Place ===

impl Place {
    pub(super) fn new(namespace: &str, service: &str, port: u16) -> Self {
        Self { service: Key::new(namespace, service), port }
    }

    /// The document that its table goes into, as a namespace that has routes for it sees it.
    fn document(&self, own: &str) -> DocumentKind {
        if self.service.namespace == own { DocumentKind::Export } else { DocumentKind::Inbound }
    }

    /// The table as it stands in the private document.
    pub(super) fn consumer(self, table: RouteTable) -> ConsumerRoutes {
        let service = ObjectRef { namespace: self.service.namespace, name: self.service.name };
        ConsumerRoutes { service, port: self.port, table }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Service {} port {}", self.service, self.port)
    }
}
