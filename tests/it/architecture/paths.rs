//! Reads which rooms and which crates a source names, in `use` and in any other path, macros included.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Something that a source names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// A path from the root of the package, without `crate::`.
    Room(String),
    /// The first part of any other path: mostly a crate or a module at hand.
    Crate(String),
}

/// What `source` names outside of `mod tests`; `depth` is 1 for the file of a room, and one more for
/// each module further down.
pub(super) fn paths(source: &str, depth: usize) -> Vec<Named> {
    let tokens: TokenStream = source.parse().unwrap_or_else(|e| panic!("no Rust: {e}"));
    let mut named = Vec::new();
    walk(&trees(tokens), depth, &mut named);
    named
}

fn trees(tokens: TokenStream) -> Vec<TokenTree> {
    tokens.into_iter().collect()
}

fn walk(tokens: &[TokenTree], depth: usize, named: &mut Vec<Named>) {
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Group(group) => walk(&trees(group.stream()), depth, named),
            TokenTree::Ident(ident) if ident == "mod" => {
                if let (Some(name), Some(body)) = (ident_at(tokens, at + 1), body_at(tokens, at + 2)) {
                    if name != "tests" {
                        walk(&body, depth + 1, named);
                    }
                    at += 2;
                }
            }
            TokenTree::Ident(_) if begins_a_path(tokens, at) => path(tokens, at, depth, named),
            _ => {}
        }
        at += 1;
    }
}

/// Whether the word at `at` is the first of a path: not after `::`, unless that begins the path.
fn begins_a_path(tokens: &[TokenTree], at: usize) -> bool {
    if at > 0 && is_punct(tokens, at - 1, '.') {
        return false;
    }
    if at < 2 || !colons(tokens, at - 2) {
        return true;
    }
    let before = at.checked_sub(3).map(|n| &tokens[n]);
    match before {
        // `x::y` and `<x>::y` go on; `use ::x` begins.
        Some(TokenTree::Ident(word)) => word == "use" || word == "as",
        Some(TokenTree::Punct(punct)) => punct.as_char() != '>',
        _ => true,
    }
}

fn path(tokens: &[TokenTree], at: usize, depth: usize, named: &mut Vec<Named>) {
    let Some(first) = ident_at(tokens, at) else { return };
    let goes_on = colons(tokens, at + 1);
    match first.as_str() {
        "crate" if goes_on => tree(&tokens[at + 3..], "", named),
        "super" if goes_on => {
            let (mut at, mut above) = (at, 0);
            while ident_at(tokens, at).as_deref() == Some("super") && colons(tokens, at + 1) {
                (at, above) = (at + 3, above + 1);
            }
            if above == depth {
                tree(&tokens[at..], "", named);
            }
        }
        _ => {
            let before = at.checked_sub(1).and_then(|n| ident_at(tokens, n));
            let imported = matches!(before.as_deref(), Some("use" | "crate"));
            if goes_on || imported {
                named.push(Named::Crate(first));
            }
        }
    }
}

/// The paths of what follows `crate::`: one, or several in braces.
fn tree(tokens: &[TokenTree], prefix: &str, named: &mut Vec<Named>) {
    let join = |part: &str| if prefix.is_empty() { part.to_owned() } else { format!("{prefix}::{part}") };
    match tokens.first() {
        Some(TokenTree::Ident(part)) if part == "self" => named.push(Named::Room(prefix.to_owned())),
        Some(TokenTree::Ident(part)) if colons(tokens, 1) => {
            tree(&tokens[3..], &join(&part.to_string()), named)
        }
        Some(TokenTree::Ident(part)) => named.push(Named::Room(join(&part.to_string()))),
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
            let inner = trees(group.stream());
            for item in inner.split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ',')) {
                tree(item, prefix, named);
            }
        }
        Some(TokenTree::Punct(star)) if star.as_char() == '*' => named.push(Named::Room(join("*"))),
        // `Vec::<T>` and the like: the path ends before it.
        Some(_) if !prefix.is_empty() => named.push(Named::Room(prefix.to_owned())),
        _ => {}
    }
}

fn ident_at(tokens: &[TokenTree], at: usize) -> Option<String> {
    match tokens.get(at) {
        Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
        _ => None,
    }
}

fn body_at(tokens: &[TokenTree], at: usize) -> Option<Vec<TokenTree>> {
    match tokens.get(at) {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => Some(trees(group.stream())),
        _ => None,
    }
}

fn is_punct(tokens: &[TokenTree], at: usize, wanted: char) -> bool {
    matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

fn colons(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens, at, ':') && is_punct(tokens, at + 1, ':')
}
