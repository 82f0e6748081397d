//! Hosts as network namespaces, each behind a router of its own site.
//!
//! Every host has one interface, `eth0`, on a network of its own; one more namespace routes between
//! them. A site's firewall is made of routing rules there (`ip rule … blackhole`), which drop without a
//! word as firewalls do, and need no other tool than iproute2. Needs root.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

/// Where `ip netns` keeps names.
const NAMES: &str = "/run/netns";
/// Namespaces of this program are called `allmend-<process>-<host>`.
const PREFIX: &str = "allmend-";
/// Seen nowhere but inside these namespaces.
const NETWORK: [u8; 2] = [10, 83];

/// Hosts and the router between them; gone when dropped.
#[derive(Debug)]
pub(super) struct Hosts {
    names: Vec<String>,
}

impl Hosts {
    /// Makes namespaces of these names and connects them.
    pub(super) fn new(names: &[&str]) -> anyhow::Result<Hosts> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "network namespaces need root; ALLMEND_NO_NETNS=1 leaves this test out"
        );
        remove_orphans();
        // From here on, dropping removes what was made.
        let hosts = Hosts { names: names.iter().map(|name| (*name).to_owned()).collect() };
        let router = hosts.router();
        ip(&["netns", "add", &router]).context(
            "this kernel or container makes no network namespaces; ALLMEND_NO_NETNS=1 leaves this test out",
        )?;
        inside(&router, &["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
        for (index, name) in names.iter().enumerate() {
            let (host, link) = (hosts.namespace(name), format!("host{index}"));
            let [own, gateway] = [2, 1].map(|last| address(index, last).to_string());
            ip(&["netns", "add", &host])?;
            ip(&[
                "link", "add", "eth0", "netns", &host, "type", "veth", "peer", "name", &link,
                "netns", &router,
            ])?;
            ip(&["-n", &router, "addr", "add", &format!("{gateway}/24"), "dev", &link])?;
            ip(&["-n", &router, "link", "set", &link, "up"])?;
            ip(&["-n", &host, "link", "set", "lo", "up"])?;
            ip(&["-n", &host, "addr", "add", &format!("{own}/24"), "dev", "eth0"])?;
            ip(&["-n", &host, "link", "set", "eth0", "up"])?;
            ip(&["-n", &host, "route", "add", "default", "via", &gateway])?;
        }
        Ok(hosts)
    }

    /// The namespace of a host.
    pub(super) fn namespace(&self, name: &str) -> String {
        format!("{PREFIX}{}-{name}", std::process::id())
    }

    /// The address of a host.
    pub(super) fn address(&self, name: &str) -> anyhow::Result<Ipv4Addr> {
        Ok(address(self.index(name)?, 2))
    }

    /// From now on no UDP leaves or reaches the host, and nobody connects to its TCP port `port`.
    pub(super) fn shut(&self, name: &str, port: u16) -> anyhow::Result<()> {
        let index = self.index(name)?;
        let (link, network) = (format!("host{index}"), format!("{}/24", address(index, 0)));
        let (router, port) = (self.router(), port.to_string());
        for rule in [
            vec!["iif", &link, "ipproto", "udp"],
            vec!["to", &network, "ipproto", "udp"],
            vec!["to", &network, "ipproto", "tcp", "dport", &port],
        ] {
            let arguments =
                [&["-n", &router, "rule", "add"], rule.as_slice(), &["blackhole"]].concat();
            ip(&arguments).context("this kernel drops nothing by protocol")?;
        }
        Ok(())
    }

    fn router(&self) -> String {
        self.namespace("router")
    }

    fn index(&self, name: &str) -> anyhow::Result<usize> {
        self.names.iter().position(|known| known == name).context("no such host")
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in self.names.iter().map(String::as_str).chain(["router"]) {
            // Whatever was not made cannot be removed.
            let _ = ip(&["netns", "del", &self.namespace(name)]);
        }
    }
}

/// The address `last` in the network of the host at `index`.
fn address(index: usize, last: u8) -> Ipv4Addr {
    let [a, b] = NETWORK;
    Ipv4Addr::new(a, b, u8::try_from(index).unwrap_or(u8::MAX), last)
}

/// Removes namespaces of runs that were killed.
fn remove_orphans() {
    for entry in std::fs::read_dir(NAMES).into_iter().flatten().flatten() {
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = ip(&["netns", "del", &name]);
        }
    }
}

fn inside(namespace: &str, command: &[&str]) -> anyhow::Result<()> {
    ip(&[&["netns", "exec", namespace], command].concat())
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output();
    let output = output.context("there is no `ip`; install iproute2")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), said.trim());
    }
    Ok(())
}
