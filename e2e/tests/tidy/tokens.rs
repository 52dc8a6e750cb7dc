//! The tokens of a crate's Rust code, without comments, literals, lifetimes and test code. They show which paths the
//! code names, without a parser.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::str::Chars;

/// A token and its line.
pub(crate) type Located = (usize, Token);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Word(String),
    /// `::`
    Separator,
    Mark(char),
}

/// A file of a crate.
pub(crate) struct Source<'a> {
    /// Its path below `src`.
    pub path: &'a str,
    /// Its tokens.
    pub tokens: Vec<Located>,
}

/// Reads the sources of a crate, given by their path below `src`, without test code. A module is named by its path:
/// `compile/mod.rs` is `compile`, `compile/route.rs` is `compile/route`.
pub(crate) fn sources(files: &BTreeMap<String, String>) -> BTreeMap<String, Source<'_>> {
    let mut tests = BTreeSet::new();
    let mut sources = BTreeMap::new();
    for (path, text) in files {
        let module = path.strip_suffix(".rs").unwrap_or(path);
        let module = module.strip_suffix("/mod").unwrap_or(module);
        let tokens = without_tests(tokenize(text), module, &mut tests);
        sources.insert(module.to_owned(), Source { path, tokens });
    }
    sources.retain(|module, _| !tests.iter().any(|test| is_below(module, test)));
    sources
}

/// Whether a module is another one, or inside it.
pub(crate) fn is_below(module: &str, ancestor: &str) -> bool {
    module.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The crates that code names: the first word of each path, and what a `use` takes whole.
pub(crate) fn first_words(tokens: &[Located]) -> impl Iterator<Item = &str> {
    tokens.iter().enumerate().filter_map(|(at, (_, token))| {
        let Token::Word(word) = token else { return None };
        let previous = |back: usize| at.checked_sub(back).map(|at| &tokens[at].1);
        let continues = previous(1) == Some(&Token::Separator) && matches!(previous(2), Some(Token::Word(_)));
        let leads = matches!(tokens.get(at + 1), Some((_, Token::Separator)));
        let whole = previous(1) == Some(&self::word("use"));
        (!continues && (leads || whole)).then_some(word.as_str())
    })
}

/// Removes items with `#[cfg(test)]` or `#[cfg(any(test, ...))]`; adds those that are modules in files to `tests`.
fn without_tests(tokens: Vec<Located>, module: &str, tests: &mut BTreeSet<String>) -> Vec<Located> {
    let is = |at: usize, expected: &[&str]| {
        let found = tokens[at..].iter().map(|(_, token)| match token {
            Token::Word(text) => text.clone(),
            Token::Separator => "::".to_owned(),
            Token::Mark(mark) => mark.to_string(),
        });
        found.take(expected.len()).eq(expected.iter().copied())
    };
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if !is(at, &["#", "[", "cfg", "(", "test"]) && !is(at, &["#", "[", "cfg", "(", "any", "(", "test"]) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        while is(at, &["#", "["]) {
            at = end_of(&tokens, at + 1) + 1;
        }
        let item = at;
        // To the end of the item: its `;` or `,` or closing brace.
        let mut angles = 0;
        while let Some((_, token)) = tokens.get(at) {
            match token {
                Token::Mark('<') => angles += 1,
                Token::Mark('>') if tokens[at - 1].1 != Token::Mark('-') && tokens[at - 1].1 != Token::Mark('=') => {
                    angles -= 1;
                }
                Token::Mark('(' | '[') => at = end_of(&tokens, at),
                Token::Mark('{') => {
                    at = end_of(&tokens, at) + 1;
                    break;
                }
                Token::Mark(';') => {
                    at += 1;
                    break;
                }
                Token::Mark(',') if angles == 0 => {
                    at += 1;
                    break;
                }
                Token::Mark(')' | ']' | '}') => break,
                _ => {}
            }
            at += 1;
        }
        let declared = tokens[item..at].windows(3).find_map(|three| match three {
            [(_, mod_), (_, Token::Word(name)), (_, Token::Mark(';'))] if *mod_ == word("mod") => Some(name),
            _ => None,
        });
        let parent = if ["lib", "main"].contains(&module) { String::new() } else { format!("{module}/") };
        tests.extend(declared.map(|name| format!("{parent}{name}")));
    }
    kept
}

/// The index of the bracket that closes the one at an index.
fn end_of(tokens: &[Located], open: usize) -> usize {
    let mut depth = 0;
    for (at, (_, token)) in tokens.iter().enumerate().skip(open) {
        match token {
            Token::Mark('(' | '[' | '{') => depth += 1,
            Token::Mark(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    tokens.len()
}

pub(crate) fn word(text: &str) -> Token {
    Token::Word(text.to_owned())
}

/// The tokens of Rust code with their lines, without comments, literals and lifetimes.
pub(crate) fn tokenize(text: &str) -> Vec<Located> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' => line += 1,
            '/' if chars.peek() == Some(&'/') => while chars.next_if(|next| *next != '\n').is_some() {},
            '/' if chars.peek() == Some(&'*') => skip_block_comment(&mut chars, &mut line),
            '"' => skip_string(&mut chars, &mut line),
            '\'' => skip_quote(&mut chars),
            ':' if chars.next_if_eq(&':').is_some() => tokens.push((line, Token::Separator)),
            c if c.is_alphanumeric() || c == '_' => {
                let mut text = String::from(c);
                while let Some(next) = chars.next_if(|next| next.is_alphanumeric() || *next == '_') {
                    text.push(next);
                }
                let is_raw = ["r", "br", "cr"].contains(&text.as_str());
                match chars.peek() {
                    Some('"' | '#') if is_raw => {
                        // A raw identifier (`r#type`) has no quote after its `#`; its name becomes the next token.
                        let mut hashes = 0;
                        while chars.next_if_eq(&'#').is_some() {
                            hashes += 1;
                        }
                        if chars.next_if_eq(&'"').is_some() {
                            skip_raw_string(&mut chars, &mut line, hashes);
                        }
                    }
                    Some('"') if ["b", "c"].contains(&text.as_str()) => {}
                    Some('\'') if text == "b" => {}
                    _ => tokens.push((line, Token::Word(text))),
                }
            }
            c if c.is_whitespace() => {}
            c => tokens.push((line, Token::Mark(c))),
        }
    }
    tokens
}

fn skip_block_comment(chars: &mut Peekable<Chars<'_>>, line: &mut usize) {
    let mut depth = 0;
    let mut previous = '/';
    for c in chars.by_ref() {
        *line += usize::from(c == '\n');
        match (previous, c) {
            ('/', '*') => (depth, previous) = (depth + 1, ' '),
            ('*', '/') => (depth, previous) = (depth - 1, ' '),
            _ => previous = c,
        }
        if depth == 0 {
            return;
        }
    }
}

fn skip_string(chars: &mut Peekable<Chars<'_>>, line: &mut usize) {
    while let Some(c) = chars.next() {
        *line += usize::from(c == '\n');
        match c {
            '"' => return,
            '\\' => *line += usize::from(chars.next() == Some('\n')),
            _ => {}
        }
    }
}

fn skip_raw_string(chars: &mut Peekable<Chars<'_>>, line: &mut usize, hashes: usize) {
    let mut seen = None;
    for c in chars.by_ref() {
        *line += usize::from(c == '\n');
        seen = match (c, seen) {
            ('"', _) => Some(0),
            ('#', Some(count)) => Some(count + 1),
            _ => None,
        };
        if seen == Some(hashes) {
            return;
        }
    }
}

/// Skips a character literal, or the quote of a lifetime and its name.
fn skip_quote(chars: &mut Peekable<Chars<'_>>) {
    if chars.next() == Some('\\') {
        chars.next();
        while chars.next().is_some_and(|c| c != '\'') {}
    } else if chars.next_if_eq(&'\'').is_none() {
        while chars.next_if(|next| next.is_alphanumeric() || *next == '_').is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_words_are_those_of_paths_outside_tests() {
        let text = "//! a::b\nuse one;\nuse two::{self, b};\n#[three::main]\nfn f(it: four::It) { it.x(\"c::d\") }\n\
                    fn g() { crate::e::f(); ::five::g(r#\"h::i\"#, 'j') }\n#[cfg(test)]\nmod tests { use k::l; }\n";
        let files = BTreeMap::from([("lib.rs".to_owned(), text.to_owned())]);
        let sources = sources(&files);
        let words: Vec<&str> = first_words(&sources["lib"].tokens).collect();
        assert_eq!(words, ["one", "two", "three", "four", "crate", "five"]);
    }
}
