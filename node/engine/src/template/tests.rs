use super::*;

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' \
    + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn compile(source: &str) -> ChatTemplate {
    ChatTemplate::compile(source, "<s>", "</s>").unwrap()
}

fn user(content: &str) -> Vec<ChatMessage> {
    vec![ChatMessage { role: "user".to_owned(), content: content.to_owned() }]
}

fn render(source: &str) -> Result<String, TemplateError> {
    compile(source).render(&user("Grüezi <b>&\"'"), 1_795_444_245, true)
}

mod families;

#[test]
fn renders_chatml() {
    let prompt = compile(CHATML).render(&user("Hi <there>"), 0, true).unwrap();
    assert_eq!(prompt, "<|im_start|>user\nHi <there><|im_end|>\n<|im_start|>assistant\n");
}

#[test]
fn renders_what_published_templates_use() {
    let cases = [
        ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
        ("{{ strftime_now('%d %b %Y') }}", "23 Nov 2026"),
        ("{{ {'a': [1, 'ü<'], 'b': none} | tojson }}", "{\"a\": [1, \"ü<\"], \"b\": null}"),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        (
            "{{ {'a': [], 'b': {'c': 1}} | tojson(indent=1) }}",
            "{\n \"a\": [],\n \"b\": {\n  \"c\": 1\n }\n}",
        ),
        ("{{ ['ü😀\"'] | tojson(ensure_ascii=true) }}", r#"["\u00fc\ud83d\ude00\""]"#),
        ("{{ 'a-b'.replace('-', '+') }}{{ '{:>3}|{}'.format(1, 2) }}", "a+b  1|2"),
        ("{{ ' x '.strip() ~ 'ab'.startswith('a') }}", "xTrue"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "1",
        ),
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% macro m(x, y=2) %}[{{ x }}{{ y }}]{% endmacro %}{{ m(1) }}", "[12]"),
        ("{{ enable_thinking is defined }}|{{ tools is defined }}", "false|true"),
        ("a {%- generation %} b {% endgeneration -%} c", "a b c"),
        ("{{ [1, 2, 3][::-1] }}{{ 'abc'[-1] }}{{ 'a,b'.split(',')[-1] }}", "[3, 2, 1]cb"),
        ("{% for m in messages[1:] %}x{% else %}none{% endfor %}", "none"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ messages | map(attribute='role') | join(', ') }}", "user"),
        ("{{ {'b': 1, 'a': 2} | items | list | length }}{{ ('a' in {'a': 1}) }}", "2true"),
        ("{% for k, v in {'b': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "b1"),
        ("{{ 'x' if messages[0].content is string else 'y' }}{{ 1 is number }}", "xtrue"),
        (
            "{{ messages[0].get('tool_calls') is none }}{{ messages[0].name is defined }}",
            "truefalse",
        ),
        ("{{ {'a': 'ü'} | tojson(ensure_ascii=False) }}", "{\"a\": \"ü\"}"),
        (
            "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}",
            "{\"a\":2,\"b\":1}",
        ),
        (
            "{{ '\\nx\\n'.lstrip('\\n').rstrip('\\n') }}{{ 'ab'.upper() }}{{ 'ab'.endswith('b') }}",
            "xabtrue",
        ),
        ("{{ 'a' ~ loop_messages | default('b') }}{{ 'x' | trim }}{{ 'a b' | title }}", "abxa b"),
        ("{% set x %}in{% endset %}{{ x }}", "in"),
        ("{{ messages[0].content[:3] }}{{ tools is none }}{{ documents is none }}", "Grütruetrue"),
    ];
    for (source, expected) in cases {
        assert_eq!(render(source).unwrap().to_lowercase(), expected.to_lowercase(), "{source}");
    }
}

#[test]
fn raise_exception_is_a_refusal_of_the_conversation() {
    let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert!(matches!(error, TemplateError::Refused(message) if message == "roles must alternate"));
}

#[test]
fn errors_do_not_quote_the_conversation() {
    for source in [
        "{{ raise_exception(messages[0].content) }}",
        "{{ messages[0].content | no_such_filter }}",
        "{{ messages[0].content.nope() }}",
        "{{ messages[0].content + 1 }}",
        "{{ strftime_now(messages[0].content ~ '%Q') }}",
    ] {
        let compiled = ChatTemplate::compile(source, "", "");
        let error = compiled.and_then(|t| t.render(&user("geheim"), 0, true)).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("geheim"), "{source}: {error:?}");
    }
}

#[test]
fn hostile_templates_end() {
    let doubling = "{% set ns = namespace(x='a') %}{% for i in range(99) %}\
                    {% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}";
    let nested = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let flood = "{% for a in range(99999) %}{{ 'x' * 999 }}{% endfor %}";
    let recursion = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    let product = "{{ ('x' * 99999999) | length }}{{ (range(9999) | list * 9999) | tojson }}";
    let replace = "{% set a = 'a' * 100000 %}{{ a.replace('a', a).replace('a', a) | length }}";
    let join = "{{ range(99999) | join('x' * 99999) }}";
    let printf = "{{ '%99999999999d' | format(1) }}";
    let format = "{{ '{:99999999999}'.format(1) }}";
    let computed = "{{ '{:{}}'.format(1, 99999999999) }}";
    let text_join = "{{ ('x' * 99999).join(range(99999)) }}";
    let sort = "{% for i in range(9999) %}{{ range(99999) | sort | length }}{% endfor %}";
    let indent = "{{ 'a\n' * 9999 | indent(99999999) }}";
    for source in [
        doubling, nested, flood, recursion, product, replace, join, text_join, printf, format,
        computed, sort, indent,
    ] {
        let outcome =
            ChatTemplate::compile(source, "", "").and_then(|t| t.render(&user(""), 0, true));
        assert!(outcome.is_err(), "{source}");
    }
}

#[test]
fn hostile_sources_are_refused() {
    let deep = "{{ ".to_owned() + &"(".repeat(100_000) + "1" + &")".repeat(100_000) + " }}";
    let blocks = "{% if 1 %}".repeat(10_000) + &"{% endif %}".repeat(10_000);
    for source in [deep.as_str(), blocks.as_str(), "{{", "{% if %}", "{{ 1 +* }}"] {
        let _: Result<_, _> =
            ChatTemplate::compile(source, "", "").and_then(|t| t.render(&[], 0, true));
    }
    assert!(ChatTemplate::compile("{{", "", "").is_err());
    assert!(ChatTemplate::compile(&"x".repeat(300_000), "", "").is_err());
}

proptest::proptest! {
    /// Goal: no template text panics.
    #[test]
    fn random_templates_do_not_panic(
        parts in proptest::collection::vec(
            proptest::sample::select(vec![
                "{{", "}}", "{%", "%}", "{#", "#}", " for x in messages ", " if ", " endfor ", " endif ",
                "x", "messages", "[0]", ".content", "|tojson", "|length", "'a'", "~", "+", "*", "(", ")",
                " set ", "=", "1", "-", " else ", " macro m() ", " endmacro ", "m()", "\n", " is defined ",
            ]),
            0..24,
        )
    ) {
        if let Ok(template) = ChatTemplate::compile(&parts.concat(), "", "") {
            let _: Result<_, _> = template.render(&user("hello"), 0, true);
        }
    }
}

/// Goal: values nested as deeply as fuel allows neither overflow a stack nor run away.
#[test]
fn nesting_is_harmless() {
    let nest = "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [[[[[[[[[[ns.x]]]]]]]]]] %}{% endfor %}";
    for end in [
        "",
        "{{ ns.x | tojson }}",
        "{{ ns.x }}",
        "{{ ns.x == [ns.x] }}",
        "{{ ns.x | length }}",
        "{{ [ns.x, ns.x] | sort | length }}",
        "{{ ns.x | string | length }}",
        "{{ ns.x in [ns.x] }}",
        "{{ [ns.x] | unique | list | length }}",
        "{{ {ns.x: 1} | length }}",
        "{{ '{}'.format(ns.x) }}",
    ] {
        let template = compile(&format!("{nest}{end}"));
        let _: Result<_, _> = template.render(&user(""), 0, true);
    }
}

/// Goal: a comparison that fuel does not see ends the template, not the engine.
#[test]
fn a_template_that_never_ends_is_left_behind() {
    let double = |name| {
        format!(
            "{{% set {name} = namespace(x=[]) %}}{{% for i in range(64) %}}\
                 {{% set {name}.x = [{name}.x, {name}.x] %}}{{% endfor %}}"
        )
    };
    let mut template = compile(&format!("{}{}{{{{ a.x == b.x }}}}", double("a"), double("b")));
    template.patience = std::time::Duration::from_secs(1);
    for expected in ["time", "time, in an earlier conversation"] {
        let outcome = template.render(&user(""), 0, true);
        assert_eq!(outcome, Err(TemplateError::Bound(expected)));
    }
}
