//! `make demo`, once the cluster is up and the images are loaded.

use anyhow::{Result, bail};
use weft_e2e::cluster::target;
use weft_e2e::demo::{self, Options};

const USAGE: &str = "usage: weft-e2e-demo [--remove] [--namespace shop] [--page target/demo/index.html]";

fn main() -> Result<()> {
    let mut options = Options { namespace: "shop".to_owned(), page: target().join("demo/index.html") };
    let mut arguments = std::env::args().skip(1).peekable();
    let remove = arguments.next_if_eq("--remove").is_some();
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--namespace", Some(namespace)) => options.namespace = namespace,
            ("--page", Some(page)) => options.page = page.into(),
            _ => bail!("{USAGE}"),
        }
    }
    if remove { demo::remove(&options) } else { demo::run(&options).map(drop) }
}
