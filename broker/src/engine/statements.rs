//! Statements that an operator wrote, and what is put into them: `{{name}}`, `{{password}}` and
//! `{{expiration}}`, and nothing else ever.
//!
//! A placeholder in the open becomes a quoted identifier or literal. Inside quotes that the operator
//! wrote it becomes the bare text. Each value is held to an alphabet without any quote, backslash or
//! space, so that it cannot leave where it was put.

#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use zeroize::Zeroizing;

/// Most statements of one kind, and most bytes of one.
const MOST: (usize, usize) = (64, 64 * 1024);

/// Whose SQL it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// PostgreSQL.
    Postgres,
    /// MariaDB and MySQL.
    Mysql,
}

/// What can be put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// The user's name.
    Name,
    /// Its password, or what the server makes of one.
    Password,
    /// When it ends.
    Expiration,
}

impl Placeholder {
    fn text(self) -> &'static str {
        match self {
            Self::Name => "{{name}}",
            Self::Password => "{{password}}",
            Self::Expiration => "{{expiration}}",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Name, Self::Password, Self::Expiration]
            .into_iter()
            .find(|known| &known.text()[2..known.text().len() - 2] == name)
    }
}

/// What is put in.
#[derive(Clone, Copy)]
pub struct Values<'a> {
    /// Lower-case letters, digits and `_`; begins with a letter; at most 63 bytes.
    pub name: &'a str,
    /// Printable ASCII without quotes and backslash. Empty where statements cannot ask for it.
    pub password: &'a str,
    /// Digits and `-:+. TZ`. Empty where statements cannot ask for it.
    pub expiration: &'a str,
}

impl Values<'_> {
    fn check(&self) -> Result<(), String> {
        let name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let begins = self.name.as_bytes().first();
        if !begins.is_some_and(u8::is_ascii_lowercase)
            || self.name.len() > 63
            || !self.name.bytes().all(name)
        {
            return Err("a user's name: expected 1 to 63 of a-z, 0-9 and '_'".to_owned());
        }
        if !self.password.bytes().all(is_plain) {
            return Err("a password: expected printable characters without quotes".to_owned());
        }
        let time = |byte: u8| byte.is_ascii_digit() || b"-:+. TZ".contains(&byte);
        if !self.expiration.bytes().all(time) {
            return Err("an expiration: expected digits and -:+. TZ".to_owned());
        }
        Ok(())
    }

    fn of(&self, placeholder: Placeholder) -> &str {
        match placeholder {
            Placeholder::Name => self.name,
            Placeholder::Password => self.password,
            Placeholder::Expiration => self.expiration,
        }
    }
}

/// Whether a byte means nothing to any server inside quotes.
#[must_use]
pub fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"'\"`\\".contains(&byte)
}

/// One statement, understood.
#[derive(Debug)]
pub struct Statement {
    dialect: Dialect,
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    Text(String),
    /// In the open, to be quoted.
    Open(Placeholder),
    /// Within quotes of the operator's.
    Quoted(Placeholder),
}

/// Where in a statement a byte stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Open,
    /// Until this quote, with or without backslashes that take the meaning of what follows.
    Quotes(u8, bool),
    Line,
    Block(usize),
}

/// Reads statements of one kind (`create`), in which `known` may stand, and `needed` must.
///
/// # Errors
/// Which statement, what was expected, what was found.
pub fn parse(
    dialect: Dialect,
    kind: &str,
    texts: &[String],
    known: &[Placeholder],
    needed: &[Placeholder],
) -> Result<Vec<Statement>, String> {
    if texts.len() > MOST.0 {
        return Err(format!("{kind}: expected at most {} statements", MOST.0));
    }
    let statements = texts.iter().enumerate().map(|(index, text)| {
        Statement::parse(dialect, text, known)
            .map_err(|problem| format!("{kind}, statement {}: {problem}", index + 1))
    });
    let statements = statements.collect::<Result<Vec<_>, _>>()?;
    for placeholder in needed {
        if !statements.iter().any(|one| one.has(*placeholder)) {
            let text = placeholder.text();
            return Err(format!("{kind}: expected {text} in one of the statements"));
        }
    }
    Ok(statements)
}

/// The statements with `values` put in, one after the other in one text.
///
/// # Errors
/// A value is not of its alphabet.
pub fn join(statements: &[Statement], values: &Values<'_>) -> Result<Zeroizing<String>, String> {
    // Enough, so that no piece of it is left behind in memory as it grows.
    let room = statements.iter().map(|one| one.room(values) + 2).sum();
    let mut text = Zeroizing::new(String::with_capacity(room));
    for statement in statements {
        statement.render(values, &mut text)?;
        // A statement may end with a comment.
        text.push_str("\n;");
    }
    Ok(text)
}

impl Statement {
    fn parse(dialect: Dialect, text: &str, known: &[Placeholder]) -> Result<Self, String> {
        if text.trim().is_empty() || text.len() > MOST.1 || text.contains('\0') {
            return Err(format!("expected 1 to {} bytes without NUL", MOST.1));
        }
        let mut pieces = Vec::new();
        let mut place = Place::Open;
        let (mut from, mut at) = (0, 0);
        let bytes = text.as_bytes();
        while at < bytes.len() {
            if !text.as_bytes()[at..].starts_with(b"{{") {
                (place, at) = dialect.step(place, bytes, at);
                continue;
            }
            let rest = &text[at + 2..];
            let (name, _) = rest
                .split_once("}}")
                .ok_or("{{ without }}: expected {{name}}, {{password}} or {{expiration}}")?;
            let placeholder = Placeholder::named(name).filter(|one| known.contains(one));
            let placeholder = placeholder.ok_or_else(|| {
                let names: Vec<_> = known.iter().map(|one| one.text()).collect();
                let found: String = name.chars().take(40).collect();
                format!("expected {}, found {{{{{found}}}}}", names.join(", "))
            })?;
            pieces.push(Piece::Text(text[from..at].to_owned()));
            pieces.push(match place {
                Place::Open => Piece::Open(placeholder),
                Place::Quotes(..) => Piece::Quoted(placeholder),
                Place::Line | Place::Block(_) => {
                    let text = placeholder.text();
                    return Err(format!(
                        "{text} stands in a comment: expected it outside of one"
                    ));
                }
            });
            at += name.len() + 4;
            from = at;
        }
        match place {
            Place::Quotes(quote, _) => {
                return Err(format!("a {} is not closed", char::from(quote)));
            }
            Place::Block(_) => return Err("a comment is not closed".to_owned()),
            Place::Open | Place::Line => {}
        }
        pieces.push(Piece::Text(text[from..].to_owned()));
        Ok(Self { dialect, pieces })
    }

    fn has(&self, wanted: Placeholder) -> bool {
        let is = |piece: &Piece| matches!(piece, Piece::Open(one) | Piece::Quoted(one) if *one == wanted);
        self.pieces.iter().any(is)
    }

    fn room(&self, values: &Values<'_>) -> usize {
        let room = |piece: &Piece| match piece {
            Piece::Text(text) => text.len(),
            Piece::Open(one) | Piece::Quoted(one) => values.of(*one).len() + 2,
        };
        self.pieces.iter().map(room).sum()
    }

    /// Appends it, with `values` put in, to `text`.
    ///
    /// # Errors
    /// A value is not of its alphabet.
    pub fn render(&self, values: &Values<'_>, text: &mut String) -> Result<(), String> {
        values.check()?;
        for piece in &self.pieces {
            let written = match piece {
                Piece::Text(piece) => text.write_str(piece),
                Piece::Quoted(one) => text.write_str(values.of(*one)),
                Piece::Open(Placeholder::Name) => match self.dialect {
                    Dialect::Postgres => write!(text, "\"{}\"", values.name),
                    Dialect::Mysql => write!(text, "`{}`", values.name),
                },
                Piece::Open(one) => write!(text, "'{}'", values.of(*one)),
            };
            written.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

impl Dialect {
    /// From the byte at `at` to the next one that has not been looked at, and where that stands. What is
    /// between dollars (PostgreSQL) is looked at like all else: most often it is code.
    fn step(self, place: Place, bytes: &[u8], at: usize) -> (Place, usize) {
        let (byte, next) = (bytes[at], bytes.get(at + 1).copied());
        match place {
            Place::Open => match (byte, next) {
                (b'-', Some(b'-')) => (Place::Line, at + 2),
                (b'#', _) if self == Self::Mysql => (Place::Line, at + 1),
                (b'/', Some(b'*')) => (Place::Block(1), at + 2),
                (b'\'', _) => (Place::Quotes(b'\'', self.has_backslash(bytes, at)), at + 1),
                (b'"', _) => (Place::Quotes(b'"', self == Self::Mysql), at + 1),
                (b'`', _) if self == Self::Mysql => (Place::Quotes(b'`', false), at + 1),
                _ => (Place::Open, at + 1),
            },
            // A doubled quote ends one and begins another at once, which comes to the same.
            Place::Quotes(_, true) if byte == b'\\' => (place, at + 2),
            Place::Quotes(quote, _) if byte == quote => (Place::Open, at + 1),
            Place::Line if byte == b'\n' => (Place::Open, at + 1),
            Place::Block(depth) => match (byte, next) {
                (b'*', Some(b'/')) if depth == 1 => (Place::Open, at + 2),
                (b'*', Some(b'/')) => (Place::Block(depth - 1), at + 2),
                (b'/', Some(b'*')) if self == Self::Postgres => (Place::Block(depth + 1), at + 2),
                _ => (place, at + 1),
            },
            Place::Quotes(..) | Place::Line => (place, at + 1),
        }
    }

    /// Whether backslashes count in the string that begins at `at`: always, or with an E before it.
    fn has_backslash(self, bytes: &[u8], at: usize) -> bool {
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80;
        let before = &bytes[..at];
        self == Self::Mysql
            || matches!(before, [.., b'e' | b'E'])
                && !before.iter().rev().nth(1).is_some_and(is_word)
    }
}
