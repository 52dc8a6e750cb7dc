//! The demo, as `make demo` runs it, and its page in a browser.

use anyhow::{Result, ensure};
use weft_e2e::browser;
use weft_e2e::demo::{self, Options};
use weft_e2e::namespace::in_mesh;
use weft_e2e::page;

#[test]
fn demo_page_shows_each_change() -> Result<()> {
    in_mesh("demo", |ns| {
        let folder = ns.directory()?;
        let html = folder.join("index.html");
        // Fails where the clients' results do not match the routes.
        let story = demo::run(&Options { namespace: ns.name.clone(), page: html.clone() })?;
        let shown = page::shown(&browser::dom(&html)?);
        let answers: usize = story.streams.iter().map(|stream| stream.answers.len()).sum();
        ensure!(answers > 1000, "only {answers} requests were sent");
        ensure!(shown.answers == answers, "{answers} answers, and {} points", shown.answers);
        ensure!(shown.applies == 6 && story.steps.len() == 6, "six changes, and {} marks", shown.applies);
        // Five Services are called by the client, one by the pods of another; all are servers but the client.
        let encrypted = story.traffic.iter().filter(|traffic| traffic.is_encrypted()).count();
        ensure!(encrypted >= 8 && encrypted == story.traffic.len(), "not all are encrypted: {:?}", story.traffic);
        ensure!(shown.encrypted == encrypted, "{encrypted} rows of encrypted requests, and {}", shown.encrypted);
        browser::screenshot(&html, &folder.join("page.png"), 1280, 2400)
    })
}
