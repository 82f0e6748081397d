//! A script in the executable's place that starts it differently for some data directories: in another
//! network namespace, or with a further option. So worlds need to know of neither.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// How commands on one data directory are started.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// The directory's name.
    pub(super) dir: String,
    /// Put before the executable, such as `ip netns exec NAME`.
    pub(super) before: String,
    /// Put after the arguments of `node run`.
    pub(super) run_options: String,
}

/// Writes the script to `path`; it replaces itself by `program`, so that process ids stay true.
pub(super) fn write(path: &Path, program: &Path, cases: &[Case]) -> anyhow::Result<PathBuf> {
    let program = program.to_str().context("the executable's name is no text")?;
    let mut script =
        String::from("#!/bin/sh\n# Called as: --dir DIRECTORY COMMAND…\ncase \"${2##*/}\" in\n");
    for Case { dir, before, run_options } in cases {
        writeln!(script, "{dir})")?;
        writeln!(
            script,
            "  if [ \"$3 $4\" = \"node run\" ]; then exec {before} '{program}' \"$@\" {run_options}; fi",
        )?;
        writeln!(script, "  exec {before} '{program}' \"$@\" ;;")?;
    }
    write!(script, "esac\nexec '{program}' \"$@\"\n")?;
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(path)?;
    file.write_all(script.as_bytes())?;
    Ok(path.to_owned())
}
