//! Templates that parse, and try what the language offers in ways that nobody would.

use crate::random::Random;

const VALUES: &[&str] = &[
    "messages",
    "messages[0]",
    "messages[0].content",
    "bos_token",
    "ns.x",
    "ns.n",
    "m",
    "m.role",
    "loop.index",
    "none",
    "true",
    "1",
    "0",
    "-1",
    "99999",
    "9223372036854775807",
    "1.5",
    "1e308",
    "'a'",
    "'\\n'",
    "'%s'",
    "'{:>999}'",
    "[]",
    "{}",
    "undefined_name",
    "range(9)",
    "range(99999)",
    "namespace(a=1)",
    "dict(a=1)",
    "add_generation_prompt",
    "tools",
    "strftime_now('%Y-%m-%d')",
    "messages[0].content[:9]",
    "messages[::-1]",
    "'abc'[5:1:-2]",
    "varargs",
    "loop",
];
const FILTERS: &[&str] = &[
    "abs",
    "batch(3)",
    "batch(99999999)",
    "bool",
    "capitalize",
    "count",
    "default('x')",
    "dictsort",
    "escape",
    "first",
    "float",
    "format(1)",
    "groupby('role')",
    "indent(3)",
    "indent(99999999)",
    "int",
    "items",
    "join(',')",
    "join(m)",
    "join('x' * 999)",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "map('upper')",
    "map(attribute='role')",
    "max",
    "min",
    "reject",
    "rejectattr('role')",
    "replace('a', 'bb')",
    "replace('', 'xxxxxxxx')",
    "reverse",
    "round(99)",
    "safe",
    "select",
    "selectattr('role', 'equalto', 'user')",
    "slice(3)",
    "slice(99999999)",
    "sort",
    "sort(attribute='role')",
    "split",
    "split('a')",
    "string",
    "sum",
    "title",
    "tojson",
    "tojson(indent=9999)",
    "tojson(sort_keys=true)",
    "trim",
    "trim('a')",
    "unique",
    "upper",
    "urlencode",
    "zip(m)",
    "chain(m)",
    "center(99999999)",
    "wordcount",
    "truncate(1)",
];
const METHODS: &[&str] = &[
    "split('a')",
    "split('')",
    "strip()",
    "lstrip('a')",
    "rstrip()",
    "upper()",
    "title()",
    "startswith('a')",
    "replace('a', 'b')",
    "replace('', 'y' * 999)",
    "format(1, 2)",
    "join(messages)",
    "join(range(99999))",
    "items()",
    "keys()",
    "values()",
    "get('role')",
    "count('a')",
    "find('a')",
    "splitlines()",
    "isdigit()",
    "zfill(99999999)",
    "center(9)",
    "ljust(99999999)",
    "partition('a')",
    "removeprefix('a')",
    "append(1)",
    "pop()",
    "update({})",
];
const OPERATORS: &[&str] = &[
    "+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">=", " in ", " not in ", " and ",
    " or ",
];
const TESTS: &[&str] = &[
    "defined",
    "none",
    "string",
    "mapping",
    "iterable",
    "sequence",
    "number",
    "odd",
    "divisibleby(3)",
    "in(messages)",
    "equalto(1)",
    "filter",
    "startingwith('a')",
];

/// A template, a NUL byte and a text.
pub(crate) fn template(random: &mut Random) -> Vec<u8> {
    let mut source = "{% set ns = namespace(n=0, x=[]) %}".to_owned();
    for _ in 0..=random.below(5) {
        source += &statement(random, 3);
    }
    source += "\0banana {{ a }} <b>";
    source.into_bytes()
}

fn statement(random: &mut Random, depth: usize) -> String {
    let value = expression(random, 3);
    let body = |random: &mut Random| match depth {
        0 => "x".to_owned(),
        _ => (0..=random.below(2)).map(|_| statement(random, depth - 1)).collect(),
    };
    let trims = ["{%", "{%-", "{%+"];
    let open = *random.pick(&trims);
    match random.below(14) {
        0..=4 => format!("{{{{ {value} }}}}"),
        5 | 6 => format!("{open} for m in {value} %}}{}{{% endfor %}}", body(random)),
        7 => format!(
            "{open} for m in {value} recursive %}}{}{{{{ loop(m) }}}}{{% endfor %}}",
            body(random)
        ),
        8 => format!(
            "{open} if {value} %}}{}{{% else %}}{}{{% endif %}}",
            body(random),
            body(random)
        ),
        9 => format!("{open} set ns.{} = {value} %}}", random.pick(&["x", "n"])),
        10 => format!("{open} set m = {value} %}}"),
        11 => format!(
            "{open} macro f(m, n=2) %}}{}{{% endmacro %}}{{{{ f({value}) }}}}",
            body(random)
        ),
        12 => format!("{open} set m %}}{}{{% endset %}}", body(random)),
        _ => format!("{open} generation -%}}{}{{%- endgeneration %}}", body(random)),
    }
}

fn expression(random: &mut Random, depth: usize) -> String {
    if depth == 0 || random.one_in(4) {
        return (*random.pick(VALUES)).to_owned();
    }
    let value = expression(random, depth - 1);
    match random.below(9) {
        0 | 1 => format!("{value} | {}", random.pick(FILTERS)),
        2 => format!("({value}).{}", random.pick(METHODS)),
        3 => format!("({value} {} {})", random.pick(OPERATORS), expression(random, depth - 1)),
        4 => format!("[{value}, {}]", expression(random, depth - 1)),
        5 => format!("{{'a': {value}, {}: 1}}", expression(random, depth - 1)),
        6 => format!("({value} is {})", random.pick(TESTS)),
        7 => format!("({value})[{}]", expression(random, depth - 1)),
        _ => format!("({value} if {} else 'z')", expression(random, depth - 1)),
    }
}
