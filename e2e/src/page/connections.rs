//! Who called whom, and how much of it was encrypted, as the proxies of both sides counted it.

use std::fmt::Write;

use super::{escape, thousands};

/// Requests of one caller, or to one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// The app whose proxies counted them.
    pub app: String,
    /// The Service that they were sent to; none for requests received.
    pub service: Option<String>,
    /// All of them.
    pub requests: usize,
    /// Those of mutual TLS: encrypted, and both sides proved who they are.
    pub encrypted: usize,
}

/// Text of a row whose requests were all encrypted.
pub(super) const ALL: &str = "<td class=\"v3\">all</td>";

// === impl Traffic ===

impl Traffic {
    /// Whether there were requests, and all were encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.requests > 0 && self.requests == self.encrypted
    }
}

/// The share of encrypted requests, in percent, rounded down; 0 without requests.
pub(super) fn percent(traffic: &[Traffic]) -> usize {
    let sum = |count: fn(&Traffic) -> usize| traffic.iter().map(count).sum::<usize>();
    (100 * sum(|traffic| traffic.encrypted)).checked_div(sum(|traffic| traffic.requests)).unwrap_or(0)
}

/// The section of the page, nothing without traffic.
pub(super) fn section(traffic: &[Traffic], out: &mut String) {
    if traffic.is_empty() {
        return;
    }
    out.push_str(
        "<section class=\"steps\">\n<h2>Which connections are encrypted</h2>\n<article id=\"connections\">\n<div class=\"columns\">\n",
    );
    let (sent, received): (Vec<_>, Vec<_>) = traffic.iter().partition(|traffic| traffic.service.is_some());
    table("Sent, as the proxies of the callers counted", &["from", "to Service"], &sent, out);
    table("Received, as the proxies of the servers counted", &["by"], &received, out);
    out.push_str("</div>\n</article>\n</section>\n");
}

fn table(caption: &str, names: &[&str], traffic: &[&Traffic], out: &mut String) {
    let names: String = names.iter().map(|name| format!("<th scope=\"col\">{name}</th>")).collect();
    let _ = writeln!(
        out,
        "<div class=\"scroll\">\n<table>\n<caption>{caption}</caption>\n<thead><tr>{names}<th scope=\"col\" class=\"n\">requests</th>\
         <th scope=\"col\">encrypted</th></tr></thead>\n<tbody>"
    );
    for row in traffic {
        let service = row.service.as_ref().map(|service| format!("<td>{}</td>", escape(service))).unwrap_or_default();
        let encrypted = match row.encrypted {
            _ if row.is_encrypted() => ALL.to_owned(),
            0 => "<td class=\"error\">none</td>".to_owned(),
            some => format!("<td class=\"error\">{}</td>", thousands(some)),
        };
        let (app, requests) = (escape(&row.app), thousands(row.requests));
        let _ =
            writeln!(out, "<tr><th scope=\"row\">{app}</th>{service}<td class=\"n\">{requests}</td>{encrypted}</tr>");
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
}
