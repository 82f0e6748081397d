//! Runs a template with minijinja: what it sees, and what its errors may say.

use std::sync::LazyLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, State, Value, context};
use regex::{Captures, Regex};

use super::{ChatMessage, SOURCE_BYTES_MAX, clock, json};
use crate::error::TemplateError;
use crate::tokenizer::INPUT_BYTES_MAX;

/// A quarter of a second of instructions, or 64 bytes of produced data each: at most some 64 MiB. The
/// wordiest published templates take a hundred for each message.
const FUEL: u64 = 1_000_000;
/// Templates recurse through macros at most a few levels deep.
const RECURSION_MAX: usize = 100;
/// Messages in one conversation.
const MESSAGES_LEN_MAX: usize = 4_096;
/// Name under which the template is registered; the ending decides that nothing is HTML-escaped.
const NAME: &str = "chat.txt";
/// Marks errors that the template raised itself.
const REFUSED: &str = "raised by the template: ";

/// A compiled template and the texts it is given.
pub(super) struct Program {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

impl Program {
    /// Compiles `source`; `bos` and `eos` are the texts of the model's tokens of those names.
    pub(super) fn compile(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(TemplateError::Bound("256 KiB of source"));
        }
        let mut environment = Environment::new();
        // As transformers sets up Jinja2, which is what templates are written for.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| TemplateError::Syntax(describe(&error)))?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_MAX);
        environment.set_unknown_method_callback(python_method);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, format!("{REFUSED}{message}")))
        });
        environment.add_filter("tojson", json::to_json);
        // Their time is quadratic in the depth of a value, and no chat needs them.
        environment.remove_filter("pprint");
        environment.remove_global("debug");
        environment
            .add_template_owned(NAME, without_generation_marks(source))
            .map_err(|error| TemplateError::Syntax(describe(&error)))?;
        let (source, bos, eos) = (source.to_owned(), bos.to_owned(), eos.to_owned());
        Ok(Self { environment, source, bos, eos })
    }

    /// As [`super::ChatTemplate::render`], on this thread and for as long as it takes.
    pub(super) fn render(
        &self,
        messages: &[ChatMessage],
        clock: i64,
        generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        if messages.len() > MESSAGES_LEN_MAX {
            return Err(TemplateError::Bound("4096 messages"));
        }
        let mut environment = self.environment.clone();
        environment.add_function("strftime_now", move |format: String| {
            clock::strftime(&format, clock)
                .map_err(|error| Error::new(ErrorKind::InvalidOperation, error))
        });
        let template = environment.get_template(NAME).map_err(|error| self.refusal(&error))?;
        let turn = |message: &ChatMessage| {
            context! { role => message.role.as_str(), content => message.content.as_str() }
        };
        let messages: Vec<Value> = messages.iter().map(turn).collect();
        let mut output = Bounded::default();
        let rendered = template.render_captured_to(
            context! {
                messages => messages,
                add_generation_prompt => generation_prompt,
                tools => Value::from(()),
                documents => Value::from(()),
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
            },
            &mut output,
        );
        if output.full {
            return Err(TemplateError::Bound("2 MiB of output"));
        }
        rendered.map_err(|error| self.refusal(&error))?;
        String::from_utf8(output.bytes)
            .map_err(|_| TemplateError::Render("output is not UTF-8".to_owned()))
    }

    /// What went wrong, without words of the conversation: errors may be logged.
    fn refusal(&self, error: &Error) -> TemplateError {
        if error.kind() == ErrorKind::OutOfFuel {
            return TemplateError::Bound("fuel");
        }
        let raised = error.detail().and_then(|detail| detail.split_once(REFUSED));
        match raised {
            // A message that stands in the template word for word cannot quote the conversation.
            Some((_, message)) if self.source.contains(message) => {
                TemplateError::Refused(message.chars().take(256).collect())
            }
            Some(_) => TemplateError::Refused("(its message is not shown)".to_owned()),
            None => TemplateError::Render(describe(error)),
        }
    }
}

/// Takes out `{% generation %}` and `{% endgeneration %}`, with which templates mark for training what
/// the assistant said. A block that always runs keeps their control of white space.
fn without_generation_marks(source: &str) -> String {
    static MARKS: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok());
    let block = |marks: &Captures<'_>| {
        let part = |group| marks.get(group).map_or("", |part| part.as_str());
        let word = if part(2).is_empty() { "if true" } else { "endif" };
        format!("{{%{} {word} {}%}}", part(1), part(3))
    };
    match &*MARKS {
        Some(marks) => marks.replace_all(source, block).into_owned(),
        None => source.to_owned(),
    }
}

/// A writer that stops taking when a prompt of that length would be refused anyway.
#[derive(Default)]
pub(super) struct Bounded {
    pub(super) bytes: Vec<u8>,
    full: bool,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > INPUT_BYTES_MAX {
            self.full = true;
            return Err(std::io::Error::other("output bound reached"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Python's methods of strings, lists and maps. Minijinja charges fuel for their results, but only once
/// they exist, so those that multiply sizes are refused beforehand.
fn python_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let len = |value: Option<&Value>| value.and_then(Value::as_str).map_or(0, str::len);
    let (own, first, second) = (len(Some(value)), len(arguments.first()), len(arguments.get(1)));
    let result_bytes = match method {
        "replace" => (own / first.max(1) + 1).saturating_mul(second).saturating_add(own),
        // Items are texts that exist already; the separator is what multiplies.
        "join" => arguments.first().and_then(Value::len).unwrap_or(0).saturating_mul(own),
        "format" => format_bytes(value.as_str().unwrap_or_default()),
        _ => 0,
    };
    if result_bytes > INPUT_BYTES_MAX {
        return Err(Error::from(ErrorKind::OutOfFuel));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)
}

/// What a format string may ask for: widths of three digits, none computed.
fn format_bytes(format: &str) -> usize {
    let wide = format.as_bytes().windows(4).any(|run| run.iter().all(u8::is_ascii_digit));
    let nested = format.split('{').skip(1).any(|field| field.contains(':') && !field.contains('}'));
    if wide || nested { usize::MAX } else { format.len().saturating_mul(999 / 4) }
}

/// Kind and line only: minijinja's details may quote values, and those are the researcher's words.
fn describe(error: &Error) -> String {
    match error.line() {
        Some(line) => format!("{} in line {line}", error.kind()),
        None => error.kind().to_string(),
    }
}
