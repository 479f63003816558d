//! The files in systemd/, judged by systemd's own tools.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SERVICES: [&str; 2] = ["tenantd.service", "tenantd-sweep.service"];
const MOST_EXPOSED: f64 = 2.0;

fn unit(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(unit(name)).expect(name)
}

/// Copies of the units in a directory of their own, that start the built program.
fn copies() -> (tempfile::TempDir, Vec<PathBuf>) {
    let directory = tempfile::tempdir().expect("a directory");
    let copies = SERVICES.into_iter().chain(["tenantd-sweep.timer"]).map(|name| {
        let copy = directory.path().join(name);
        let here = text(name).replace("/usr/local/bin/tenantd", env!("CARGO_BIN_EXE_tenantd"));
        fs::write(&copy, here).expect("write a copy");
        copy
    });
    let copies = copies.collect();
    (directory, copies)
}

fn run(command: &mut Command) -> (Output, String) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
    (output, said)
}

/// Goal: systemd finds nothing to remark on. Method: its own `verify`, which prints what it finds.
#[test]
fn units_are_understood_without_a_word() {
    let (_directory, copies) = copies();
    let (output, said) = run(Command::new("systemd-analyze").arg("verify").args(&copies));
    assert!(output.status.success() && said.is_empty(), "{said}");
}

/// Goal: the check above is not blind. Method: one wrong line.
#[test]
fn a_wrong_line_is_remarked_on() {
    let (_directory, copies) = copies();
    fs::write(&copies[0], text(SERVICES[0]) + "\n[Service]\nNoNewPrivilege=yes\n").expect("write");
    let (_, said) = run(Command::new("systemd-analyze").arg("verify").arg(&copies[0]));
    assert!(said.contains("NoNewPrivilege"), "{said}");
}

/// Goal: a service that is broken into can do little. Method: systemd's own marks, 0 to 10.
#[test]
fn services_are_little_exposed() {
    let (_directory, copies) = copies();
    for copy in &copies[..SERVICES.len()] {
        let (_, said) =
            run(Command::new("systemd-analyze").args(["security", "--offline=true", "--no-pager"]).arg(copy));
        let overall = said.lines().find_map(|line| line.split_once("Overall exposure level for")).expect(&said).1;
        let mark = overall.split_once(": ").expect(overall).1.split(' ').next().expect(overall);
        let mark: f64 = mark.parse().unwrap_or_else(|error| panic!("{overall}: {error}"));
        assert!(mark <= MOST_EXPOSED, "{said}");
    }
}

/// Goal: both services are hardened alike. Method: compare the settings from the heading on.
#[test]
fn both_services_are_hardened_alike() {
    let [one, other] = SERVICES.map(|name| {
        let text = text(name);
        let hardening = text.split_once("# Hardening").expect(name).1.to_owned();
        hardening.lines().skip(1).take_while(|line| !line.starts_with('[')).map(str::to_owned).collect::<Vec<_>>()
    });
    let settings = |lines: Vec<String>| -> Vec<String> {
        lines.into_iter().filter(|line| line.contains('=') && !line.starts_with('#')).collect()
    };
    let one = settings(one);
    assert!(one.len() > 20, "{one:?}");
    assert_eq!(one, settings(other));
}

/// Goal: the unit says what the design asks of it. Method: look for the lines.
#[test]
fn the_daemon_is_run_as_the_design_says() {
    let unit = text("tenantd.service");
    for line in [
        "Type=notify",
        "WatchdogSec=30",
        "Restart=on-failure",
        "RestartPreventExitStatus=2 4",
        "StartLimitIntervalSec=0",
        "KillMode=mixed",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "After=network-online.target postgresql.service",
    ] {
        assert!(unit.lines().any(|one| one == line), "{line}");
    }
    assert!(!unit.contains("Requires="), "a restart of Postgres must not end the daemon");
    let seconds = |text: &str, key: &str| -> u32 {
        let value = text.lines().find_map(|line| line.strip_prefix(key)).expect(key);
        value.trim_matches(|letter: char| !letter.is_ascii_digit()).parse().expect(value)
    };
    let settings = include_str!("../../../config/default.toml");
    assert!(
        seconds(&unit, "TimeoutStopSec=") > seconds(settings, "shutdown = "),
        "a stop has the time it is set to take"
    );
}

/// Goal: the user of the units can be made from the file beside them. Method: systemd's tool, told to change nothing.
#[test]
fn the_user_can_be_made() {
    let (output, said) = run(Command::new("systemd-sysusers").arg("--dry-run").arg(unit("tenantd.sysusers.conf")));
    assert!(output.status.success() && !said.to_lowercase().contains("ignoring"), "{said}");
    for service in SERVICES {
        assert!(text(service).lines().any(|line| line == "User=tenantd"), "{service}");
    }
    assert!(text("tenantd.sysusers.conf").lines().any(|line| line.starts_with("u     tenantd ")));
}
