//! Where everything stands that a directory says: what the broker finds wrong with it is told with file
//! and line, as what is found wrong here.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

/// Where one `[credential.NAME]` or `[connection.NAME]` begins in its file, and each of its settings.
#[derive(Debug, PartialEq, Eq)]
pub struct Section {
    /// `credential orders-db`: how the broker begins what it says about it.
    pub title: String,
    /// Its name in its heading.
    pub heading: Range<usize>,
    /// Its settings by name.
    pub settings: BTreeMap<String, Range<usize>>,
}

/// Where everything stands.
#[derive(Debug, Default)]
pub struct Places {
    files: Vec<(PathBuf, String)>,
    /// By their titles, each with its file's number.
    sections: BTreeMap<String, (usize, Section)>,
    /// Files of policies, by the names that the broker knows them by.
    policies: BTreeMap<String, PathBuf>,
}

impl Places {
    /// Notes a file with its sections.
    pub fn add(&mut self, path: PathBuf, text: String, sections: Vec<Section>) {
        let file = self.files.len();
        self.files.push((path, text));
        let named = sections
            .into_iter()
            .map(|section| (section.title.clone(), (file, section)));
        self.sections.extend(named);
    }

    /// Notes a file of policies.
    pub fn add_policies(&mut self, name: String, path: PathBuf) {
        self.policies.insert(name, path);
    }

    /// What the broker says, each line with the place of what it is about.
    pub fn tell(&self, message: &str) -> String {
        let lines = message.lines().map(|line| self.placed(line));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn placed(&self, line: &str) -> String {
        if let Some((name, rest)) = line.split_once(':')
            && let Some(path) = self.policies.get(name)
        {
            return format!("{}:{rest}", path.display());
        }
        let found = line
            .split_once(": ")
            .and_then(|(title, rest)| Some((self.sections.get(title)?, rest)));
        let Some(((file, section), rest)) = found else {
            return line.to_owned();
        };
        let Some((path, text)) = self.files.get(*file) else {
            return line.to_owned();
        };
        // `create, statement 2: …`, `password.length: …`, or nothing of its own.
        let setting = rest.split([':', ',', '.']).next().unwrap_or_default();
        let span = section.settings.get(setting).unwrap_or(&section.heading);
        let number = super::credentials::line_of(text, span.start);
        format!("{}:{number}: {line}", path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_broker_says_gets_its_place() {
        let text = "[credential.a]\nttl = \"1s\"\npassword = { length = 3 }\n";
        let at = |what: &str| {
            let start = text.find(what).unwrap();
            start..start + what.len()
        };
        let section = Section {
            title: "credential a".into(),
            heading: at("a]"),
            settings: [("ttl", "ttl"), ("password", "password")]
                .map(|(name, what)| (name.to_owned(), at(what)))
                .into(),
        };
        let mut places = Places::default();
        places.add("d/a.toml".into(), text.into(), vec![section]);
        places.add_policies("p.cedar".into(), "d/p.cedar".into());
        for (said, told) in [
            ("credential a: ttl: x", "d/a.toml:2: credential a: ttl: x"),
            (
                "credential a: password.length: x",
                "d/a.toml:3: credential a: password.length: x",
            ),
            (
                "credential a: expected x: y",
                "d/a.toml:1: credential a: expected x: y",
            ),
            ("credential b: ttl: x", "credential b: ttl: x"),
            ("p.cedar:7: x", "d/p.cedar:7: x"),
            ("p.cedar: x", "d/p.cedar: x"),
            ("q.cedar:7: x", "q.cedar:7: x"),
            (
                "one\ncredential a: ttl",
                "one\nd/a.toml:2: credential a: ttl",
            ),
            ("", ""),
        ] {
            assert_eq!(places.tell(said), told);
        }
    }
}
