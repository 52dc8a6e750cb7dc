//! Paths, hosts, methods and headers that a policy and an application could read differently.

use std::time::Duration;

use serde_json::json;

use super::app::{After, App, Reply};
use super::client::{Client, get};
use super::frames::{END_HEADERS, END_STREAM, End, HEADERS, Wire, block, frame};
use super::place::{BOTH, Direction, Options, Proxy, TIMEOUT, in_namespace};

/// The path as an application reads it that decodes once, treats backslash as slash, merges slashes and resolves dot
/// segments.
fn normalize_as_application(path: &str) -> String {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let bytes = path.as_bytes();
    let (mut decoded, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let hex = bytes
            .get(at + 1..at + 3)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
            }
            (byte, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    let text = String::from_utf8_lossy(&decoded).replace('\\', "/");
    // An application in C ends the path at a NUL.
    let text = text.split('\0').next().unwrap_or_default();
    let mut segments = Vec::new();
    for segment in text.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    format!("/{}", segments.join("/"))
}

/// PB-01, PB-02: no spelling of `/private` reaches the application, and paths that mean something else do.
#[test]
fn denied_paths_are_denied_in_every_spelling() {
    in_namespace(module_path!(), "denied_paths_are_denied_in_every_spelling", || {
        let app = App::start();
        let _proxy = Proxy::start();
        let mut paths: Vec<String> = Vec::new();
        for lead in [
            "/",
            "//",
            "///",
            "/./",
            "/.//",
            "/%2e/",
            "/%2E/",
            "/x/../",
            "/x/%2e%2e/",
            "/x/.%2e/",
            "/x/%2e./",
            "/x//../",
            "/../",
            "/../../",
            "/x/y/../../",
            "/%2f",
            "/%2F",
            "/%5c",
            "/\\",
            "\\",
            "/x\\..\\",
            "/x/..%2f",
            "/x%2f../",
            "/x/..\\",
            "/x/%2e%2e%2f",
            "/x/%2e%2e%5c",
        ] {
            for rest in [
                "private",
                "private/",
                "private/x",
                "private//x",
                "private/.",
                "private/./x",
                "private/x/..",
                "%70rivate",
                "p%72ivate",
                "%70%72%69%76%61%74%65",
                "private%2fx",
                "private%2F",
                "private%5cx",
                "private\\x",
                "private?x",
                "private#x",
                "private%00",
                "private%00x",
                "private%23x",
                "private%3fx",
                "private/%2e",
                "private/%2e%2e/private",
            ] {
                paths.push(format!("{lead}{rest}"));
            }
        }
        for byte in 0..=255u8 {
            for path in [
                format!("/%{byte:02x}/private"),
                format!("/%{byte:02X}private"),
                format!("/private%{byte:02x}"),
                format!("/x/%{byte:02x}./private"),
                format!("/x/.%{byte:02x}/private"),
            ] {
                paths.push(path);
            }
        }
        paths.extend(
            [
                "/public#/../private",
                "/public?/../private",
                "//app/private",
                "http://app/private",
                "http://app//private",
                "http://app",
                "http://app/x/../private",
                "HTTP://app/private",
                "/%",
                "/%2",
                "/%zz",
                "/%2/private",
                "/%%32%65/private",
            ]
            .map(str::to_owned),
        );
        let (mut refused, mut passed) = (0, 0);
        for path in &paths {
            let status = get(Direction::Inbound.address(), path);
            let denied = normalize_as_application(
                path.strip_prefix("http://app").or(path.strip_prefix("HTTP://app")).unwrap_or(path),
            );
            let is_denied = denied == "/private" || denied.starts_with("/private/");
            match status {
                200 => {
                    assert!(!is_denied, "{path} means {denied} and got through");
                    passed += 1;
                }
                400 | 403 | 0 => refused += 1,
                other => panic!("{path} was answered {other}"),
            }
        }
        for seen in app.take() {
            let read = normalize_as_application(&seen.target);
            assert!(
                read != "/private" && !read.starts_with("/private/"),
                "{} is {read} to the application",
                seen.target
            );
            assert!(!seen.target.contains('#'), "{}", seen.target);
        }
        assert_eq!(app.violations(), [""; 0]);
        assert!(passed > 900 && refused > 300, "{passed} passed, {refused} refused");
        eprintln!("{} paths: {passed} passed, {refused} refused", paths.len());
    });
}

/// A path is forwarded unchanged, with and without policies.
#[test]
fn paths_are_forwarded_unchanged() {
    in_namespace(module_path!(), "paths_are_forwarded_unchanged", || {
        let app = App::start();
        let _proxy = Proxy::start();
        for path in [
            "/a",
            "/a/../b",
            "//a///b/",
            "/%61",
            "/a%3db",
            "/%252e%252e/b",
            "/a?b=/../private&c=%2e",
            "/a;x=/..;/b",
            "/Private",
            "/a*b$c,d!e'f(g)h+i:j@k&l=m~n",
            "/",
        ] {
            assert_eq!(get(Direction::Inbound.address(), path), 200, "{path}");
            assert_eq!(app.take().first().map(|seen| seen.target.clone()).as_deref(), Some(path), "{path}");
        }
        for (target, sent) in
            [("/a#private", "/a"), ("http://app/a/../b?c", "/a/../b?c"), ("http://app", "/"), ("http://app?x", "/?x")]
        {
            assert_eq!(get(Direction::Inbound.address(), target), 200, "{target}");
            assert_eq!(app.take().first().map(|seen| seen.target.clone()).as_deref(), Some(sent), "{target}");
        }
        // Outbound no policy applies, so any path is forwarded unchanged.
        for path in ["/a/../b", "//a", "/%61", "/a%2fb", "/a\\b", "/private", "/%00", "/a%"] {
            assert_eq!(get(Direction::Outbound.address(), path), 200, "{path}");
            assert_eq!(app.take().first().map(|seen| seen.target.clone()).as_deref(), Some(path), "{path}");
        }
        // PB-03: targets that are not a path.
        for path in ["x", "*", "", "?x", "x/private", "app:80/private", "@app/private"] {
            for direction in BOTH {
                assert!(matches!(get(direction.address(), path), 0 | 400), "{direction:?} {path:?}");
            }
        }
        let mut client = Client::connect(Direction::Outbound.address());
        client.send("OPTIONS * HTTP/1.1\r\nHost: app\r\n\r\n");
        assert_eq!(
            client.response().map(|response| response.status),
            Ok(200),
            "OPTIONS * asks about the server as a whole"
        );
        assert_eq!(app.take().first().map(|seen| seen.summary()).as_deref(), Some("OPTIONS *"));
    });
}

/// A policy that denies the prefix `/` also denies asterisk targets and raw TCP.
#[test]
fn deny_all_also_denies_asterisk_targets_and_tcp() {
    in_namespace(module_path!(), "deny_all_also_denies_asterisk_targets_and_tcp", || {
        let app = App::start();
        let policies = json!([{"name": "closed", "target": "namespace", "rules": [{"action": "deny", "paths": [{"prefix": "/"}]}]}]);
        let _proxy = Proxy::with(Options { policies, ..Options::default() });
        for request in ["GET /", "OPTIONS *", "GET http://app", "OPTIONS http://app"] {
            let mut client = Client::connect(Direction::Inbound.address());
            client.send(format!("{request} HTTP/1.1\r\nHost: app\r\n\r\n"));
            assert_eq!(client.response().map(|response| response.status), Ok(403), "{request}");
        }
        // Raw TCP.
        let mut client = Client::connect(Direction::Inbound.address());
        client.send("\x16\x03\x01\x02\x00 not HTTP\r\n\r\n");
        assert!(client.response().is_err());
        assert!(app.take().is_empty());
    });
}

/// PB-08: exactly one valid Host header; HTTP/1.0 may have none.
#[test]
fn host_headers_are_validated() {
    in_namespace(module_path!(), "host_headers_are_validated", || {
        let app = App::start();
        let _proxy = Proxy::start();
        for direction in BOTH {
            let send = |lines: &str, target: &str| {
                let mut client = Client::connect(direction.address());
                client.send(format!("GET {target} HTTP/1.1\r\n{lines}\r\n"));
                client.response().map_or(0, |response| response.status)
            };
            for host in [
                "app",
                "APP",
                "app.",
                "app:80",
                "app:8080",
                "app.:80",
                "app:",
                "127.0.0.1",
                "127.0.0.1:80",
                "[::1]",
                "[::1]:80",
                "a_b",
                "xn--bcher-kva.example",
                "",
            ] {
                assert_eq!(send(&format!("Host: {host}\r\n"), "/x"), 200, "{direction:?} {host:?}");
                assert_eq!(
                    app.take().first().and_then(|seen| seen.header("host")).as_deref(),
                    Some(host),
                    "{direction:?}"
                );
            }
            for lines in [
                "",
                "Host: a\r\nHost: a\r\n",
                "Host: a\r\nHost: b\r\n",
                "Host: a, b\r\n",
                "Host: a,b\r\n",
                "Host: a b\r\n",
                "Host: u@a\r\n",
                "Host: u:p@a\r\n",
                "Host: a/b\r\n",
                "Host: a?b\r\n",
                "Host: a#b\r\n",
                "Host: http://a\r\n",
                "Host: a%00\r\n",
                "Host: a%2eb\r\n",
                "Host: a\\b\r\n",
                "Host: a:b\r\n",
                "Host: a:80:81\r\n",
                "Host: a:99999\r\n",
                "Host: a:-1\r\n",
                "Host: a:+80\r\n",
                "Host: :80\r\n",
                "Host: [::1\r\n",
                "Host: ::1\r\n",
                "Host: [::1]x\r\n",
                "Host: a;b\r\n",
                "Host: a\x00b\r\n",
                "Host: \u{e9}\r\n",
                "Host: *\r\n",
                "Host: <a>\r\n",
                "Host : a\r\n",
                "Host:\r\n a\r\n",
                " Host: a\r\n",
            ] {
                assert!(matches!(send(lines, "/x"), 0 | 400), "{direction:?} {lines:?}");
            }
            for (lines, target, status) in [
                ("Host: app\r\n", "http://app/x", 200),
                ("Host: APP\r\n", "http://app/x", 200),
                ("Host: other\r\n", "http://app/x", 400),
                ("Host: app\r\n", "http://app:80/x", 400),
                ("Host: app\r\n", "http://u@app/x", 400),
                ("", "http://u@app/x", 400),
                ("", "http://a,b/x", 400),
                ("Host: app\r\nHost: app\r\n", "http://app/x", 400),
            ] {
                assert_eq!(send(lines, target), status, "{direction:?} {lines:?} {target}");
            }
            app.take();
        }
        // HTTP/1.0 needs no Host: the proxy sends the original destination address as Host.
        let mut client = Client::connect(Direction::Outbound.address());
        client.send("GET /old HTTP/1.0\r\n\r\n");
        assert_eq!(client.response().map(|response| response.status), Ok(200));
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// PB-10: conditions test each value of a header: Deny matches if any does, Allow if all do.
#[test]
fn header_conditions_test_every_value() {
    in_namespace(module_path!(), "header_conditions_test_every_value", || {
        let app = App::start();
        let rule = |action: &str, test: serde_json::Value| json!([{"name": "p", "target": "namespace", "rules": [{"action": action, "headers": [{"name": "x-team", "test": test}]}]}]);
        let ask = |headers: &str| {
            let mut client = Client::connect(Direction::Inbound.address());
            client.send(format!("GET /x HTTP/1.1\r\nHost: app\r\n{headers}\r\n"));
            client.response().map_or(0, |response| response.status)
        };
        let many = "X-Team: a\r\n".repeat(90);
        let proxy = Proxy::with(Options { policies: rule("deny", json!({"exact": "evil"})), ..Options::default() });
        for (headers, status) in [
            ("", 200),
            ("X-Team: a\r\n", 200),
            ("X-Team: evil\r\n", 403),
            ("x-tEAM:evil\r\n", 403),
            ("X-Team: \t evil \t\r\n", 403),
            ("X-Team: a\r\nX-Team: evil\r\n", 403),
            ("X-Team: evil\r\nX-Team: a\r\n", 403),
            ("X-Team: \r\nX-Team: evil\r\n", 403),
            ("X-Team: evil\r\nX-Team: \r\n", 403),
            (&format!("{many}X-Team: evil\r\n"), 403),
            ("X-Other: evil\r\n", 200),
            ("X-Team: Evil\r\n", 200),
            // PB-12: naming a header in Connection does not hide it from policies.
            ("Connection: X-Team\r\nX-Team: evil\r\n", 403),
            ("Connection: close, x-team\r\nX-Team: evil\r\n", 403),
        ] {
            assert_eq!(ask(headers), status, "deny evil: {headers:?}");
        }
        drop(proxy);
        let _proxy = Proxy::with(Options { policies: rule("allow", json!({"exact": "good"})), ..Options::default() });
        for (headers, status) in [
            ("X-Team: good\r\n", 200),
            ("X-Team: good\r\nX-Team: good\r\n", 200),
            ("", 403),
            ("X-Team: bad\r\n", 403),
            ("X-Team: good\r\nX-Team: bad\r\n", 403),
            ("X-Team: bad\r\nX-Team: good\r\n", 403),
            ("X-Team: good, bad\r\n", 403),
            ("X-Team: good\r\nX-Team: \r\n", 403),
            ("X-Team:\r\n", 403),
            ("X_Team: good\r\n", 403),
        ] {
            assert_eq!(ask(headers), status, "allow good: {headers:?}");
        }
        app.take();
    });
}

/// PB-23: methods are forwarded unchanged; Deny ignores their letter case.
#[test]
fn methods_are_forwarded_unchanged_and_denied_in_any_case() {
    in_namespace(module_path!(), "methods_are_forwarded_unchanged_and_denied_in_any_case", || {
        let app = App::start();
        let policies =
            json!([{"name": "p", "target": "namespace", "rules": [{"action": "deny", "methods": ["DELETE"]}]}]);
        let _proxy = Proxy::with(Options { policies, ..Options::default() });
        for (request, status) in [
            ("DELETE /x HTTP/1.1\r\nHost: app\r\n\r\n", 403),
            ("POST /x HTTP/1.1\r\nHost: app\r\nX-HTTP-Method-Override: DELETE\r\nContent-Length: 0\r\n\r\n", 200),
            ("delete /x HTTP/1.1\r\nHost: app\r\n\r\n", 403),
            ("dElEtEs /x HTTP/1.1\r\nHost: app\r\n\r\n", 200),
            ("M-SEARCH /x HTTP/1.1\r\nHost: app\r\n\r\n", 200),
            ("TRACE /x HTTP/1.1\r\nHost: app\r\n\r\n", 200),
        ] {
            let mut client = Client::connect(Direction::Inbound.address());
            client.send(request);
            assert_eq!(client.response().map(|response| response.status), Ok(status), "{request}");
        }
        let methods: Vec<String> = app.take().into_iter().map(|seen| seen.method).collect();
        assert_eq!(methods, ["POST", "dElEtEs", "M-SEARCH", "TRACE"], "forwarded unchanged");
    });
}

/// PB-05: prefix rewrites replace whole path segments, and only where the prefix matches.
#[test]
fn path_rewrites_replace_whole_segments_only() {
    in_namespace(module_path!(), "path_rewrites_replace_whole_segments_only", || {
        let app = App::start();
        let backend =
            json!([{"weight": 1, "target": {"cluster": {"namespace": "shop", "service": "app", "port": 80}}}]);
        let rule = |rewrite: serde_json::Value| json!({"route": {"namespace": "shop", "name": "r"}, "name": "0", "action": {"forward": {"backends": backend, "rewrite": {"path": rewrite}}}});
        let routes = json!({
            "matches": [{"rule": 0, "path": {"prefix": "/api"}}, {"rule": 1, "path": {"prefix": "/full"}}],
            "rules": [rule(json!({"prefix": "/v1"})), rule(json!({"full": "/there"}))]
        });
        let _proxy = Proxy::with(Options { routes: Some(routes), ..Options::default() });
        for (path, sent) in [
            ("/api/x", Some("/v1/x")),
            ("/api", Some("/v1")),
            ("/api/", Some("/v1/")),
            ("/api/x?q=/api", Some("/v1/x?q=/api")),
            ("/full/x?q", Some("/there?q")),
            ("/apix", None),
            ("/api../x", None),
            ("/api%2e%2e/x", None),
            ("/api%2fx", None),
            ("/API/x", None),
            ("//api/x", None),
            ("/x/../api/x", None),
            // The outbound side does not resolve dot segments. The application, and policies in front of it, see the
            // rewritten path.
            ("/api/../private", Some("/v1/../private")),
            ("/api//x", Some("/v1/x")),
        ] {
            let status = get(Direction::Outbound.address(), path);
            assert_eq!(status, if sent.is_some() { 200 } else { 404 }, "{path}");
            assert_eq!(app.take().first().map(|seen| seen.target.clone()).as_deref(), sent, "{path}");
        }
    });
}

/// PB-14: each request is one line of JSON in the access log, whatever it contains.
#[test]
fn access_log_lines_are_json_for_any_request() {
    in_namespace(module_path!(), "access_log_lines_are_json_for_any_request", || {
        let app = App::start();
        let proxy = Proxy::start();
        let mut count = 0;
        for (path, header) in [
            ("/plain", "X-A: 1"),
            ("/quote\"and\\back", "User-Agent: \"\\"),
            ("/tab", "User-Agent: a\tb"),
            ("/\u{1f980}", "User-Agent: \u{1b}[31m"),
            ("/%0a%0d%1b", "X-A: %0a"),
            ("/{\"status\":200}", "User-Agent: {\"status\":500}"),
            ("/\u{2028}line", "User-Agent: \u{e9}"),
            (&format!("/{}", "long".repeat(12_000)), "X-A: 1"),
        ] {
            for direction in BOTH {
                let mut client = Client::connect(direction.address());
                client.send(format!("GET {path} HTTP/1.1\r\nHost: app\r\n{header}\r\n\r\n"));
                let _ = client.response();
                count += 1;
            }
        }
        super::place::wait("all requests are logged", || proxy.log().matches("\"GET\"").count() >= count - 4);
        for line in proxy.log().lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert!(value.is_object(), "{line}");
            assert!(!line.bytes().any(|byte| byte < 0x20), "{line:?}");
        }
        app.take();
    });
}

/// One policy with one rule.
fn policy(action: &str, conditions: serde_json::Value) -> serde_json::Value {
    let mut rule = conditions;
    rule["action"] = action.into();
    json!([{"name": "p", "target": "namespace", "rules": [rule]}])
}

fn inbound_with(policies: serde_json::Value) -> Proxy {
    Proxy::with(Options { policies, ..Options::default() })
}

/// The status of a GET with these header lines, 0 without a response.
fn ask(direction: Direction, target: &str, lines: impl AsRef<[u8]>) -> u16 {
    let mut client = Client::connect(direction.address());
    let head = format!("GET {target} HTTP/1.1\r\n");
    client.send([head.as_bytes(), lines.as_ref(), b"\r\n"].concat());
    client.response().map_or(0, |response| response.status)
}

/// An action that forwards to the application.
fn to_app() -> serde_json::Value {
    json!({"forward": {"backends": [
        {"weight": 1, "target": {"cluster": {"namespace": "shop", "service": "app", "port": 80}}}
    ]}})
}

/// `Connection` removes only headers of the received message. Headers that rules set, or that policies, routes and
/// applications decide by, stay; other headers that it names are not forwarded.
#[test]
fn connection_header_cannot_remove_headers_that_rules_use() {
    in_namespace(module_path!(), "connection_header_cannot_remove_headers_that_rules_use", || {
        let app = App::start();
        let routes = json!({
            "matches": [
                {"rule": 0, "path": {"prefix": "/x"}, "headers": [{"name": "x-user", "test": "present"}]},
                {"rule": 0}
            ],
            "rules": [{
                "route": {"namespace": "shop", "name": "r"}, "name": "0", "action": to_app(),
                "requestHeaders": {"set": [{"name": "x-internal", "value": "no"}], "add": [{"name": "x-tag", "value": "t"}]},
                "responseHeaders": {"set": [{"name": "x-served", "value": "weft"}], "add": [{"name": "x-by", "value": "b"}]}
            }]
        });
        let policies = policy("allow", json!({"headers": [{"name": "x-team", "test": {"exact": "good"}}]}));
        let settings = json!({"sticky": {"cookie": "stuck", "path": "/"}});
        let _proxy = Proxy::with(Options { routes: Some(routes), policies, settings, ..Options::default() });
        let reply = "HTTP/1.1 200 OK\r\nConnection: x-served, X-By, set-cookie, content-type, x-own\r\nX-Own: 1\r\n\
                     Content-Type: a/b\r\nSet-Cookie: c=d\r\nContent-Length: 0\r\n\r\n";
        app.reply("/x", Reply::new(reply, After::Keep));
        let names = "x-internal, x-tag, X-User, x-team, x_team, authorization, cookie, host, content-length, x-forwarded-for, \
                     forwarded, traceparent, weft-unprocessed, content-type, x-own";
        let given = "Authorization: a\r\nCookie: b=c\r\nX-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nTraceparent: t\r\n\
                     Content-Type: a/b\r\nX-Own: 1\r\nX-User: u\r\nX-Team: good\r\nX-Internal: yes\r\n";
        for direction in BOTH {
            for connection in [names.to_owned(), format!("close\r\nConnection: {names}"), format!("{names}, \u{e9}")] {
                let mut client = Client::connect(direction.address());
                client.send(format!("GET /x HTTP/1.1\r\nHost: app\r\n{given}Connection: {connection}\r\n\r\n"));
                let response = client.response().expect("a response");
                assert_eq!(response.status, 200, "{direction:?}");
                let seen = app.take().pop().expect("a request");
                let mut kept =
                    vec!["authorization", "cookie", "x-forwarded-for", "forwarded", "traceparent", "content-type"];
                match direction {
                    Direction::Outbound => {
                        assert_eq!(seen.header("x-internal").as_deref(), Some("no"));
                        assert_eq!(seen.header("x-tag").as_deref(), Some("t"));
                        assert_eq!(response.header("x-served"), Some("weft"));
                        assert_eq!(response.header("x-by"), Some("b"));
                        let cookies = response.headers.iter().filter(|(name, _)| name == "set-cookie").count();
                        assert_eq!(cookies, 2, "the application's and the session's: {response:?}");
                        kept.push("x-user");
                    }
                    Direction::Inbound => kept.push("x-team"),
                }
                for name in kept {
                    assert!(seen.header(name).is_some(), "{direction:?} {name} of {seen:?}");
                }
                assert_eq!(seen.header("x-own"), None, "{direction:?}");
                assert_eq!(response.header("content-type"), Some("a/b"), "{direction:?}");
                assert_eq!(response.header("x-own"), None, "{direction:?}");
            }
        }
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// Tokens of `Upgrade` and `Connection` are found beside non-ASCII bytes. `Connection` has at most 100 options.
#[test]
fn upgrade_and_connection_tokens_are_found_beside_non_ascii_bytes() {
    in_namespace(module_path!(), "upgrade_and_connection_tokens_are_found_beside_non_ascii_bytes", || {
        let app = App::start();
        let _proxy = Proxy::start();
        let http = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n";
        app.reply("/other", Reply::new(http, After::Echo));
        for direction in BOTH {
            let send = |lines: &[u8]| {
                let mut client = Client::connect(direction.address());
                client.send([b"GET /x HTTP/1.1\r\nHost: app\r\n", lines, b"\r\n"].concat());
                let status = client.response().map_or(0, |response| response.status);
                (status, client)
            };
            for upgrade in [
                &b"h2c, \xff"[..],
                b"\xff, h2c",
                b"\xff,h2c",
                b"websocket, \xff",
                b"\xffh2c",
                b"h2c\xff",
                b"h2c;x",
                b"h2c/1",
                b"h2",
                b"HTTP/2.0",
                b"TLS/1.0, HTTP/1.1",
                b"websocket\r\nUpgrade: h2c",
                b"h2c\r\nUpgrade: websocket",
            ] {
                let lines =
                    [b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\nUpgrade: ", upgrade, b"\r\n"];
                let desc = String::from_utf8_lossy(upgrade);
                assert_eq!(send(&lines.concat()).0, 200, "{direction:?} {desc}");
                let seen = app.take().pop().expect("a request");
                assert_eq!(seen.header("upgrade"), None, "{direction:?} {desc}");
            }
            assert_eq!(send(b"HTTP2-Settings: AAMAAABk\r\n").0, 200);
            assert_eq!(app.take().pop().and_then(|seen| seen.header("http2-settings")), None, "{direction:?}");
            let mut client = Client::connect(direction.address());
            client.send("GET /other HTTP/1.1\r\nHost: app\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
            let status = client.response().map(|response| response.status);
            assert_eq!(status, Ok(502), "{direction:?}: another protocol than requested");
            for connection in [&b"close, \xff"[..], b"\xff, close", b"\xe9\r\nConnection: close", b"\xff,CLOSE"] {
                let (status, mut client) = send(&[b"Connection: ", connection, b"\r\n"].concat());
                assert_eq!(status, 200, "{direction:?}");
                assert!(client.closes_within(TIMEOUT), "{direction:?} {}", String::from_utf8_lossy(connection));
            }
            let (status, mut client) = send(b"Connection: \xffclose\r\n");
            assert_eq!((status, client.closes_within(Duration::from_millis(200))), (200, false), "another token");
            // The limit of options is that of headers in a message.
            let options = |count: usize| format!("Connection: {}\r\n", vec!["a"; count].join(","));
            assert_eq!(send(options(100).as_bytes()).0, 200, "{direction:?}");
            assert_eq!(send(options(101).as_bytes()).0, 400, "{direction:?}");
            assert_eq!(send(options(50).repeat(3).as_bytes()).0, 400, "{direction:?}");
            assert_eq!(send(format!("Connection: {}\r\n", ",".repeat(60_000)).as_bytes()).0, 400, "{direction:?}");
            app.take();
        }
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// Host conditions ignore letter case, port and trailing dot: in Deny, Allow and routes, over both versions.
#[test]
fn host_conditions_ignore_case_port_and_trailing_dot() {
    in_namespace(module_path!(), "host_conditions_ignore_case_port_and_trailing_dot", || {
        let _app = App::start();
        let condition = |test: serde_json::Value| json!({"headers": [{"name": "host", "test": test}]});
        let spellings = ["internal", "INTERNAL", "internal:80", "internal.", "Internal.:8080", "internal:"];
        let others = ["app", "internal.shop", "xinternal"];
        let over_http2 = |host: &str, authority: bool| {
            let mut fields = vec![(":method", "GET"), (":scheme", "http"), (":path", "/x")];
            fields.push(if authority { (":authority", host) } else { ("host", host) });
            let mut wire = Wire::connect(Direction::Inbound.address());
            wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields)));
            wire.end(1)
        };
        for test in [json!({"exact": "internal"}), json!({"exact": "Internal.:80"}), json!({"regex": "intern.l"})] {
            let proxy = inbound_with(policy("deny", condition(test.clone())));
            for host in spellings {
                assert_eq!(ask(Direction::Inbound, "/x", format!("Host: {host}\r\n")), 403, "deny {test}: {host}");
                let absolute = format!("http://{host}/x");
                let status = ask(Direction::Inbound, &absolute, format!("Host: {host}\r\n"));
                assert_eq!(status, 403, "deny {test}: {absolute}");
                for authority in [true, false] {
                    assert_eq!(over_http2(host, authority), End::Status(403), "deny {test}: {host} over HTTP/2");
                }
                let mut client = Client::connect(Direction::Inbound.address());
                client.send(format!("GET http://{host}/x HTTP/1.0\r\n\r\n"));
                assert_eq!(client.response().map(|response| response.status), Ok(403), "deny {test}: {host}, HTTP/1.0");
            }
            for host in others {
                assert_eq!(ask(Direction::Inbound, "/x", format!("Host: {host}\r\n")), 200, "deny {test}: {host}");
            }
            drop(proxy);
            let _proxy = inbound_with(policy("allow", condition(test.clone())));
            for host in spellings {
                assert_eq!(ask(Direction::Inbound, "/x", format!("Host: {host}\r\n")), 200, "allow {test}: {host}");
            }
            for host in others {
                assert_eq!(ask(Direction::Inbound, "/x", format!("Host: {host}\r\n")), 403, "allow {test}: {host}");
            }
        }
        let proxy = inbound_with(policy("deny", condition(json!({"exact": "[::1]"}))));
        for host in ["[::1]", "[::1]:80", "[0:0::1]", "[0000:0:0:0:0:0:0:1]:8080"] {
            assert_eq!(ask(Direction::Inbound, "/x", format!("Host: {host}\r\n")), 403, "{host}");
        }
        assert_eq!(ask(Direction::Inbound, "/x", "Host: [::2]\r\n"), 200);
        drop(proxy);
        for more in [0, 20] {
            // With many matches the route table uses an index.
            let mut matches = vec![json!({"rule": 0, "headers": [{"name": "host", "test": {"exact": "internal"}}]})];
            matches.extend((0..more).map(|path| json!({"rule": 1, "path": {"exact": format!("/{path}")}})));
            matches.push(json!({"rule": 1}));
            let rule = |status: u16| json!({"route": {"namespace": "shop", "name": "r"}, "name": "0", "action": {"respond": {"status": status}}});
            let routes = json!({"matches": matches, "rules": [rule(201), rule(202)]});
            let _proxy = Proxy::with(Options { routes: Some(routes), ..Options::default() });
            for host in spellings {
                assert_eq!(ask(Direction::Outbound, "/x", format!("Host: {host}\r\n")), 201, "route: {host}");
            }
            assert_eq!(ask(Direction::Outbound, "/x", "Host: app\r\n"), 202);
        }
    });
}

/// Path policies hold for every reading that applications are known to have; a request that no reading denies is
/// forwarded unchanged.
#[test]
fn path_policies_hold_for_every_reading_of_a_path() {
    in_namespace(module_path!(), "path_policies_hold_for_every_reading_of_a_path", || {
        let app = App::start();
        let paths = |path: &str| json!({"paths": [{"prefix": path}]});
        let check = |path: &str, status: u16| {
            assert_eq!(get(Direction::Inbound.address(), path), status, "{path}");
            let seen: Vec<String> = app.take().into_iter().map(|seen| seen.target).collect();
            assert_eq!(
                seen,
                if status == 200 { vec![path.to_owned()] } else { Vec::new() },
                "{path} is forwarded unchanged"
            );
        };
        let proxy = inbound_with(policy("deny", paths("/private")));
        for path in [
            "/private;a",
            "/private;a/x",
            "/private;",
            "/.;/private",
            "/;/private",
            "/;a=b/private",
            "/x/..;/private",
            "/x/..;a/private",
            "/x/%2e%2e;/private",
            "/x/..%3b/private",
            "/x/y/..;/..;/private",
            "/x/%252e%252e/private",
            "/x/..%252fprivate",
            "/%2570rivate",
            "/x%2f..%2fprivate",
            "/%2fprivate",
            "/x%5c..%5cprivate",
            "/x\\..\\private",
            "/private%00",
            "/private%00.css",
            "/private%2fx",
            "/private\\x",
            "/x//../private",
            "/private/..;/x",
            "/private/../x",
            "/x/../private",
        ] {
            check(path, 403);
        }
        for path in [
            "/api/v4/projects/a%2Fb",
            "/api/v4/projects/a%2fb/private",
            "/a;private",
            "/a;x=/b",
            "/a;x=..;/b",
            "/a\\b",
            "/a%5Cb",
            "/%00",
            "/a%",
            "/%zz",
            "/a%20b",
            "/caf%c3%a9",
            "/a/../b",
            "//a///b/",
            "/%61",
            "/a%252fb",
            "/privatex;/a",
            "/Private",
            "/x?y=/../private",
        ] {
            check(path, 200);
        }
        check(&format!("/{}", "..;a%2f%5c/%252e//%00".repeat(50)), 400);
        drop(proxy);
        let proxy = inbound_with(policy("allow", paths("/public")));
        for path in [
            "/public/..;/private",
            "/public/../private",
            "/public%2f..%2fprivate",
            "/public/..%2fprivate",
            "/public/..\\private",
            "/public/%252e%252e/private",
            "/public;/../private",
            "/public%2fa",
            "/private/../public",
            "/private/..;/public",
            "/publicx;/a",
            "/x",
        ] {
            check(path, 403);
        }
        for path in [
            "/public/a%2Fb",
            "/public/a;x=y/b",
            "/public/a//b",
            "/public/a/../b",
            "/public/a\\b",
            "/public/%00",
            "/public/%",
            "/%70ublic/a",
            "/public/caf%c3%a9",
        ] {
            check(path, 200);
        }
        drop(proxy);
        // A request is allowed if each of its readings is allowed by some rule.
        let rules = json!([{"name": "p", "target": "namespace", "rules": [
            {"action": "allow", "paths": [{"exact": "/projects/a%2Fb"}]}, {"action": "allow", "paths": [{"exact": "/projects/a/b"}]}
        ]}]);
        let proxy = inbound_with(rules);
        check("/projects/a%2fb", 200);
        check("/projects/a%2Fc", 403);
        drop(proxy);
        // Percent-encoded names, and a trailing slash.
        let proxy = inbound_with(policy(
            "deny",
            json!({"paths": [{"exact": "/caf\u{e9}"}, {"exact": "/a=b"}, {"prefix": "/%73ecret"}]}),
        ));
        for path in ["/caf%C3%A9", "/caf%c3%a9", "/caf%c3%a9/", "/a=b", "/a%3db", "/a%3Db/", "/secret", "/%73ecret/x"] {
            check(path, 403);
        }
        drop(proxy);
        let _proxy = inbound_with(policy("deny", json!({"paths": [{"regex": "/u/[0-9]+"}]})));
        for (path, status) in [
            ("/u/7", 403),
            ("/u/7/", 403),
            ("/u/%37", 403),
            ("/u;a/7", 403),
            ("/u%2f7", 403),
            ("/u/x", 200),
            ("/u/7/x", 200),
        ] {
            check(path, status);
        }
        // The response names the reading that was denied.
        let mut client = Client::connect(Direction::Inbound.address());
        client.send("GET /u;a/7 HTTP/1.1\r\nHost: app\r\n\r\n");
        let response = client.response().expect("a response");
        let text = String::from_utf8_lossy(&response.body).into_owned();
        assert!(text.contains("/u/7") && response.header("weft-source") == Some("MeshPolicy/shop/p/0"), "{response:?}");
    });
}

/// Header policies hold for every spelling that applications accept: Deny matches if any does, Allow if all do.
#[test]
fn header_policies_hold_for_every_reading_of_a_header() {
    in_namespace(module_path!(), "header_policies_hold_for_every_reading_of_a_header", || {
        let _app = App::start();
        let team = |test: serde_json::Value| json!({"headers": [{"name": "x-team", "test": test}]});
        let check = |desc: &str, cases: &[(&[u8], u16)]| {
            for (lines, status) in cases {
                let found = ask(Direction::Inbound, "/x", [b"Host: app\r\n", *lines].concat());
                assert_eq!(found, *status, "{desc}: {}", String::from_utf8_lossy(lines));
            }
        };
        let proxy = inbound_with(policy("deny", team(json!({"exact": "evil"}))));
        check(
            "deny",
            &[
                (b"X-Team: evil\r\n", 403),
                (b"X_Team: evil\r\n", 403),
                (b"X-Team: good\r\nx_team: evil\r\n", 403),
                (b"X-Team: good, evil\r\n", 403),
                (b"X-Team: evil,\r\n", 403),
                (b"X-Team: good,evil ,x\r\n", 403),
                (b"X-Team: good\r\n", 200),
                (b"X-Team: evilly, not evil\r\n", 200),
                (format!("X-Team: {}\r\n", "a,".repeat(990)).as_bytes(), 200),
                (format!("X-Team: {}\r\n", "a,".repeat(20_000)).as_bytes(), 403),
            ],
        );
        drop(proxy);
        let proxy = inbound_with(policy("deny", team(json!({"regex": ".*evil.*"}))));
        check(
            "deny expression",
            &[(b"X-Team: a evil\xff\r\n", 403), (b"X-Team: \xff\xfeevil\r\n", 403), (b"X-Team: \xff\r\n", 200)],
        );
        drop(proxy);
        let proxy = inbound_with(policy("deny", team(json!("absent"))));
        check(
            "deny absent",
            &[
                (b"", 403),
                (b"X_Team: a\r\n", 403),
                (b"X-Team: a\r\n", 200),
                (b"Connection: x-team\r\nX-Team: a\r\n", 200),
            ],
        );
        drop(proxy);
        let proxy = inbound_with(policy("allow", team(json!("absent"))));
        check("allow absent", &[(b"", 200), (b"X-Team: a\r\n", 403), (b"X_Team: a\r\n", 403)]);
        drop(proxy);
        let proxy = inbound_with(policy("allow", team(json!({"exact": "good"}))));
        check(
            "allow",
            &[
                (b"X-Team: good\r\n", 200),
                (b"X_Team: good\r\n", 403),
                (b"X-Team: good\r\nX_Team: evil\r\n", 403),
                (b"X-Team: good\r\nX_Team: good\r\n", 200),
                (b"X-Team: good, evil\r\n", 403),
            ],
        );
        drop(proxy);
        // Two conditions on one name must both hold.
        let both =
            json!({"headers": [{"name": "x-team", "test": "present"}, {"name": "x-team", "test": {"exact": "good"}}]});
        let proxy = inbound_with(policy("allow", both));
        check("allow by two", &[(b"X-Team: good\r\n", 200), (b"X-Team: evil\r\n", 403)]);
        drop(proxy);
        let proxy =
            inbound_with(policy("deny", json!({"headers": [{"name": "cookie", "test": {"exact": "debug=1"}}]})));
        check(
            "deny cookie",
            &[
                (b"Cookie: a=b; debug=1\r\n", 403),
                (b"Cookie: a=b\r\nCookie: debug=1\r\n", 403),
                (b"Cookie: debug=12\r\n", 200),
            ],
        );
        drop(proxy);
        // Django and Symfony convert methods to upper case.
        let _proxy = inbound_with(policy("deny", json!({"methods": ["DELETE"]})));
        for (method, status) in [("DELETE", 403), ("delete", 403), ("Delete", 403), ("GET", 200), ("DELETES", 200)] {
            let mut client = Client::connect(Direction::Inbound.address());
            client.send(format!("{method} /x HTTP/1.1\r\nHost: app\r\n\r\n"));
            assert_eq!(client.response().map(|response| response.status), Ok(status), "{method}");
        }
    });
}

/// Header edits also remove the underscore spelling of a name.
#[test]
fn header_edits_also_remove_underscore_spellings() {
    in_namespace(module_path!(), "header_edits_also_remove_underscore_spellings", || {
        let app = App::start();
        let routes = json!({"matches": [{"rule": 0}], "rules": [{
            "route": {"namespace": "shop", "name": "r"}, "name": "0", "action": to_app(),
            "requestHeaders": {"set": [{"name": "x-internal", "value": "no"}], "remove": ["x-debug"]}
        }]});
        let _proxy = Proxy::with(Options { routes: Some(routes), ..Options::default() });
        let lines = "Host: app\r\nX_Internal: yes\r\nX-Internal: yes\r\nX_Debug: 1\r\nX-Debug: 1\r\nX_Other: 1\r\n";
        assert_eq!(ask(Direction::Outbound, "/x", lines), 200);
        let seen = app.take().pop().expect("a request");
        let names: Vec<&str> = seen.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["host", "x_other", "x-internal"], "{seen:?}");
        assert_eq!(seen.header("x-internal").as_deref(), Some("no"));
    });
}

/// Trailers are removed if a rule, a policy, a proxy or HTTP itself decides by that field.
#[test]
fn trailers_that_rules_or_proxies_use_are_removed() {
    in_namespace(module_path!(), "trailers_that_rules_or_proxies_use_are_removed", || {
        let app = App::start();
        let routes = json!({
            "matches": [{"rule": 0, "headers": [{"name": "x-user", "test": "present"}]}, {"rule": 0}],
            "rules": [{
                "route": {"namespace": "shop", "name": "r"}, "name": "0", "action": to_app(),
                "requestHeaders": {"set": [{"name": "x-internal", "value": "no"}], "remove": ["x-debug"]},
                "responseHeaders": {"remove": ["x-secret"]}
            }]
        });
        let policies = policy("deny", json!({"headers": [{"name": "x-team", "test": {"exact": "evil"}}]}));
        let _proxy = Proxy::with(Options { routes: Some(routes), policies, ..Options::default() });
        let never = [
            "x-forwarded-for",
            "X-Forwarded-Client-Cert",
            "x_forwarded_for",
            "forwarded",
            "weft-source",
            "weft-reason",
            "weft_reason",
            "weft-unprocessed",
            "authorization",
            "host",
            "te",
            "connection",
            "upgrade",
            "via",
            "x-real-ip",
            "traceparent",
            "x-request-id",
            "cookie",
            "content-type",
            "vary",
            "location",
            "www-authenticate",
            "if-match",
            "http2-settings",
        ];
        let always = ["grpc-status", "grpc-message", "x-sum", "server-timing", "etag", "x-data-bin"];
        let lines = |names: &[&str]| names.iter().map(|name| format!("{name}: 1\r\n")).collect::<String>();
        for direction in BOTH {
            let (asked, answered): (&[&str], &[&str]) = match direction {
                Direction::Outbound => (&["x-internal", "x-debug", "X-User", "x_internal"], &["x-secret"]),
                Direction::Inbound => (&["x-team", "X_Team"], &[]),
            };
            let sent = lines(&[&always[..], &never, asked].concat());
            let mut client = Client::connect(direction.address());
            client.send(format!(
                "POST /x HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n{sent}\r\n"
            ));
            assert_eq!(client.response().map(|response| response.status), Ok(200), "{direction:?}");
            let seen = app.take().pop().expect("a request");
            let names: Vec<&str> = seen.trailers.iter().filter_map(|line| Some(line.split_once(':')?.0)).collect();
            assert_eq!(names, always, "{direction:?}");
            let sent = lines(&[&always[..], &never, answered].concat());
            let reply = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n{sent}\r\n");
            app.reply("/response", Reply::new(reply, After::Keep));
            let mut client = Client::connect(direction.address());
            client.send("GET /response HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n");
            assert!(client.closes_within(TIMEOUT), "{direction:?}");
            let response = client.unparsed();
            let (_, trailers) = response.split_once("\r\n0\r\n").expect("a last chunk");
            let names: Vec<&str> = trailers.lines().filter_map(|line| Some(line.split_once(':')?.0)).collect();
            assert_eq!(names, always, "{direction:?}: {response}");
            app.take();
        }
        assert_eq!(app.violations(), [""; 0]);
    });
}
