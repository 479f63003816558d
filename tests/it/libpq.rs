//! Connection strings mean to tenantd what they mean to libpq.

use std::path::Path;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::process::Command;

use crate::connect::server;
use crate::support::certificates::Authority;
use crate::support::database::{TENANTD_PASSWORD, TestDatabase};
use crate::support::server::programs;

/// Who is where, and how.
const SEEN: &str = "select concat_ws(' ', current_user, current_database(), ssl, current_setting('work_mem'))
                    from pg_stat_ssl where pid = pg_backend_pid()";

/// With the login `{login}`, `{user}` and `{word}` in it, the server's `{host}:{port}`, the database, its authority's file, another's, and a file
/// that is not there; and whether it connects.
const STRINGS: [(&str, bool); 24] = [
    ("postgresql://{login}@{host}:{port}/{db}?sslmode=verify-full&sslrootcert={root}", true),
    ("postgres://{login}@localhost:{port}/{db}?sslmode=verify-full&sslrootcert={root}", true),
    ("postgresql://{login}@{host}:{port}/{db}?sslmode=verify-ca&sslrootcert={root}", true),
    ("postgresql://{login}@{host}:{port}/{db}?sslmode=require", true),
    ("postgresql://{login}@{host}:{port}/{db}?sslmode=prefer", true),
    ("postgresql://{login}@{host}:{port}/{db}?ssl=true", true),
    ("postgresql://{login}@{host}:{port}/{db}", true),
    ("postgresql:///{db}?host={host}&port={port}&user=tenantd&password={word}&sslmode=require", true),
    ("postgresql://tenantd@{host}:{port}/{db}?password={word}", true),
    ("postgresql://{login}@localhost:{port}/{db}?hostaddr={host}&sslmode=verify-full&sslrootcert={root}", true),
    ("postgresql://{login}@{host}:1,{host}:{port}/{db}?sslmode=require", true),
    ("postgresql://{login}@{host}:{port}/{db}?options=-c%20work_mem%3D8MB", true),
    ("postgresql://{login}@{host}:{port}/{db}?channel_binding=require&ssl_min_protocol_version=TLSv1.3", true),
    (
        "postgresql://{login}@{host}:{port}/{db}?keepalives=1&keepalives_idle=20&keepalives_count=5&tcp_user_timeout=9000",
        true,
    ),
    ("postgresql://{login}@{host}:{port}/{db}?target_session_attrs=read-write&connect_timeout=7", true),
    ("postgresql://{login}@{host}:{port}/{db}?application_name=x&client_encoding=UTF8&gssencmode=disable", true),
    ("host={host} port={port} dbname={db} user=tenantd password='{plain}' sslmode=verify-ca sslrootcert={root}", true),
    ("postgresql://{login}@{host}:{port}/{db}?sslmode=verify-full&sslrootcert={other}", false),
    ("postgresql://{login}@{host}:{port}/{db}?sslmode=require&sslrootcert={other}", false),
    ("postgresql://{login}@{host}:{port}/{db}?sslmode=verify-full&sslrootcert={missing}", false),
    ("postgresql://{login}@{host}:{port}/{db}?sslmode=disable", false),
    ("postgresql://{login}@{host}:{port}/{db}?sslmode=nonsense", false),
    ("postgresql://{login}@{host}:x{port}/{db}", false),
    ("postgresql://{login}@{host}:{port}/{db}?sslmod=require", false),
];

/// Goal: what libpq takes tenantd takes, and sees the same there; what it refuses is refused. Method: psql and the one way to connect, on one server.
#[tokio::test]
async fn connection_strings_mean_what_they_mean_to_libpq() {
    let database = TestDatabase::new().await;
    let folder = tempfile::tempdir().expect("a directory");
    let other = Authority::new(folder.path(), "other");
    let address = database.server().address();
    let word = utf8_percent_encode(TENANTD_PASSWORD, NON_ALPHANUMERIC).to_string();
    let shown = |path: &Path| path.display().to_string();
    for (string, connects) in STRINGS {
        let url = string
            .replace("{login}", &format!("tenantd:{word}"))
            .replace("{word}", &word)
            .replace("{plain}", TENANTD_PASSWORD)
            .replace("{host}", &address.ip().to_string())
            .replace("{port}", &address.port().to_string())
            .replace("{db}", database.name())
            .replace("{root}", &shown(database.server().authority().root()))
            .replace("{other}", &shown(other.root()))
            .replace("{missing}", &shown(&folder.path().join("missing.pem")));
        let mut psql = Command::new(programs().join("psql"));
        psql.env_clear().env("HOME", folder.path()).args([
            "--no-psqlrc",
            "--no-password",
            "-At",
            "-c",
            SEEN,
            "-d",
            &url,
        ]);
        let output = psql.output().await.expect("run psql");
        let libpq = output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        let ours = see(&url, folder.path()).await;
        assert_eq!(ours, libpq, "{string}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(ours.is_some(), connects, "{string}");
    }
    database.finish().await;
}

async fn see(url: &str, home: &Path) -> Option<String> {
    let home = home.to_string_lossy().into_owned();
    // What cannot be read is refused before anything is connected.
    let read = std::panic::AssertUnwindSafe(|| server(url, &[("HOME", &home)], |_| ()));
    let session = std::panic::catch_unwind(read).ok()?.connect(None, "test").await.ok()?;
    Some(session.query_one(SEEN, &[]).await.expect("ask").get(0))
}
