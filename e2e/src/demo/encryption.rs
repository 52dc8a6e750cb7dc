//! Which requests of the shop were encrypted, as the proxies of both sides count them.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::kubectl::Kubectl;
use crate::metrics::Metrics;
use crate::page::Traffic;
use crate::progress::say;
use crate::table;

/// Requests that the proxies of the shop's pods have counted: sent, by Service, and received. Of those that a proxy
/// answered by itself, as after a timeout, it does not know the connection; the other side counts them, if they came there.
pub(super) fn counted(shop: &Kubectl) -> Result<Vec<Traffic>> {
    let mut counts = BTreeMap::<(bool, String, Option<String>), [f64; 2]>::new();
    for pod in shop.list("pods", "app")? {
        let text = |path: &str| pod.pointer(path).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        let metrics = Metrics::parse(&shop.pod_get(&text("/metadata/name"), 15020, "metrics")?);
        for sample in metrics.0.iter().filter(|sample| sample.name == "weft_requests_total") {
            let label = |label: &str| sample.labels.get(label).map(String::as_str).unwrap_or_default();
            if label("security").is_empty() {
                continue;
            }
            let is_received = label("direction") == "inbound";
            let service = label("service").split(['/', ':']).nth(1).filter(|_| !is_received).map(str::to_owned);
            let count = counts.entry((is_received, text("/metadata/labels/app"), service)).or_default();
            count[0] += sample.value;
            count[1] += if label("security") == "mtls" { sample.value } else { 0.0 };
        }
    }
    let traffic = counts.into_iter().map(|((_, app, service), [requests, encrypted])| Traffic {
        app,
        service,
        requests: requests as usize,
        encrypted: encrypted as usize,
    });
    Ok(traffic.collect())
}

/// What was counted since `before`, without those that sent or received nothing.
pub(super) fn since(before: &[Traffic], mut after: Vec<Traffic>) -> Vec<Traffic> {
    for traffic in &mut after {
        let is_same = |old: &&Traffic| old.app == traffic.app && old.service == traffic.service;
        if let Some(old) = before.iter().find(is_same) {
            traffic.requests = traffic.requests.saturating_sub(old.requests);
            traffic.encrypted = traffic.encrypted.saturating_sub(old.encrypted);
        }
    }
    after.retain(|traffic| traffic.requests > 0);
    after
}

/// Prints which requests were encrypted; returns those that were not.
pub(super) fn report(traffic: &[Traffic]) -> Vec<String> {
    let mut rows = vec![["app", "requests", "", "encrypted"].map(str::to_owned).to_vec()];
    let mut failures = Vec::new();
    for Traffic { app, service, requests, encrypted } in traffic {
        let what = service.as_ref().map_or_else(|| "received".to_owned(), |service| format!("sent to {service}"));
        if requests != encrypted {
            failures.push(format!("{app}: {encrypted} of {requests} requests {what} were encrypted"));
        }
        rows.push(vec![app.clone(), what, requests.to_string(), encrypted.to_string()]);
    }
    say(&format!("\nRequests, as the proxies of both sides counted them\n{}", table::text(&rows)));
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(requests: usize, encrypted: usize) -> Traffic {
        Traffic { app: "client".to_owned(), service: Some("reviews".to_owned()), requests, encrypted }
    }

    #[test]
    fn only_requests_since_the_start_are_reported() {
        assert_eq!(since(&[sent(10, 0)], vec![sent(30, 20)]), [sent(20, 20)]);
        assert_eq!(since(&[], vec![sent(30, 20)]), [sent(30, 20)], "a pod that is new");
        assert_eq!(since(&[sent(10, 0)], vec![sent(10, 0)]), []);
    }

    #[test]
    fn requests_in_plaintext_are_failures() {
        assert_eq!(report(&[sent(30, 30)]), Vec::<String>::new());
        assert_eq!(report(&[sent(30, 29)]), ["client: 29 of 30 requests sent to reviews were encrypted"]);
    }
}
