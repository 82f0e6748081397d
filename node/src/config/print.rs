//! The table of settings as an annotated file for `init`, and as `docs/config.md`.

use std::fmt::Write;

use super::settings::{Kind, SETTINGS, Setting};

/// Width at which comments wrap.
const COMMENT_WIDTH: usize = 96;

/// The annotated `config.toml`: every setting explained, with its default commented out.
///
/// `chosen` lists settings to write as set, by key; other keys are ignored. Defaults stay comments
/// so that a later version's better default takes effect.
#[must_use]
pub fn annotated(chosen: &[(&str, toml::Value)]) -> String {
    let mut text = String::from(
        "# Configuration of an Allmend node. Every setting is here with its default; remove the `#`\n\
         # in front of a key to change it. Flags win over the environment, which wins over this file.\n",
    );
    let mut section = "";
    for setting in SETTINGS {
        if setting.section().0 != section {
            section = setting.section().0;
            let _ = write!(text, "\n[{section}]\n");
        }
        text.push('\n');
        comment(&mut text, &format!("{} {}", setting.doc, range(setting)).replace('`', ""));
        match chosen.iter().find(|(key, _)| *key == setting.key) {
            _ if setting.kind == Kind::Table => {}
            Some((_, value)) => {
                let _ = writeln!(text, "{} = {value}", setting.section().1);
            }
            None => {
                let _ = writeln!(text, "#{} = {}", setting.section().1, setting.default);
            }
        }
    }
    text
}

/// `docs/config.md`.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(
        "# Settings of a node\n\n\
         Generated from the table in `node/src/config/settings.rs`; a test keeps the two equal.\n\n\
         A setting is taken from the command line (`--set KEY=VALUE`), else from the environment, else \
         from `config.toml` in the data directory, else it has its default. Lists in flags and \
         variables are separated by commas. `allmend init` writes a `config.toml` with all of this as \
         comments; an empty or missing file is fine.\n",
    );
    let mut section = None;
    for setting in SETTINGS {
        let (this, key) = setting.section();
        if section != Some(this) {
            section = Some(this);
            let title =
                if this.is_empty() { "Top level".to_owned() } else { format!("`[{this}]`") };
            let _ = write!(
                text,
                "\n## {title}\n\n| Setting | Default | Values | Variable |\n|---|---|---|---|\n"
            );
        }
        if setting.kind == Kind::Table {
            let _ = writeln!(text, "| {} | `{}` | a table | – |", setting.doc, setting.default);
            continue;
        }
        let env = setting.env().map_or_else(|| "–".to_owned(), |name| format!("`{name}`"));
        let _ = writeln!(
            text,
            "| `{key}`: {} | `{}` | {} | {env} |",
            setting.doc,
            setting.default,
            range(setting).trim_end_matches('.')
        );
    }
    text
}

/// The accepted values in words.
fn range(setting: &Setting) -> String {
    let unit = match setting.unit {
        "" => String::new(),
        unit => format!(" {unit}"),
    };
    match setting.kind {
        Kind::Text { bytes_max } => format!("At most {bytes_max} bytes of text."),
        Kind::Count { min, max, auto: None } => format!("{min} to {max}{unit}."),
        Kind::Count { min, max, auto: Some(auto) } => {
            format!("{min} to {max}{unit}, or \"auto\": {auto}.")
        }
        Kind::Choice(words) => format!("One of {}.", words.join(", ")),
        Kind::Switch => "true or false.".to_owned(),
        Kind::Table => "A table.".to_owned(),
        Kind::Multiaddrs(_) => format!("A list of {}.", setting.unit),
        Kind::Country | Kind::Socket | Kind::Path => format!("{}.", capital(setting.unit)),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn comment(text: &mut String, words: &str) {
    let mut line = String::from("#");
    for word in words.split_whitespace() {
        if line.len() + 1 + word.len() > COMMENT_WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotated_shows_every_setting() {
        let text = annotated(&[("name", "zurich-1".into()), ("limits.slots", 2.into())]);
        assert!(text.contains("\nname = \"zurich-1\"\n"));
        assert!(text.contains("\nslots = 2\n"));
        for setting in SETTINGS {
            let key = setting.section().1;
            assert!(text.contains(&format!("{key} = ")) || text.contains(&format!("[{key}]")));
        }
        assert!(text.lines().all(|line| line.len() <= COMMENT_WIDTH || !line.starts_with("# ")));
    }

    /// Goal: the page never lags behind the code. `ALLMEND_BLESS=1` writes it anew.
    #[test]
    fn the_page_is_what_the_code_prints() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config.md");
        if std::env::var_os("ALLMEND_BLESS").is_some() {
            std::fs::write(page, markdown()).unwrap();
        }
        let written = std::fs::read_to_string(page).unwrap_or_default();
        assert!(written == markdown(), "run with ALLMEND_BLESS=1 to write docs/config.md anew");
    }
}
