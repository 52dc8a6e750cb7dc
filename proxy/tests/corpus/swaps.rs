//! Requests while the configuration changes. `table::store` has the matching unit test, with ten thousand documents.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::app::App;
use super::client::Client;
use super::place::{Direction, Proxy, exported, in_namespace};

/// Routes are added, changed and removed every 50 ms, and no request fails, is lost or is sent twice.
#[test]
fn route_changes_under_load_fail_no_request() {
    in_namespace(module_path!(), "route_changes_under_load_fail_no_request", || {
        let app = App::start();
        let proxy = Proxy::start();
        let stop = Arc::new(AtomicBool::new(false));
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let stop = stop.clone();
                thread::spawn(move || {
                    let mut client = Client::connect(Direction::Outbound.address());
                    let mut sent = 0;
                    while !stop.load(Ordering::SeqCst) {
                        client.send(format!("GET /a/{worker} HTTP/1.1\r\nHost: app\r\n\r\n"));
                        let response = client.response().unwrap_or_else(|error| panic!("{sent}: {error:?}"));
                        // Routed by the old or the new configuration.
                        let body = String::from_utf8_lossy(&response.body).into_owned();
                        assert!(
                            response.status == 200
                                && [format!("GET /a/{worker}"), format!("GET /b/{worker}")].contains(&body),
                            "{sent}: {response:?}"
                        );
                        sent += 1;
                    }
                    sent
                })
            })
            .collect();
        let begun = Instant::now();
        let mut changes = 0;
        while begun.elapsed() < Duration::from_secs(8) {
            let backend =
                json!([{"weight": 1, "target": {"cluster": {"namespace": "shop", "service": "app", "port": 80}}}]);
            let routes = json!({
                "matches": [{"rule": 0, "path": {"prefix": "/a"}}],
                "rules": [{"route": {"namespace": "shop", "name": format!("r{changes}")}, "name": "0", "action": {"forward": {"backends": backend, "rewrite": {"path": {"prefix": "/b"}}}}}]
            });
            proxy.export(&exported(
                json!({"connectTimeoutMs": 1000 + changes}),
                (changes % 3 != 0).then_some(routes),
                false,
            ));
            changes += 1;
            thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::SeqCst);
        let sent: u32 = workers.into_iter().map(|worker| worker.join().expect("no request failed")).sum();
        eprintln!("{sent} requests over {changes} changes of the file");
        assert!(sent > 1_000);
        assert_eq!(app.violations(), [""; 0]);
        let seen = app.take();
        assert_eq!(seen.len() as u32, sent, "no request was sent twice or lost");
        assert!(
            seen.iter().any(|seen| seen.target.starts_with("/b"))
                && seen.iter().any(|seen| seen.target.starts_with("/a")),
            "both configurations were used"
        );
    });
}
