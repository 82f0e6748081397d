//! Changes to inputs: to their bytes, and to the structure that their format gives them.

use allmend_engine::fuzzing::Target;
use serde_json::{Map, Value, json};

use crate::random::Random;
use crate::{grammar, seeds};

/// Words that mean something to a format.
fn dictionary(target: Target) -> &'static [&'static str] {
    match target {
        Target::Gguf => &["GGUF", "tokenizer.ggml.tokens", "gpt2", "llama", "\0\0\0\0\0\0\0\0"],
        Target::Safetensors => {
            &["{", "}", "\"dtype\":", "\"F32\"", "\"data_offsets\":[0,4]", "\"shape\":[1]", ","]
        }
        Target::Config | Target::Tokenizer => &[
            "{",
            "}",
            "[",
            "]",
            ",",
            "null",
            "true",
            "\"\"",
            "\"type\":",
            "\"Sequence\"",
            "\\ud800",
            "1e999",
            "-1",
            "\"\\u2581\"",
            "(?:",
            "{9}",
            "\\\\p{L}",
            "\\\\s+(?!\\\\S)|\\\\s+",
            "a*",
            "|",
            "[^",
            "<0x41>",
        ],
        Target::Template => &[
            "{{",
            "}}",
            "{%",
            "%}",
            "{#",
            "#}",
            "{%- ",
            " -%}",
            " for x in messages ",
            " if ",
            " endfor ",
            " endif ",
            " else ",
            " set ",
            " set ns.x = ",
            "namespace(x=[])",
            " macro m(a) ",
            " endmacro ",
            "m(1)",
            " messages ",
            "[0]",
            "[::-1]",
            ".content",
            ".role",
            "|tojson(indent=2)",
            "|length",
            "|list",
            "|join('x')",
            "|sort",
            "|map(attribute='role')",
            "|selectattr('role')",
            "|trim",
            "|upper",
            "|replace('a', 'bb')",
            "|string",
            "'a'",
            "~",
            "+",
            "*",
            "//",
            "**",
            "%",
            "(",
            ")",
            "[",
            "]",
            "{",
            "}",
            "=",
            "==",
            " in ",
            " is ",
            " not ",
            "9",
            "99999",
            "1.5",
            "none",
            "true",
            "range(99)",
            "loop.index0",
            "loop.previtem",
            "raise_exception('x')",
            "strftime_now('%Y')",
            ".split('a')",
            ".strip()",
            ".format(1)",
            "'{:>9}'",
            " call ",
            " endcall ",
            " filter upper ",
            " endfilter ",
            " generation ",
            " endgeneration ",
            " break ",
            " continue ",
            " recursive ",
            "loop(messages)",
            "|batch(2)",
            "|groupby('role')",
            "|dictsort",
            "|unique",
            "|default(1)",
            "|indent(9)",
            "dict(a=1)",
            "cycler(1,2)",
            "lipsum()",
            " with ",
            " endwith ",
            " raw ",
            " endraw ",
            " block b ",
            " endblock ",
            " include 'x' ",
            " import 'x' as y ",
            " extends 'x' ",
            " autoescape true ",
            " endautoescape ",
            " do ",
        ],
    }
}

/// A new input from those that there are.
pub(crate) fn mutate(target: Target, pool: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    if target == Target::Gguf && random.one_in(2) {
        return seeds::arbitrary_gguf(random);
    }
    if target == Target::Template && random.one_in(2) {
        return grammar::template(random);
    }
    let mut input = random.pick(pool).clone();
    for _ in 0..=random.below(4) {
        let structured = random.one_in(2);
        match target {
            Target::Config | Target::Tokenizer if structured => {
                change_json(&mut input, pool, random)
            }
            Target::Safetensors if structured => change_header(&mut input, pool, random),
            _ => change_bytes(target, &mut input, pool, random),
        }
    }
    input
}

fn change_bytes(target: Target, input: &mut Vec<u8>, pool: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len());
    match random.below(11) {
        0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
        1 if !input.is_empty() => input[at] = random.next() as u8,
        2 => drop(input.drain(random.range(input.len()))),
        3 => {
            let piece = input[random.range(input.len())].to_vec();
            let times = if random.one_in(8) { 1 + random.below(400) } else { 1 };
            splice(input, at, &piece.repeat(times));
        }
        4 => {
            let other = random.pick(pool);
            let piece = other[random.range(other.len())].to_vec();
            splice(input, at, &piece);
        }
        5 | 6 => splice(input, at, random.pick(dictionary(target)).as_bytes()),
        7 => {
            let word = random.number().to_le_bytes();
            let len = *random.pick(&[1, 2, 4, 8]);
            let end = (at + len).min(input.len());
            input[at..end].copy_from_slice(&word[..end - at]);
        }
        8 => change_number(input, random),
        9 => {
            let (from, to) = (random.range(input.len()), random.below(input.len()));
            let piece: Vec<u8> = input.drain(from).collect();
            let to = to.min(input.len());
            splice(input, to, &piece);
        }
        _ => {
            let word = random.pick(dictionary(target)).repeat(1 + random.below(60));
            splice(input, at, word.as_bytes());
        }
    }
}

fn splice(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    let at = at.min(input.len());
    input.splice(at..at, piece.iter().copied());
}

/// Replaces a number written in digits.
fn change_number(input: &mut Vec<u8>, random: &mut Random) {
    let from = random.below(input.len());
    let Some(start) = input.iter().skip(from).position(u8::is_ascii_digit) else { return };
    let start = from + start;
    let len = input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = random.number().to_string();
    input.splice(start..start + len, number.bytes());
}

/// Changes the JSON at the beginning of an input; what follows its first NUL byte stays.
fn change_json(input: &mut Vec<u8>, pool: &[Vec<u8>], random: &mut Random) {
    let end = input.iter().position(|&byte| byte == 0).unwrap_or(input.len());
    let Ok(mut tree) = serde_json::from_slice::<Value>(&input[..end]) else { return };
    change_tree(&mut tree, pool, random);
    let Ok(text) = serde_json::to_vec(&tree) else { return };
    input.splice(..end, text);
}

/// The same for the header of a safetensors file, whose length is kept right.
fn change_header(input: &mut Vec<u8>, pool: &[Vec<u8>], random: &mut Random) {
    let Some((len, rest)) = input.split_first_chunk::<8>() else { return };
    let len = u64::from_le_bytes(*len).min(rest.len() as u64) as usize;
    let Ok(mut tree) = serde_json::from_slice::<Value>(&rest[..len]) else { return };
    let data = rest[len..].to_vec();
    change_tree(&mut tree, pool, random);
    let Ok(text) = serde_json::to_vec(&tree) else { return };
    *input = [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat();
}

fn change_tree(tree: &mut Value, pool: &[Vec<u8>], random: &mut Random) {
    let donor: &Vec<u8> = random.pick(pool);
    let donor: Value = serde_json::from_slice(donor).unwrap_or(Value::Null);
    let graft = pick_node(&donor, random).clone();
    let own = pick_node(tree, random).clone();
    let node = pick_node_mut(tree, random);
    match random.below(8) {
        0 => *node = graft,
        1 => *node = own,
        2 => *node = arbitrary(random),
        3 => *node = json!([node.take()]),
        4 => {
            *node = json!({"type": "Sequence", "normalizers": [node.clone()], "pretokenizers": [node.clone()], "decoders": [node.take()]})
        }
        5 => match node {
            Value::Object(map) => {
                let key = map.keys().nth(random.below(map.len())).cloned();
                key.and_then(|key| map.shift_remove(&key));
            }
            Value::Array(items) if !items.is_empty() => {
                drop(items.swap_remove(random.below(items.len())))
            }
            _ => *node = Value::Null,
        },
        6 => match node {
            Value::Object(map) => {
                let key = map.keys().nth(random.below(map.len())).cloned().unwrap_or_default();
                map.insert(format!("{key}{}", random.pick(&["", "x", "\u{2581}", "s"])), graft);
            }
            Value::Array(items) => items.push(graft),
            Value::String(text) => *text += *random.pick(dictionary(Target::Tokenizer)),
            _ => *node = graft,
        },
        _ => match node {
            Value::Array(items) if !items.is_empty() => {
                let item = random.pick(items).clone();
                (0..random.below(60)).for_each(|_| items.push(item.clone()));
            }
            Value::String(text) => *text = text.repeat(random.below(40)),
            Value::Number(_) => *node = json!(random.number()),
            _ => *node = arbitrary(random),
        },
    }
}

fn arbitrary(random: &mut Random) -> Value {
    match random.below(9) {
        0 => Value::Null,
        1 => json!(random.one_in(2)),
        2 => json!(random.number()),
        3 => json!(-1),
        4 => json!(1e300),
        5 => json!("x".repeat(random.below(300))),
        6 => json!([]),
        7 => Value::Object(Map::new()),
        _ => json!(*random.pick(dictionary(Target::Tokenizer))),
    }
}

fn pick_node<'t>(mut node: &'t Value, random: &mut Random) -> &'t Value {
    while !random.one_in(4) {
        let next = match node {
            Value::Array(items) => items.get(random.below(items.len())),
            Value::Object(map) => map.values().nth(random.below(map.len())),
            _ => None,
        };
        match next {
            Some(next) => node = next,
            None => break,
        }
    }
    node
}

fn pick_node_mut<'t>(node: &'t mut Value, random: &mut Random) -> &'t mut Value {
    let len = match node {
        Value::Array(items) => items.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    };
    if len == 0 || random.one_in(4) {
        return node;
    }
    let at = random.below(len);
    let next = match node {
        Value::Array(items) => items.get_mut(at),
        Value::Object(map) => map.values_mut().nth(at),
        _ => None,
    };
    match next {
        Some(next) => pick_node_mut(next, random),
        None => unreachable!("the index is below the length"),
    }
}
