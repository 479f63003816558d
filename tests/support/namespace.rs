//! A network namespace with a link to it that can be taken down: what no proxy can play, since it answers keepalives itself.

use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

use super::daemon::{Daemon, Program};
use super::process::{run, spawn};

/// A network of its own for a daemon, gone when dropped or when this process ends, however that happens.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    /// Our end of the link.
    device: String,
    outside: Ipv4Addr,
    inside: Ipv4Addr,
    guardian: Child,
}

/// Ends with its stdin.
const GUARDIAN: &str = r#"
trap '' HUP INT TERM
read -r _
ip link del "$2" 2>/dev/null
ip netns del "$1"
"#;

impl Namespace {
    /// Makes one.
    ///
    /// # Panics
    /// Where this machine does not let us, which takes root and a kernel with network namespaces: nothing else can play a link that is down.
    #[must_use]
    pub fn make() -> Self {
        let random = uuid::Uuid::new_v4();
        let [first, second, ..] = *random.as_bytes();
        let id = &random.simple().to_string()[..8];
        let (name, device, peer) = (format!("tenantd-{id}"), format!("td{id}"), format!("tp{id}"));
        // Of the addresses that are set apart for measurements between two networks.
        let base = u32::from(Ipv4Addr::new(198, 18 + (first & 1), second, first & 0b1111_1100));
        let (outside, inside) = (Ipv4Addr::from(base + 1), Ipv4Addr::from(base + 2));
        let ip = |arguments: &[&str]| {
            let output =
                Command::new("ip").args(arguments).output().expect("start ip, which .ci/install-needs installs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success(),
                "ip {}: {said}\nA link is taken down in a network namespace, which takes root and a kernel that has them (docs/faults.md, fault 8). \
                 Without them leave this test out by name: cargo test -- --skip a_link_that_is_down",
                arguments.join(" ")
            );
        };
        ip(&["netns", "add", &name]);
        let mut command = Command::new("sh");
        command.args(["-c", GUARDIAN, "guardian", &name, &device]).stdin(Stdio::piped());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let guardian = spawn(command);
        let made = Self { name: name.clone(), device: device.clone(), outside, inside, guardian };
        let (ours, theirs) = (format!("{outside}/30"), format!("{inside}/30"));
        ip(&["link", "add", &device, "type", "veth", "peer", "name", &peer, "netns", &name]);
        ip(&["addr", "add", &ours, "dev", &device]);
        ip(&["link", "set", &device, "up"]);
        ip(&["-n", &name, "addr", "add", &theirs, "dev", &peer]);
        ip(&["-n", &name, "link", "set", &peer, "up"]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        made
    }

    /// The address of our end, where a server can listen.
    #[must_use]
    pub fn outside(&self) -> Ipv4Addr {
        self.outside
    }

    /// The address that what runs inside comes from.
    #[must_use]
    pub fn inside(&self) -> Ipv4Addr {
        self.inside
    }

    /// Takes the link up or down.
    pub fn link(&self, up: bool) {
        // The other end sees no carrier, and what it sends waits, as behind a cable that was pulled.
        run(Command::new("ip").args(["link", "set", &self.device, if up { "up" } else { "down" }]));
    }

    /// Starts the daemon of `program` inside.
    #[must_use]
    pub fn start(&self, program: &Program) -> Daemon {
        program.start_under("ip", &["netns", "exec", &self.name])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.guardian.stdin.take());
        let _ = self.guardian.wait();
    }
}
