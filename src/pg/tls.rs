//! TLS towards the server: whom we trust, what we show, and what a failure means.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use native_tls::{Certificate, Identity, Protocol, TlsConnector};
use postgres_native_tls::MakeTlsConnector;

use crate::config::connection::{Roots, SslMode, Tls};
use crate::error::{Error, Kind, Result};

/// How long a connector made of unchanged files is used again. The system's certificates are read when it is made.
const REUSED_FOR: Duration = Duration::from_mins(10);

/// What of the server's certificate is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// Nothing: encrypted, but towards anybody.
    Nothing,
    /// That an authority we trust has signed it.
    Authority,
    /// That, and that it bears the host's name.
    Name,
}

/// Makes connectors. The files are read at each connect, so that a new authority is trusted without a restart; only the
/// building, which takes longer than the rest of a connect, is left out while their bytes are the same.
#[derive(Default)]
pub(super) struct Connectors {
    last: Mutex<Option<Made>>,
}

struct Made {
    from: Ingredients,
    at: Instant,
    connector: MakeTlsConnector,
}

#[derive(PartialEq, Eq)]
struct Ingredients {
    check: Check,
    /// The bytes of the root file; `None`: the system's roots.
    roots: Option<Vec<u8>>,
    /// Certificate chain and key.
    identity: Option<(Vec<u8>, Vec<u8>)>,
    only_tls13: bool,
}

impl Connectors {
    /// A connector for `mode`, which is one that uses TLS.
    ///
    /// # Errors
    /// [`Kind::Tls`]: a file that is named cannot be read or is not what it should be, or nothing says whom to trust.
    pub(super) async fn connector(&self, tls: &Tls, mode: SslMode) -> Result<MakeTlsConnector> {
        let (check, roots) = trusted(&tls.roots, mode).await?;
        let from = Ingredients { check, roots, identity: identity(tls).await?, only_tls13: tls.only_tls13 };
        if let Some(made) = &*self.last.lock().unwrap_or_else(PoisonError::into_inner)
            && made.from == from
            && made.at.elapsed() < REUSED_FOR
        {
            return Ok(made.connector.clone());
        }
        let connector = build(&from, tls)?;
        let remembered = Made { from, at: Instant::now(), connector: connector.clone() };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(remembered);
        Ok(connector)
    }
}

/// What is checked, and against which file's bytes.
async fn trusted(roots: &Roots, mode: SslMode) -> Result<(Check, Option<Vec<u8>>)> {
    let bytes = match roots {
        // A mode that checks nothing asks for no file either.
        _ if mode < SslMode::Require => None,
        Roots::File(file) => Some(read(file, "main.sslrootcert").await?),
        Roots::Home(Some(file)) if tokio::fs::try_exists(file).await.unwrap_or(true) => {
            Some(read(file, "libpq's root certificates").await?)
        }
        Roots::System | Roots::Home(_) => None,
    };
    let check = match (mode, &bytes) {
        (SslMode::VerifyFull, _) => Check::Name,
        // libpq's rule: a root file turns require into verify-ca.
        (SslMode::VerifyCa | SslMode::Require, Some(_)) => Check::Authority,
        (SslMode::VerifyCa, None) => {
            return Err(Error::new(Kind::Tls, "sslmode verify-ca without a file of root certificates")
                .hint("name the authority's file in main.sslrootcert, or use verify-full with sslrootcert=system"));
        }
        _ => Check::Nothing,
    };
    Ok((check, bytes))
}

async fn identity(tls: &Tls) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
    let Some(identity) = &tls.identity else { return Ok(None) };
    if !identity.named && !tokio::fs::try_exists(&identity.certificate).await.unwrap_or(false) {
        return Ok(None);
    }
    let certificate = read(&identity.certificate, "main.sslcert").await?;
    Ok(Some((certificate, read(&identity.key, "main.sslkey").await?)))
}

async fn read(file: &Path, role: &str) -> Result<Vec<u8>> {
    tokio::fs::read(file).await.map_err(|error| {
        Error::new(Kind::Tls, error.to_string())
            .hint("the file must exist and be readable by the daemon")
            .context(format!("read {role}, {}", file.display()))
    })
}

fn build(from: &Ingredients, tls: &Tls) -> Result<MakeTlsConnector> {
    let mut builder = TlsConnector::builder();
    builder.min_protocol_version(Some(if from.only_tls13 { Protocol::Tlsv13 } else { Protocol::Tlsv12 }));
    builder.danger_accept_invalid_hostnames(from.check != Check::Name);
    builder.danger_accept_invalid_certs(from.check == Check::Nothing);
    if let Some(pem) = &from.roots {
        builder.disable_built_in_roots(true);
        for certificate in certificates(pem).map_err(|error| error.context(format!("read {}", root_file(tls))))? {
            builder.add_root_certificate(certificate);
        }
    }
    if let Some((chain, key)) = &from.identity {
        builder.identity(shown(chain, key).map_err(|error| error.context(format!("read {}", identity_files(tls))))?);
    }
    let connector = builder.build().map_err(|error| {
        Error::new(Kind::Tls, format!("prepare TLS: {error}")).hint("do main.sslcert and main.sslkey belong together?")
    })?;
    Ok(MakeTlsConnector::new(connector))
}

fn root_file(tls: &Tls) -> String {
    match &tls.roots {
        Roots::File(file) | Roots::Home(Some(file)) => file.display().to_string(),
        Roots::System | Roots::Home(None) => "the system's certificates".to_owned(),
    }
}

fn identity_files(tls: &Tls) -> String {
    tls.identity.as_ref().map_or_else(String::new, |identity| {
        format!("the client certificate {} and its key {}", identity.certificate.display(), identity.key.display())
    })
}

/// Every certificate of a bundle. Reading a file without any is no error to the library, so it is made one here.
fn certificates(pem: &[u8]) -> Result<Vec<Certificate>> {
    let advice = "main.sslrootcert must be a PEM file of one or more certificates, such as the bundle of your provider";
    match Certificate::stack_from_pem(pem) {
        Ok(found) if found.is_empty() => Err(Error::new(Kind::Tls, "it holds no certificate").hint(advice)),
        Ok(found) => Ok(found),
        Err(error) => Err(Error::new(Kind::Tls, format!("it holds a broken certificate: {error}")).hint(advice)),
    }
}

fn shown(chain: &[u8], key: &[u8]) -> Result<Identity> {
    let begins = |words: &str| find(key, &format!("-----BEGIN {words}-----"));
    let Some(start) = begins("PRIVATE KEY") else {
        let error = Error::new(Kind::Tls, "the key is not in the form PKCS#8");
        return Err(if begins("ENCRYPTED PRIVATE KEY").is_some() {
            error.hint("decrypt it once: openssl pkcs8 -in KEY -out NEW-KEY")
        } else {
            error.hint("convert it once: openssl pkcs8 -topk8 -nocrypt -in KEY -out NEW-KEY")
        });
    };
    Identity::from_pkcs8(chain, &key[start..]).map_err(|error| {
        Error::new(Kind::Tls, error.to_string()).hint("both must be PEM files, the certificate first in its chain")
    })
}

fn find(text: &[u8], part: &str) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part.as_bytes())
}

/// What a failed connect says about TLS; `None` when it failed for another reason.
pub(super) fn failure(error: &tokio_postgres::Error) -> Option<Error> {
    let source = error.source()?;
    if let Some(tls) = source.downcast_ref::<native_tls::Error>() {
        // The peer went away in the middle: nothing was said against it or us.
        if tls.source().is_some_and(<dyn StdError>::is::<io::Error>) {
            return Some(Error::new(
                Kind::Unreachable,
                format!("the connection broke during the TLS handshake: {tls}"),
            ));
        }
        return Some(handshake(&tls.to_string()));
    }
    if let Some(io) = source.downcast_ref::<io::Error>() {
        // With TLS 1.3 the server refuses a client certificate after the handshake; OpenSSL's words come wrapped once more.
        let wrapped = io.get_ref().filter(|_| io.kind() == io::ErrorKind::Other)?;
        return Some(handshake(&wrapped.to_string()));
    }
    // The driver's error has no predicate for its kinds. This is its text for a failed TLS, and here the cause is the answer 'N'.
    (error.to_string() == "error performing TLS handshake").then(|| {
        Error::new(Kind::Tls, source.to_string())
            .hint("switch TLS on at the server (ssl = on); nothing but the question for TLS was sent to it")
    })
}

/// OpenSSL's text and, by the reason in it, what to do. Only the hint depends on the words.
fn handshake(text: &str) -> Error {
    let advice = [
        ("ostname mismatch", "use the host name that the server's certificate bears; an address must be in it as one"),
        (
            "IP address mismatch",
            "use the host name that the server's certificate bears; an address must be in it as one",
        ),
        ("certificate has expired", "renew the server's certificate, or the authority's in main.sslrootcert"),
        ("not yet valid", "compare the clocks of this machine and of the server"),
        ("local issuer certificate", "main.sslrootcert must hold the authority that signed the server's certificate"),
        ("self-signed certificate", "main.sslrootcert must hold the authority that signed the server's certificate"),
        ("alert", "the server refused our side of TLS: main.sslcert must be signed by an authority that it trusts"),
        ("wrong version number", "is a Postgres server at this port?"),
    ];
    let hint = advice.iter().find(|(words, _)| text.contains(words)).map_or(
        "openssl s_client -starttls postgres -connect HOST:PORT shows what the server offers",
        |(_, advice)| advice,
    );
    Error::new(Kind::Tls, format!("TLS failed: {text}")).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn tls(roots: Roots) -> Tls {
        Tls { roots, identity: None, only_tls13: false }
    }

    #[tokio::test]
    async fn a_root_file_makes_require_check_the_authority_and_none_leaves_it_unchecked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("root.crt");
        let absent = Roots::Home(Some(file.clone()));
        assert!(matches!(trusted(&absent, SslMode::Require).await, Ok((Check::Nothing, None))));
        assert!(matches!(trusted(&absent, SslMode::VerifyFull).await, Ok((Check::Name, None))));
        assert!(matches!(trusted(&Roots::System, SslMode::VerifyFull).await, Ok((Check::Name, None))));
        assert_eq!(trusted(&absent, SslMode::VerifyCa).await.unwrap_err().kind(), Kind::Tls);
        std::fs::write(&file, "x").unwrap();
        for roots in [absent, Roots::File(file)] {
            assert!(matches!(trusted(&roots, SslMode::Prefer).await, Ok((Check::Nothing, None))));
            assert!(matches!(trusted(&roots, SslMode::Require).await, Ok((Check::Authority, Some(_)))));
            assert!(matches!(trusted(&roots, SslMode::VerifyCa).await, Ok((Check::Authority, Some(_)))));
            assert!(matches!(trusted(&roots, SslMode::VerifyFull).await, Ok((Check::Name, Some(_)))));
        }
    }

    #[tokio::test]
    async fn a_root_file_that_is_none_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let refused = async |name: &str, content: Option<&str>| {
            let file = folder.path().join(name);
            if let Some(content) = content {
                std::fs::write(&file, content).unwrap();
            }
            let roots = tls(Roots::File(file));
            let error = Connectors::default().connector(&roots, SslMode::VerifyFull).await.err().unwrap();
            assert_eq!(error.kind(), Kind::Tls);
            assert!(error.chain().contains(name), "{}", error.chain());
            error.chain()
        };
        assert!(refused("absent.pem", None).await.contains("No such file"));
        assert!(refused("empty.pem", Some("")).await.contains("holds no certificate"));
        assert!(refused("notes.pem", Some("see the wiki")).await.contains("holds no certificate"));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(refused("broken.pem", Some(broken)).await.contains("broken certificate"));
    }

    #[test]
    fn a_key_of_another_form_is_refused_with_the_command_that_converts_it() {
        for (key, command) in [
            ("-----BEGIN RSA PRIVATE KEY-----", "openssl pkcs8 -topk8 -nocrypt"),
            ("-----BEGIN EC PRIVATE KEY-----", "openssl pkcs8 -topk8 -nocrypt"),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----", "openssl pkcs8 -in KEY"),
            ("", "openssl pkcs8 -topk8"),
        ] {
            let error = shown(b"", key.as_bytes()).err().unwrap();
            assert!(error.advice().unwrap().contains(command), "{key}");
        }
    }

    #[tokio::test]
    async fn a_certificate_of_the_home_need_not_be_there_but_a_named_one_must() {
        let files = |named| crate::config::connection::Identity {
            certificate: PathBuf::from("/nowhere/postgresql.crt"),
            key: PathBuf::from("/nowhere/postgresql.key"),
            named,
        };
        let mut settings = tls(Roots::System);
        settings.identity = Some(files(false));
        assert!(identity(&settings).await.unwrap().is_none());
        settings.identity = Some(files(true));
        assert!(identity(&settings).await.unwrap_err().chain().contains("/nowhere/postgresql.crt"));
    }
}
