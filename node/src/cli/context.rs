//! What every command needs: the data directory, who we are, a connection to the node.

use std::path::Path;
use std::time::Duration;

use allmend_protocol::ids::NodeId;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::proto::{Ask, ProblemClass};
use crate::client::{CallError, Caller};
use crate::config::{Config, Identity, KeyError, Layout, Loaded, Overrides, load};
use crate::daemon::DaemonInfo;
use crate::ui::{Advice, ExitClass, Explain, Explanation, Terminal};

/// One command's surroundings.
pub(super) struct Context<'a> {
    pub(super) layout: Layout,
    pub(super) terminal: &'a Terminal,
}

/// Where a researcher's home node is; `home.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Home {
    pub(super) node: NodeId,
    pub(super) bulk: Vec<String>,
}

/// As whom to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum As {
    /// As the researcher of this directory.
    Researcher,
    /// As the operator of this directory's node.
    Operator,
    /// As whichever this directory has, the operator first.
    Anybody,
}

impl<'a> Context<'a> {
    pub(super) fn new(dir: Option<&Path>, terminal: &'a Terminal) -> anyhow::Result<Context<'a>> {
        let layout = Layout::discover(dir, |name| std::env::var_os(name))?;
        Ok(Context { layout, terminal })
    }

    /// The configuration, with `set` above environment and file.
    pub(super) fn config(&self, set: &[String]) -> anyhow::Result<Config> {
        let mut overrides = Overrides::default();
        for assignment in set {
            overrides.assign(assignment)?;
        }
        let Loaded { config, warnings, .. } =
            load(&self.layout.config_file(), std::env::vars_os(), &overrides)?;
        for warning in warnings {
            self.terminal.warn(warning);
        }
        Ok(config)
    }

    /// The researcher's identity and home.
    pub(super) fn researcher(&self) -> anyhow::Result<(Identity, Home)> {
        let identity = Identity::load(&self.layout.researcher_key()).map_err(|error| {
            let missing = matches!(error, KeyError::Missing { .. });
            let error = anyhow::Error::from(error);
            if missing {
                error.context(
                    Advice::new(ExitClass::Config, "no researcher has joined in this directory")
                        .hint("join with an invitation: allmend join INVITE --name \"YOUR NAME\""),
                )
            } else {
                error
            }
        })?;
        let path = self.layout.home_file();
        let home = std::fs::read(&path)
            .with_context(|| format!("cannot read {}", path.display()))
            .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))?;
        Ok((identity, home))
    }

    /// The node of this directory, if it runs.
    pub(super) fn daemon(&self) -> anyhow::Result<DaemonInfo> {
        let path = self.layout.daemon_file();
        let bytes = std::fs::read(&path).map_err(|_| {
            anyhow::Error::from(
                Advice::new(ExitClass::Unreachable, "no node is running in this directory")
                    .hint("start it: allmend node run"),
            )
        })?;
        serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Connects to the node.
    pub(super) async fn connect(&self, who: As) -> anyhow::Result<Caller> {
        let operator = match who {
            As::Operator => true,
            As::Researcher => false,
            As::Anybody => self.layout.node_key().exists() && self.layout.daemon_file().exists(),
        };
        if operator {
            let identity = Identity::load(&self.layout.node_key())?;
            let daemon = self.daemon()?;
            return Ok(Caller::connect(identity.signing(), daemon.node, &daemon.bulk).await?);
        }
        if who == As::Anybody && !self.layout.researcher_key().exists() {
            // Says that no node runs, or that nobody made this directory.
            self.layout.require()?;
            self.daemon()?;
        }
        let (identity, home) = self.researcher()?;
        Ok(Caller::connect(identity.signing(), home.node, &home.bulk).await?)
    }

    /// Asks for a document and prints it, as JSON or as `human` shows it.
    pub(super) async fn show(
        &self,
        who: As,
        ask: &Ask,
        human: impl FnOnce(&Terminal, &Value) -> std::io::Result<()>,
    ) -> anyhow::Result<()> {
        let caller = self.connect(who).await?;
        let document = caller.document(ask).await?;
        caller.close().await;
        self.terminal.answer(&document, human)?;
        Ok(())
    }
}

impl Explain for CallError {
    fn explain(&self) -> Explanation {
        match self {
            CallError::Unreachable { .. } => Explanation::hinting(
                ExitClass::Unreachable,
                "is the node running, and does a firewall let UDP through to its bulk port?",
            ),
            CallError::Broken(_) => Explanation::of(ExitClass::Unreachable),
            CallError::Nonsense(_) => Explanation::of(ExitClass::Internal),
            CallError::Refused(problem) => {
                let class = match problem.class {
                    ProblemClass::Usage => ExitClass::Usage,
                    ProblemClass::NotFound => ExitClass::NotFound,
                    ProblemClass::Refused => ExitClass::Refused,
                    ProblemClass::Unavailable => ExitClass::Conflict,
                    ProblemClass::NoRoom => ExitClass::NoRoom,
                    ProblemClass::Internal => ExitClass::Internal,
                };
                Explanation { class, hint: problem.hint.clone() }
            }
        }
    }
}

/// `90s`, `30m`, `12h`, `7d`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; write e.g. 90s, 30m, 12h or 7d");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7_200)));
        for bad in ["", "5", "h", "5 h", "-1s", "99999999999999999999d", "5w"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
