//! The demo's result page in a real browser. Needs no cluster.

use std::fs;

use anyhow::{Result, ensure};
use weft_e2e::browser;
use weft_e2e::cluster::target;
use weft_e2e::page::{self, sample::sample};

#[test]
fn page_shows_every_answer_and_every_apply() -> Result<()> {
    let folder = target().join("e2e/page");
    fs::create_dir_all(&folder)?;
    let (story, html) = (sample(), folder.join("index.html"));
    fs::write(&html, page::html(&story))?;
    let shown = page::shown(&browser::dom(&html)?);
    let answers: usize = story.streams.iter().map(|stream| stream.answers.len()).sum();
    ensure!(shown.answers == answers, "{answers} answers, and {} points", shown.answers);
    ensure!(shown.applies == story.steps.len(), "{} applies, and {} marks", story.steps.len(), shown.applies);
    let encrypted = story.traffic.len();
    ensure!(shown.encrypted == encrypted, "{encrypted} rows of requests, and {} encrypted", shown.encrypted);
    for (name, width, height) in [("wide.png", 1280, 2400), ("phone.png", 390, 2600)] {
        browser::screenshot(&html, &folder.join(name), width, height)?;
    }
    Ok(())
}
