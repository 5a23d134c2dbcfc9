//! Methods of Python's texts that chat templates use and the template engine does not have, or has otherwise.
//! Knows texts; knows no templates. Cost: none worth naming.

use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

/// Answers a method call that the engine itself does not know.
pub fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => text_method(text, name, args)?,
        _ => None,
    };
    match own {
        Some(value) => Ok(value),
        None => pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn text_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let parts = |parts: [&str; 3]| Value::from(parts.map(Value::from).to_vec());
    Ok(Some(match name {
        "title" => {
            let () = from_args(args)?;
            Value::from(title(text))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" => {
            let separator = separator(args)?;
            let found = text.split_once(separator);
            parts(found.map_or([text, "", ""], |(before, after)| [before, separator, after]))
        }
        "rpartition" => {
            let separator = separator(args)?;
            let found = text.rsplit_once(separator);
            parts(found.map_or(["", "", text], |(before, after)| [before, separator, after]))
        }
        "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
            let most =
                most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
            Value::from(from_the_end(text, separator, most).into_iter().map(Value::from).collect::<Vec<_>>())
        }
        _ => return Ok(None),
    }))
}

fn separator(args: &[Value]) -> Result<&str, Error> {
    let (separator,): (&str,) = from_args(args)?;
    match separator {
        "" => Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        separator => Ok(separator),
    }
}

/// Every letter behind anything but a letter is a capital: `it's` becomes `It'S`, as in Python.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for letter in text.chars() {
        match inside {
            true => out.extend(letter.to_lowercase()),
            false => out.extend(letter.to_uppercase()),
        }
        inside = letter.is_alphabetic();
    }
    out
}

/// At most so many pieces, cut from the end; without a separator at white space.
fn from_the_end<'a>(text: &'a str, separator: Option<&str>, most: usize) -> Vec<&'a str> {
    let mut pieces: Vec<&str> = Vec::new();
    match separator {
        Some(separator) if !separator.is_empty() => pieces.extend(text.rsplitn(most, separator)),
        _ => {
            let mut rest = text.trim_end();
            while !rest.is_empty() {
                let cut = if pieces.len() + 1 < most { rest.rfind(char::is_whitespace) } else { None };
                let at = cut.map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
                pieces.push(&rest[at..]);
                rest = rest[..cut.unwrap_or(0)].trim_end();
            }
        }
    }
    pieces.reverse();
    pieces
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;

    #[test]
    fn methods_are_pythons() {
        let mut environment = Environment::new();
        environment.set_unknown_method_callback(super::method);
        let cases = [
            ("'a-b-c'.rsplit('-', 1) | join('|')", "a-b|c"),
            ("'a-b-c'.rsplit('-') | join('|')", "a|b|c"),
            ("' a b  c '.rsplit(none, 1) | join('|')", " a b|c"),
            ("'x</t>y</t>z'.partition('</t>') | join('|')", "x|</t>|y</t>z"),
            ("'x</t>y</t>z'.rpartition('</t>')[0]", "x</t>y"),
            ("'plain'.partition(':') | join('|')", "plain||"),
            ("'plain'.rpartition(':') | join('|')", "||plain"),
            ("'<a>b'.removeprefix('<a>').removesuffix('c')", "b"),
            ("\"it's ONE o'clock\".title()", "It'S One O'Clock"),
            ("'a b'.split(' ')[-1]", "b"),
        ];
        for (expression, want) in cases {
            let got = environment.render_str(&format!("{{{{ {expression} }}}}"), ()).unwrap();
            assert_eq!(got, want, "{expression}");
        }
        assert!(environment.render_str("{{ 'a'.partition('') }}", ()).is_err());
        assert!(environment.render_str("{{ 'a'.nothing() }}", ()).is_err());
    }
}
