//! Certificates made by the `openssl` command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::run;

/// Everything needed is said here, so that the system's own openssl.cnf plays no part.
const CONFIG: &str = "[req]\ndistinguished_name = name\nprompt = no\n[name]\nCN = unused\n[authority]\nbasicConstraints = critical, CA:TRUE\n\
                      keyUsage = critical, keyCertSign, cRLSign\nsubjectKeyIdentifier = hash\n";

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key, readable by the owner only.
    pub key: PathBuf,
}

/// Whether a certificate is to be refused for its date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Good for ten years.
    Valid,
    /// Ended yesterday.
    Expired,
}

/// A certificate authority of our own.
#[derive(Debug, Clone)]
pub struct Authority {
    directory: PathBuf,
    root: Certificate,
}

impl Authority {
    /// Makes an authority named `name`; its files are written into `directory`, which must exist.
    #[must_use]
    pub fn new(directory: &Path, name: &str) -> Self {
        let root = paths(directory, name);
        fs::write(directory.join("openssl.cnf"), CONFIG).expect("write openssl.cnf");
        let mut command = request(directory, name, &root.key);
        command.args(["-x509", "-days", "3650", "-extensions", "authority", "-out"]).arg(&root.certificate);
        run(&mut command);
        Self { directory: directory.to_owned(), root }
    }

    /// The file that clients name as `sslrootcert`.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root.certificate
    }

    /// A server's certificate for `names`, each as `IP:…` or `DNS:…`.
    #[must_use]
    pub fn server(&self, name: &str, names: &[&str], validity: Validity) -> Certificate {
        let extensions = format!("subjectAltName = {}\nextendedKeyUsage = serverAuth\n", names.join(", "));
        self.sign(name, &extensions, validity)
    }

    /// A client's certificate with `role` as its common name.
    #[must_use]
    pub fn client(&self, role: &str) -> Certificate {
        self.sign(role, "extendedKeyUsage = clientAuth\n", Validity::Valid)
    }

    fn sign(&self, name: &str, extensions: &str, validity: Validity) -> Certificate {
        let made = paths(&self.directory, name);
        let (wanted, extra) = (self.directory.join("request.pem"), self.directory.join("extensions.cnf"));
        fs::write(&extra, format!("basicConstraints = CA:FALSE\n{extensions}")).expect("write extensions.cnf");
        run(request(&self.directory, name, &made.key).arg("-out").arg(&wanted));
        let days = if validity == Validity::Valid { "3650" } else { "-1" };
        let serial = format!("0x{}", &uuid::Uuid::new_v4().simple().to_string()[1..]);
        let mut command = Command::new("openssl");
        command.args(["x509", "-req", "-sha256", "-days", days, "-set_serial", &serial, "-in"]).arg(&wanted);
        command.arg("-CA").arg(&self.root.certificate).arg("-CAkey").arg(&self.root.key);
        run(command.arg("-extfile").arg(&extra).arg("-out").arg(&made.certificate));
        made
    }
}

/// Writes a bundle of `roots`, one after the other, to `path`.
pub fn bundle(path: &Path, roots: &[&Path]) {
    let parts: Vec<String> = roots.iter().map(|root| fs::read_to_string(root).expect("read a root")).collect();
    fs::write(path, parts.concat()).expect("write the bundle");
}

/// A server's certificate for `names` that nobody signed but itself.
#[must_use]
pub fn self_signed(directory: &Path, name: &str, names: &[&str]) -> Certificate {
    let made = paths(directory, name);
    fs::write(directory.join("openssl.cnf"), CONFIG).expect("write openssl.cnf");
    let mut command = request(directory, name, &made.key);
    command.args(["-x509", "-days", "3650", "-addext", &format!("subjectAltName = {}", names.join(", "))]);
    run(command.args(["-addext", "extendedKeyUsage = serverAuth", "-out"]).arg(&made.certificate));
    made
}

fn paths(directory: &Path, name: &str) -> Certificate {
    Certificate { certificate: directory.join(format!("{name}.crt")), key: directory.join(format!("{name}.key")) }
}

fn request(directory: &Path, name: &str, key: &Path) -> Command {
    let mut command = Command::new("openssl");
    command.arg("req").arg("-config").arg(directory.join("openssl.cnf")).args(["-newkey", "ec"]);
    command.args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256", "-subj", &format!("/CN={name}")]);
    command.arg("-keyout").arg(key);
    command
}
