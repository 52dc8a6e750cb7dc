//! The demo's page: the clients' responses over time, with each apply marked.
//!
//! [`html`] is a pure function from a [`Story`] to one self-contained document: no script, no external resources,
//! light and dark. Plots are stretched to the width of the window, so text is placed beside them in HTML, and points
//! are drawn as round line caps, which stay round when stretched.

mod chart;
mod connections;
pub mod sample;
mod summary;

use std::fmt::Write;

pub use connections::Traffic;
pub use summary::{Row, quantile, summarise};

/// The data of the page.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// The cluster that the demo ran on, in one line.
    pub environment: String,
    /// From the first request to the last response.
    pub length_ms: f64,
    /// Clients, each with its own plot.
    pub streams: Vec<Stream>,
    /// Applied changes, in order.
    pub steps: Vec<Step>,
    /// Requests meanwhile, as the proxies of callers and of servers counted them.
    pub traffic: Vec<Traffic>,
}

/// A client that sends the same request repeatedly.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// Short name, such as `reviews, any visitor`.
    pub name: String,
    /// Its requests, such as `GET http://reviews:9080/, 20 requests per second`.
    pub description: String,
    /// Results of its requests, in the order of sending.
    pub answers: Vec<Answer>,
}

/// The result of one request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// When the request was sent, since the start.
    pub sent_ms: f64,
    /// Time until the response or the failure.
    pub latency_ms: f64,
    /// The response, or its absence.
    pub outcome: Outcome,
}

/// The outcome of a request, as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// A success from this version of the service.
    Version(String),
    /// A response with another status.
    Status(u16),
    /// No response.
    Lost,
}

/// One applied change.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// Label of at most three words, for the plot.
    pub label: String,
    /// One sentence.
    pub title: String,
    /// The applied manifest.
    pub yaml: String,
    /// When `kubectl apply` returned, since the start.
    pub applied_ms: f64,
    /// Start of the table's window: by then every proxy has read the change.
    pub settled_ms: f64,
    /// Names of the affected streams, whose shares are written into the plot.
    pub affects: Vec<String>,
    /// The command that shows the statuses of the objects.
    pub status_command: String,
    /// Its output.
    pub status: String,
}

// === impl Outcome ===

impl Outcome {
    /// The label in legends and tables.
    pub fn label(&self) -> String {
        match self {
            Self::Version(version) => version.clone(),
            Self::Status(status) => status.to_string(),
            Self::Lost => "no response".to_owned(),
        }
    }

    /// The explanation in the legend.
    fn explanation(&self) -> String {
        match self {
            Self::Version(version) => format!("response from {version}"),
            Self::Status(500) => "500 internal server error".to_owned(),
            Self::Status(502) => "502 bad gateway".to_owned(),
            Self::Status(503) => "503 service unavailable".to_owned(),
            Self::Status(504) => "504 gateway timeout".to_owned(),
            Self::Status(status) => format!("status {status}"),
            Self::Lost => "no response".to_owned(),
        }
    }

    /// The CSS class with its colour.
    fn class(&self) -> &'static str {
        match self {
            Self::Version(version) => match version.as_str() {
                "v1" => "v1",
                "v2" => "v2",
                "v3" => "v3",
                _ => "other",
            },
            Self::Status(504) => "timeout",
            Self::Status(400..=499) => "other",
            Self::Status(_) => "error",
            Self::Lost => "lost",
        }
    }
}

// === impl Story ===

impl Story {
    /// The outcomes that occur, in the order of the legend.
    fn outcomes(&self) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> =
            self.streams.iter().flat_map(|stream| &stream.answers).map(|answer| answer.outcome.clone()).collect();
        outcomes.sort();
        outcomes.dedup();
        outcomes
    }

    /// The window of time that a step's table summarises.
    pub fn window(&self, step: usize) -> (f64, f64) {
        let until = self.steps.get(step + 1).map_or(self.length_ms, |next| next.applied_ms);
        (self.steps[step].settled_ms, until)
    }
}

/// Renders the document.
pub fn html(story: &Story) -> String {
    let mut out = String::new();
    let answers: usize = story.streams.iter().map(|stream| stream.answers.len()).sum();
    let lost = story.streams.iter().flat_map(|stream| &stream.answers).filter(|a| a.outcome == Outcome::Lost).count();
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>Weft demo: responses while routes were applied</title>\n\
         <style>\n{css}</style>\n</head>\n<body>\n<header>\n<p class=\"mark\">Weft demo</p>\n\
         <h1>Responses to the clients while routes were applied</h1>\n<p class=\"place\">{environment}</p>\n\
         <dl class=\"figures\">\n",
        css = include_str!("page.css"),
        environment = escape(&story.environment),
    );
    for (figure, what) in [
        (thousands(answers), "requests"),
        (story.steps.len().to_string(), "changes applied"),
        (format!("{:.0} s", story.length_ms / 1000.0), "of traffic"),
        (thousands(lost), "requests without a response"),
        (format!("{} %", connections::percent(&story.traffic)), "encrypted between the pods"),
    ] {
        let _ = writeln!(out, "<div><dt>{what}</dt><dd>{figure}</dd></div>");
    }
    out.push_str("</dl>\n</header>\n<main>\n");
    chart::section(story, &mut out);
    connections::section(&story.traffic, &mut out);
    steps(story, &mut out);
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

/// Number of marks in a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Points, one per response.
    pub answers: usize,
    /// Labelled marks, one per apply.
    pub applies: usize,
    /// Rows of callers and servers whose requests were all encrypted.
    pub encrypted: usize,
}

/// Counts the marks in a document, from [`html`] or from a browser's DOM dump.
pub fn shown(document: &str) -> Shown {
    let dots = document.split("<path class=\"dots").skip(1).filter_map(|path| path.split('>').next());
    Shown {
        answers: dots.map(|path| path.matches("h0").count()).sum(),
        applies: document.matches("class=\"apply\"").count(),
        encrypted: document.matches(connections::ALL).count(),
    }
}

fn steps(story: &Story, out: &mut String) {
    out.push_str("<section class=\"steps\">\n<h2>Step by step</h2>\n");
    for (index, step) in story.steps.iter().enumerate() {
        let number = index + 1;
        let _ = write!(
            out,
            "<article id=\"step-{number}\">\n<h3><span class=\"number\">{number}</span>{title}</h3>\n\
             <div class=\"columns\"><div class=\"scroll\">\n<table>\n<caption>Results of the clients</caption>\n<thead><tr>\
             <th scope=\"col\">client</th><th scope=\"col\">response</th><th scope=\"col\" class=\"n\">count</th>\
             <th scope=\"col\" class=\"n\">share</th><th scope=\"col\" class=\"n\">median</th>\
             <th scope=\"col\" class=\"n\">p99</th></tr></thead>\n",
            title = escape(&step.title),
        );
        let (from, until) = story.window(index);
        for stream in &story.streams {
            let rows = summarise(stream, from, until);
            let class = if step.affects.contains(&stream.name) { " class=\"about\"" } else { "" };
            let _ = writeln!(out, "<tbody{class}>");
            for (line, row) in rows.iter().enumerate() {
                let client = match line {
                    0 => format!("<th scope=\"rowgroup\" rowspan=\"{}\">{}</th>", rows.len(), escape(&stream.name)),
                    _ => String::new(),
                };
                let _ = writeln!(
                    out,
                    "<tr>{client}<td><i class=\"swatch {}\"></i>{}</td><td class=\"n\">{}</td><td class=\"n\">{:.0} %</td>\
                     <td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
                    row.outcome.class(),
                    escape(&row.outcome.label()),
                    thousands(row.count),
                    row.share * 100.0,
                    millis(row.median_ms),
                    millis(row.p99_ms),
                );
            }
            out.push_str("</tbody>\n");
        }
        let _ = write!(
            out,
            "</table>\n</div>\n<div class=\"applied\"><h4>Applied manifest</h4>\n<pre tabindex=\"0\">{yaml}</pre></div></div>\n\
             <details><summary>Output of <code>{command}</code></summary>\n<pre tabindex=\"0\">{status}</pre></details>\n\
             </article>\n",
            yaml = escape(step.yaml.trim()),
            command = escape(&step.status_command),
            status = escape(step.status.trim_end()),
        );
    }
    out.push_str("</section>\n");
}

/// Formats a duration with at most three digits.
pub fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 9.95 => format!("{ms:.1} ms"),
        ms if ms < 999.5 => format!("{ms:.0} ms"),
        ms => format!("{:.2} s", ms / 1000.0),
    }
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            // A narrow no-break space (ISO 80000-1).
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests;
