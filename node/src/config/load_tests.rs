use super::*;
use proptest::prelude::*;

fn from_file(text: &str) -> Result<Loaded, Vec<Problem>> {
    combine(Path::new("config.toml"), text, [], &Overrides::default(), "host")
}

fn problem(text: &str) -> (String, String) {
    let problems = from_file(text).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    (problems[0].to_string(), problems[0].hint.clone().unwrap_or_default())
}

fn env(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

#[test]
fn an_empty_file_gives_defaults() {
    let loaded = from_file("").unwrap();
    let config = loaded.config;
    assert_eq!(config.name, "host");
    assert_eq!(config.jurisdiction, None);
    assert_eq!(config.control_listen.len(), 2);
    assert_eq!(config.bulk_listen.port(), 7701);
    assert_eq!((config.limits.slots, config.limits.threads), (8, None));
    assert_eq!(config.limits.models_loaded, 1);
    assert!(config.transport.udp && config.policy.is_empty() && loaded.warnings.is_empty());
    assert!(loaded.origins.iter().all(|effective| effective.origin == Origin::Default));
}

#[test]
fn flag_over_environment_over_file_over_default() {
    let text = "[limits]\nslots = 2\nthreads = 3\ncontext_tokens_max = 512\n";
    let vars =
        env(&[("ALLMEND_LIMITS_SLOTS", "4"), ("ALLMEND_LIMITS_THREADS", "5"), ("HOME", "/")]);
    let mut flags = Overrides::default();
    flags.assign("limits.slots=6").unwrap();
    let loaded = combine(Path::new("c.toml"), text, vars, &flags, "host").unwrap();
    let limits = loaded.config.limits;
    assert_eq!((limits.slots, limits.threads, limits.context_tokens_max), (6, Some(5), 512));
    let origin = |key| loaded.origins.iter().find(|e| e.key == key).unwrap().origin.to_string();
    assert_eq!(origin("limits.slots"), "--set limits.slots=6");
    assert_eq!(origin("limits.threads"), "environment variable ALLMEND_LIMITS_THREADS");
    assert_eq!(origin("limits.context_tokens_max"), "c.toml:4:22");
    assert_eq!(origin("name"), "default");
}

#[test]
fn the_annotated_file_means_the_defaults() {
    let plain = from_file("").unwrap().config;
    let text = super::super::print::annotated(&[]);
    assert_eq!(from_file(&text).unwrap().config, plain);
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert_eq!(from_file(&uncommented).unwrap().config, plain);
}

#[test]
fn errors_name_line_column_key_and_hint() {
    let cases = [
        (
            "\n[limits]\nslots = 99\n",
            "config.toml:3:9: `limits.slots`: 99 is too large",
            "0 to 64 jobs",
        ),
        (
            "[limits]\nslots = -1",
            "config.toml:2:9: `limits.slots`: -1 is too small",
            "0 to 64 jobs",
        ),
        (
            "[limits]\nslot = 1",
            "config.toml:2:1: `limits.slot`: there is no such setting",
            "`limits.slots`",
        ),
        ("[limts]\nslots = 1", "config.toml:1:2: `limts`: there is no such setting", "`limits`"),
        ("slots = 1", "config.toml:1:1: `slots`: there is no such setting", "`limits.slots`"),
        ("limits = 1", "config.toml:1:10: `limits`: this is a section, not a value", "[limits]"),
        ("name = 7", "config.toml:1:8: `name`: expected text in quotes, found a number", "name = "),
        (
            "jurisdiction = \"UK\"",
            "config.toml:1:16: `jurisdiction`: \"UK\" is not a country code",
            "GB",
        ),
        (
            "log_level = \"inof\"",
            "config.toml:1:13: `log_level`: \"inof\" is not a choice",
            "\"info\"",
        ),
        (
            "bulk_listen = \"7701\"",
            "config.toml:1:15: `bulk_listen`: \"7701\" is not an IP address with a port",
            "[::]:7701",
        ),
        (
            "[limits]\nthreads = \"all\"",
            "config.toml:2:11: `limits.threads`: expected a whole number or \"auto\", found text",
            "or \"auto\"",
        ),
        (
            "[transport]\nudp = 1.5",
            "config.toml:2:7: `transport.udp`: expected true or false, found a number with a fraction",
            "true or false",
        ),
        ("policy = 3", "config.toml:1:10: `policy`: expected a table, found a number", ""),
    ];
    for (text, said, hinted) in cases {
        let (line, hint) = problem(text);
        assert_eq!(line, said);
        assert!(hint.contains(hinted), "{text}: {hint}");
    }
}

#[test]
fn addresses_are_checked_one_by_one() {
    let text = "control_listen = [\n  \"/ip4/0.0.0.0/tcp/1\",\n  \"/ip4/0.0.0.0/sctp/2\",\n]";
    let (line, _) = problem(text);
    assert!(
        line.starts_with("config.toml:3:3: `control_listen`: \"/ip4/0.0.0.0/sctp/2\" is neither"),
        "{line}"
    );
    assert!(problem("control_listen = [\"/dns/x.example/tcp/1\"]").0.contains("host that fits"));
    assert!(
        problem("bootstrap = [\"/ip4/192.0.2.1/tcp/7700\"]").0.contains("does not name the peer")
    );
    assert!(problem("external_addresses = [\"nonsense\"]").0.contains("is not a multiaddr"));
    let peer =
        "/dns/a.example/udp/7700/quic-v1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
    assert_eq!(from_file(&format!("bootstrap = [\"{peer}\"]")).unwrap().config.bootstrap.len(), 1);
}

#[test]
fn text_that_is_no_toml_has_a_place() {
    let problems = from_file("name = \"a\"\nname = \"b\"\n[limits\n").unwrap_err();
    assert!(problems.iter().all(|p| p.to_string().starts_with("config.toml:")), "{problems:?}");
}

#[test]
fn several_problems_are_told_at_once() {
    let vars = env(&[("ALLMEND_LIMITS_SLOTS", "many"), ("ALLMEND_LIMIT_SLOTS", "1")]);
    let mut flags = Overrides::default();
    flags.set("log_levl", "info", "--set log_levl=info");
    let found = combine(Path::new("c"), "slots = 1\nname = 2", vars, &flags, "h").unwrap_err();
    let said: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[1].starts_with("environment variable ALLMEND_LIMITS_SLOTS: `limits.slots`"));
    assert!(ConfigError::Invalid(found).to_string().contains("has 3 problems"));
    assert!(flags.assign("limits.slots").is_err());
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let (line, hint) = problem("bulk_listen = \"0.0.0.0:7700\"");
    assert!(line.contains("UDP port 7700 is taken") && hint.contains("7701"));
    let udp_only = "control_listen = [\"/ip4/0.0.0.0/udp/7700/quic-v1\"]\ntransport.udp = false";
    assert!(problem(udp_only).0.contains("no address is left"));
    let tcp = from_file("transport.udp = false").unwrap().config;
    assert_eq!(tcp.control_listen.len(), 1);
}

#[test]
fn unknown_variables_and_taps_are_warned_of() {
    let vars = env(&[("ALLMEND_LIMIT_SLOTS", "1"), ("ALLMEND_DIR", "/x"), ("ALLMEND_NAME", "")]);
    let flags = Overrides::default();
    let loaded =
        combine(Path::new("c"), "debug.tap_dir = \"/tmp/tap\"", vars, &flags, "h").unwrap();
    assert_eq!(loaded.warnings.len(), 2);
    assert!(loaded.warnings[0].contains("did you mean ALLMEND_LIMITS_SLOTS?"));
    assert!(loaded.warnings[1].contains("UNENCRYPTED"));
    assert_eq!(loaded.config.name, "h");
}

#[test]
fn policy_passes_through() {
    let loaded = from_file("[policy]\naccept = [\"own\"]\n[policy.hours]\nfrom = 18").unwrap();
    assert_eq!(loaded.config.policy["hours"]["from"].as_integer(), Some(18));
}

#[test]
fn a_missing_file_is_fine_and_a_directory_is_not() {
    let dir = tempfile::tempdir().unwrap();
    assert!(load(&dir.path().join("none.toml"), [], &Overrides::default()).is_ok());
    let error = load(dir.path(), [], &Overrides::default()).unwrap_err();
    assert!(matches!(error, ConfigError::Unreadable { .. }));
}

proptest! {
    #[test]
    fn no_text_panics(text: String) {
        let _ = from_file(&text);
    }

    #[test]
    fn no_toml_like_text_panics(text in r#"((name|limits|slots|policy|bootstrap|[a-z.]{1,9}) ?= ?("[^"\n]{0,9}"|-?[0-9]{1,30}|\[("x",?){0,3}\]|\{[a-z=1]{0,5}\}|true)\n|\[[a-z.]{0,9}\]\n){0,6}"#) {
        let _ = from_file(&text);
    }

    #[test]
    fn no_variable_or_flag_panics(index in 0..SETTINGS.len(), value: String) {
        let setting = &SETTINGS[index];
        let vars = setting.env().map(|name| (name.into(), value.clone().into()));
        let mut flags = Overrides::default();
        flags.set(setting.key, value.clone(), "--set");
        let _ = flags.assign(&value);
        let _ = combine(Path::new("c"), "", vars, &flags, "h");
    }
}
