//! Checks that the imports of a crate go one way: from a file to files of its own module or of lower layers, and never
//! in a circle. Reads tokens, not types: an import is a `use`, or a path that begins with `crate`, `super`, `self`, the
//! library's name, a child module or an imported module. `mod` declarations, comments, strings and test code are none.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::tokens::{Located, Source, Token, is_below, sources, word};

/// The order of the modules of one crate. A module is named by its path below `src`: `compile/route`, `lib`, `main`.
#[derive(Clone, Copy)]
pub(crate) struct Order {
    /// Folder of the sources.
    pub src: &'static str,
    /// Name of the library, as `main.rs` imports it.
    pub library: &'static str,
    /// The lowest layer first. An entry stands for a module and all modules below it that have no entry of their own;
    /// inside an entry only circles are forbidden. Entries of one layer do not import each other.
    pub layers: &'static [&'static [&'static str]],
    /// Circles that stay, each with all its modules. They may import each other.
    pub circles: &'static [&'static [&'static str]],
}

/// An import: which module, and in which line.
type Imports = BTreeMap<String, usize>;

// === impl Order ===

impl Order {
    /// Returns what is wrong; `files` are the texts of the sources by their path below `src`.
    pub(crate) fn violations(&self, files: &BTreeMap<String, String>) -> Vec<String> {
        let sources = sources(files);
        let imports = self.imports(&sources);
        let at = |module: &str, line: usize| format!("{}/{}:{line}", self.src, sources[module].path);
        let mut violations = self.unknown(imports.keys());
        for (from, of_one) in &imports {
            for (to, line) in of_one {
                let (Some(from_place), Some(to_place)) = (self.place(from), self.place(to)) else { continue };
                let (from_layer, to_layer) = (from_place.0, to_place.0);
                if from_place != to_place && to_layer >= from_layer && !self.share_circle(from, to) {
                    let (from_entry, to_entry) = (from_place.1, to_place.1);
                    violations.push(format!(
                        "{}: {from} ({from_entry}, layer {from_layer}) must not import {to} ({to_entry}, layer \
                         {to_layer}); move what it needs to a lower layer",
                        at(from, *line)
                    ));
                }
            }
        }
        violations.extend(self.unexpected_circles(&imports, at));
        violations
    }

    /// The imports of each module.
    fn imports(&self, sources: &BTreeMap<String, Source<'_>>) -> BTreeMap<String, Imports> {
        let known = sources.keys().cloned().collect();
        let scan = |module| Scan { order: self, known: &known, module };
        sources.iter().map(|(module, source)| (module.clone(), scan(module).imports(&source.tokens))).collect()
    }

    /// The layer of a module, from 1, and its entry there: the longest one that it is below.
    fn place(&self, module: &str) -> Option<(usize, &'static str)> {
        let entries = self.layers.iter().zip(1..).flat_map(|(layer, at)| layer.iter().map(move |entry| (at, *entry)));
        entries.filter(|(_, entry)| is_below(module, entry)).max_by_key(|(_, entry)| entry.len())
    }

    /// Modules that have no layer, and entries that have no module.
    fn unknown<'a>(&self, modules: impl Iterator<Item = &'a String> + Clone) -> Vec<String> {
        let without_layer = modules.clone().filter(|module| self.place(module).is_none());
        let without_layer = without_layer.map(|module| format!("{}: {module} has no layer", self.src));
        let entries: Vec<&str> = self.layers.iter().flat_map(|layer| layer.iter().copied()).collect();
        let is_empty =
            |entry: &&str| !modules.clone().any(|module| self.place(module).is_some_and(|it| it.1 == *entry));
        let empty = entries.iter().filter(|entry| is_empty(entry));
        let empty = empty.map(|entry| format!("{}: the entry {entry} is no module", self.src));
        let twice = entries.iter().enumerate().filter(|(index, entry)| entries[..*index].contains(entry));
        let twice = twice.map(|(_, entry)| format!("{}: {entry} has two layers", self.src));
        without_layer.chain(empty).chain(twice).collect()
    }

    fn share_circle(&self, one: &str, other: &str) -> bool {
        self.circles.iter().any(|circle| circle.contains(&one) && circle.contains(&other))
    }

    /// Circles that are not listed, each with one way around, and listed circles that are gone.
    fn unexpected_circles(
        &self,
        imports: &BTreeMap<String, Imports>,
        at: impl Fn(&str, usize) -> String,
    ) -> Vec<String> {
        let mut found = BTreeSet::new();
        let mut violations = Vec::new();
        for start in imports.keys() {
            let from_start = reachable(imports, start);
            let circle: BTreeSet<&str> = from_start
                .keys()
                .copied()
                .filter(|module| reachable(imports, module).contains_key(start.as_str()))
                .collect();
            if circle.is_empty() || !found.insert(circle.clone()) || self.lists(&circle) {
                continue;
            }
            let mut way = VecDeque::from([start.as_str()]);
            while let Some(previous) = from_start.get(way[0]).filter(|_| way.len() == 1 || way[0] != start) {
                way.push_front(previous);
            }
            let steps: Vec<&str> = way.into_iter().collect();
            let steps =
                steps.windows(2).map(|step| format!("{} imports {}", at(step[0], imports[step[0]][step[1]]), step[1]));
            let steps = steps.collect::<Vec<_>>().join(", ");
            violations.push(format!("{}: a circle of {} files: {steps}", self.src, circle.len()));
        }
        let gone = self.circles.iter().filter(|circle| !found.contains(&circle.iter().copied().collect()));
        violations.extend(gone.map(|circle| format!("{}: {circle:?} is no circle (any more)", self.src)));
        violations
    }

    fn lists(&self, circle: &BTreeSet<&str>) -> bool {
        self.circles.iter().any(|listed| listed.iter().copied().collect::<BTreeSet<_>>() == *circle)
    }
}

/// The modules that can be reached from one by at least one import, each with the module before it on a shortest way.
fn reachable<'a>(imports: &'a BTreeMap<String, Imports>, start: &'a str) -> BTreeMap<&'a str, &'a str> {
    let mut previous = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(module) = queue.pop_front() {
        for next in imports[module].keys().filter(|next| imports.contains_key(*next)) {
            if !previous.contains_key(next.as_str()) {
                previous.insert(next.as_str(), module);
                queue.push_back(next);
            }
        }
    }
    previous
}

/// Finds the imports of one file.
struct Scan<'a> {
    order: &'a Order,
    known: &'a BTreeSet<String>,
    module: &'a str,
}

// === impl Scan ===

impl Scan<'_> {
    fn imports(&self, tokens: &[Located]) -> Imports {
        let mut uses = Vec::new();
        let mut paths = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            let before = at.checked_sub(1).map(|before| &tokens[before].1);
            let token = &tokens[at].1;
            let is_capture = matches!(tokens.get(at + 1), Some((_, Token::Mark('<'))));
            if *token == word("use") && !is_capture {
                at = read_use(tokens, at + 1, &mut Vec::new(), &mut uses);
            } else if matches!(token, Token::Word(_)) && before != Some(&Token::Separator) {
                let line = tokens[at].0;
                let is_visibility = before == Some(&word("in")) && at > 1 && tokens[at - 2].1 == Token::Mark('(');
                let mut path = Vec::new();
                while let Some((_, Token::Word(segment))) = tokens.get(at) {
                    path.push(segment.clone());
                    if !matches!(tokens.get(at + 1), Some((_, Token::Separator))) {
                        break;
                    }
                    at += 2;
                }
                if path.len() > 1 && !is_visibility {
                    paths.push((line, path));
                }
            }
            at += 1;
        }

        let mut names = BTreeMap::new();
        // Twice: a `use` may begin with a module that another one imports.
        for _ in 0..2 {
            for (_, path, name) in &uses {
                if let Some((module, true)) = self.resolve(path, &names) {
                    names.insert(name.clone(), module);
                }
            }
        }
        let uses = uses.into_iter().map(|(line, path, _)| (line, path));
        let mut imports = Imports::new();
        for (line, path) in uses.chain(paths) {
            if let Some((module, _)) = self.resolve(&path, &names).filter(|(module, _)| module != self.module) {
                let first = imports.entry(module).or_insert(line);
                *first = line.min(*first);
            }
        }
        imports
    }

    /// The module that a path leads to or into, and whether it ends there.
    fn resolve(&self, path: &[String], names: &BTreeMap<String, String>) -> Option<(String, bool)> {
        let root = if self.known.contains("lib") { "lib" } else { "main" };
        let is_library = self.module != "main" && !self.module.starts_with("bin/");
        let child = |module: &str, name: &str| {
            let child = if module == root { name.to_owned() } else { format!("{module}/{name}") };
            Some(child).filter(|child| self.known.contains(child) && child != root)
        };
        let parent = |module: &str| module.rsplit_once('/').map_or(root, |(parent, _)| parent).to_owned();
        let (first, mut rest) = path.split_first()?;
        let mut module = match first.as_str() {
            "crate" => root.to_owned(),
            "self" => self.module.to_owned(),
            "super" => parent(self.module),
            name if name == self.order.library => root.to_owned(),
            name => names.get(name).cloned().or_else(|| child(self.module, name).filter(|_| is_library))?,
        };
        while let Some((name, after)) = rest.split_first() {
            match (name.as_str(), child(&module, name)) {
                ("super", _) => module = parent(&module),
                (_, Some(child)) => module = child,
                _ => break,
            }
            rest = after;
        }
        Some((module, rest.is_empty()))
    }
}

/// Reads a tree of `use`; adds the line, path and name of each leaf, and returns where it ends.
fn read_use(
    tokens: &[Located],
    mut at: usize,
    prefix: &mut Vec<String>,
    uses: &mut Vec<(usize, Vec<String>, String)>,
) -> usize {
    let depth = prefix.len();
    let mut name = None;
    let mut is_open = false;
    while let Some((line, token)) = tokens.get(at) {
        match token {
            Token::Word(text) if text == "as" => {
                if let Some((_, Token::Word(other))) = tokens.get(at + 1) {
                    name = Some(other.clone());
                }
                at += 1;
            }
            Token::Word(text) => {
                is_open = true;
                if text != "self" || prefix.is_empty() {
                    prefix.push(text.clone());
                }
            }
            Token::Mark('*') => is_open = true,
            Token::Mark('{') => {
                at += 1;
                while !matches!(tokens.get(at), None | Some((_, Token::Mark('}')))) {
                    at = read_use(tokens, at, prefix, uses);
                    if matches!(tokens.get(at), Some((_, Token::Mark(',')))) {
                        at += 1;
                    }
                }
                is_open = false;
            }
            Token::Separator => {}
            Token::Mark(_) => {
                if is_open {
                    let name = name.or_else(|| prefix.last().cloned()).unwrap_or_default();
                    uses.push((*line, prefix.clone(), name));
                }
                break;
            }
        }
        at += 1;
    }
    prefix.truncate(depth);
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: Order =
        Order { src: "made/src", library: "made", layers: &[&["leaf", "other"], &["room"], &["lib"]], circles: &[] };

    fn violations(order: Order, changed: &[(&str, &str)]) -> Vec<String> {
        let tree = [
            ("lib.rs", "pub mod leaf;\npub mod other;\npub mod room;\npub use room::Door;\n"),
            ("leaf.rs", "pub struct Leaf;\n"),
            ("other.rs", "pub struct Other;\n"),
            ("room/mod.rs", "mod door;\nmod wall;\npub use self::door::Door;\n"),
            ("room/door.rs", "use super::wall::Wall;\nuse crate::leaf::Leaf;\npub struct Door(Leaf, Wall);\n"),
            ("room/wall.rs", "pub struct Wall;\n"),
        ];
        let files = tree.iter().chain(changed).map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        order.violations(&files)
    }

    #[test]
    fn imports_downwards_are_allowed() {
        assert_eq!(violations(ORDER, &[]), Vec::<String>::new());
    }

    #[test]
    fn imports_upwards_are_found_with_line_and_layers() {
        let expected = "made/src/leaf.rs:2: leaf (leaf, layer 1) must not import room/door (room, layer 2); \
                        move what it needs to a lower layer";
        for text in [
            "\nuse crate::room::door::Door;",
            "\nuse crate::{other as it, room::{self, door::{Door, Handle}}};",
            "//! x\nuse super::room::door;\nfn f() { door::open() }",
            "\nfn f(it: &'static str) -> crate::room::door::Door { todo!(\"}\") }",
            "/* /* */ */ const C: char = '\"';\nuse made::room::door as gate;",
            "const R: &str = r#\"\"#;\npub(in crate::leaf) use crate::room::door::*;",
        ] {
            let found = violations(ORDER, &[("leaf.rs", text)]);
            let upwards = found.iter().filter(|it| it.contains("must not import room/door")).collect::<Vec<_>>();
            assert_eq!(upwards, [expected], "{text}");
        }
    }

    #[test]
    fn modules_of_one_layer_do_not_import_each_other() {
        let found = violations(ORDER, &[("leaf.rs", "use crate::other::Other;")]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains("leaf.rs:1: leaf (leaf, layer 1) must not import other (other, layer 1)"),
            "{found:?}"
        );
    }

    #[test]
    fn paths_through_an_imported_module_lead_to_its_file() {
        let order = Order { layers: &[&["leaf", "room/wall"], &["other"], &["room"], &["lib"]], ..ORDER };
        assert_eq!(violations(order, &[("other.rs", "use crate::room::wall;")]), Vec::<String>::new());
        let found =
            violations(order, &[("other.rs", "use crate::leaf;\nuse crate::room;\n\nfn f() { room::door::open() }")]);
        assert!(
            found.iter().any(|it| it.contains("other.rs:4: other (other, layer 2) must not import room/door")),
            "{found:?}"
        );
    }

    #[test]
    fn comments_strings_and_tests_import_nothing() {
        let found = violations(
            ORDER,
            &[
                (
                    "leaf.rs",
                    "// crate::room::f()\nconst A: &str = \"crate::room::f()\\\"\";\n#[cfg(test)]\nmod tests;\n",
                ),
                ("leaf/tests.rs", "use crate::room::Door;\n"),
                ("other.rs", "#[cfg(test)]\nmod tests {\n use crate::room::Door;\n}\n#[cfg(test)]\nuse crate::room;\n"),
                ("room/wall.rs", "struct Wall {\n #[cfg(test)]\n door: Map<u8, super::Door>,\n}\n"),
            ],
        );
        assert_eq!(found, Vec::<String>::new());
        let after = "struct A {\n #[cfg(test)]\n b: B<C, D>,\n e: crate::room::Door,\n}\n";
        assert_eq!(violations(ORDER, &[("other.rs", after)]).len(), 1);
    }

    #[test]
    fn circles_are_found_even_inside_a_module() {
        let wall = ("room/wall.rs", "\nuse super::Door;\npub struct Wall;");
        let found = violations(ORDER, &[wall]);
        let expected = "made/src: a circle of 3 files: made/src/room/mod.rs:3 imports room/door, \
                        made/src/room/door.rs:1 imports room/wall, made/src/room/wall.rs:2 imports room";
        assert_eq!(found, [expected]);
        let listed = Order { circles: &[&["room", "room/door", "room/wall"]], ..ORDER };
        assert_eq!(violations(listed, &[wall]), Vec::<String>::new());
        assert_eq!(violations(listed, &[]).len(), 1, "a listed circle that is gone");
    }

    #[test]
    fn unknown_modules_and_entries_are_found() {
        assert_eq!(violations(ORDER, &[("new.rs", "")]), ["made/src: new has no layer"]);
        let order = Order { layers: &[&["leaf", "other", "leaf"], &["room", "gone"], &["lib"]], ..ORDER };
        assert_eq!(violations(order, &[]), ["made/src: the entry gone is no module", "made/src: leaf has two layers"]);
    }
}
