use super::*;
use crate::error::Kind;
use proptest::prelude::*;

const SECRET: &str = "hunter2";

fn variables<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
    move |name| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
}

fn parts<'a>(url: &'a str, environment: &'a dyn Fn(&str) -> Option<String>) -> Parts<'a> {
    Parts {
        url: (!url.is_empty()).then_some(url),
        environment,
        password_file: None,
        password_command: None,
        sslmode: None,
        sslrootcert: None,
        sslcert: None,
        sslkey: None,
        connect_timeout: DEFAULT_CONNECT_TIMEOUT,
    }
}

fn read(url: &str, environment: &[(&str, &str)]) -> Result<Connection> {
    Connection::from_parts(&parts(url, &variables(environment)))
}

fn ok(url: &str) -> Connection {
    read(url, &[("HOME", "/home/t"), ("USER", "os")]).unwrap_or_else(|error| panic!("{url}: {}", error.chain()))
}

fn password(connection: &Connection) -> Option<&str> {
    use secrecy::ExposeSecret;
    connection.password.fixed.as_ref().map(ExposeSecret::expose_secret)
}

/// What is written, who connects where, and the TLS of each place.
#[test]
fn what_is_written_is_understood_as_libpq_would() {
    use SslMode::{Allow, Disable, Prefer, Require, VerifyCa, VerifyFull};
    let table: &[(&str, &str, &[SslMode])] = &[
        ("", "os@/var/run/postgresql:5432/os", &[Disable]),
        ("postgresql://", "os@/var/run/postgresql:5432/os", &[Disable]),
        ("postgres://u@db", "u@db:5432/u", &[VerifyFull]),
        ("postgresql://u@db/app", "u@db:5432/app", &[VerifyFull]),
        ("  postgresql://u@db/app\n", "u@db:5432/app", &[VerifyFull]),
        ("postgresql://u:p@db:6432/app", "u@db:6432/app", &[VerifyFull]),
        ("postgresql://u:p@db:/app", "u@db:5432/app", &[VerifyFull]),
        ("postgresql://db/app?user=u&password=p", "u@db:5432/app", &[VerifyFull]),
        ("postgresql://u@db/app?dbname=other", "u@db:5432/other", &[VerifyFull]),
        ("postgresql://u%40corp@db/my%20app", "u@corp@db:5432/my app", &[VerifyFull]),
        ("postgresql://u@h1,h2:6432/app?port=7000", "u@h1:7000,h2:7000/app", &[VerifyFull, VerifyFull]),
        ("postgresql://u@h1:1,h2:2,h3:3/app", "u@h1:1,h2:2,h3:3/app", &[VerifyFull, VerifyFull, VerifyFull]),
        ("postgresql://u@h1,h2:6432/app", "u@h1:5432,h2:6432/app", &[VerifyFull, VerifyFull]),
        ("postgresql://u@localhost,h2/app", "u@localhost:5432,h2:5432/app", &[Prefer, VerifyFull]),
        ("postgresql://u@[::1]:6432/app", "u@[::1]:6432/app", &[Prefer]),
        ("postgresql://u@[2001:db8::7],[::1]/app", "u@[2001:db8::7]:5432,[::1]:5432/app", &[VerifyFull, Prefer]),
        ("postgresql://u@127.0.0.1/app", "u@127.0.0.1:5432/app", &[Prefer]),
        ("postgresql://u@127.8.9.1/app?sslmode=allow", "u@127.8.9.1:5432/app", &[Allow]),
        ("postgresql://u@LOCALHOST/app?sslmode=prefer", "u@LOCALHOST:5432/app", &[Prefer]),
        ("postgresql://u@%2Frun%2Fpg/app", "u@/run/pg:5432/app", &[Disable]),
        ("postgresql:///app?host=/run/pg&port=6432&user=u", "u@/run/pg:6432/app", &[Disable]),
        ("postgresql://u@db/app?host=/run/pg&sslmode=verify-full", "u@/run/pg:5432/app", &[Disable]),
        ("postgresql://u@/app?host=/run/pg,db", "u@/run/pg:5432,db:5432/app", &[Disable, VerifyFull]),
        ("postgresql://u@db/app?sslmode=disable", "u@db:5432/app", &[Disable]),
        ("postgresql://u@db/app?sslmode=require", "u@db:5432/app", &[Require]),
        ("postgresql://u@db/app?ssl=true", "u@db:5432/app", &[Require]),
        ("postgresql://u@db/app?sslmode=verify-ca&sslrootcert=/ca.pem", "u@db:5432/app", &[VerifyCa]),
        ("postgresql://u@db/app?sslmode=verify-full&sslrootcert=/ca.pem", "u@db:5432/app", &[VerifyFull]),
        ("postgresql://u@db/app?sslmode=", "u@db:5432/app", &[VerifyFull]),
        ("postgresql://u@localhost/app?sslrootcert=system", "u@localhost:5432/app", &[VerifyFull]),
        ("postgresql://u@db/app?sslrootcert=system&sslmode=verify-full", "u@db:5432/app", &[VerifyFull]),
        ("postgresql://u@db/app?hostaddr=10.0.0.7", "u@db:5432/app", &[VerifyFull]),
        ("postgresql://u@/app?hostaddr=127.0.0.1", "u@127.0.0.1:5432/app", &[Prefer]),
        ("postgresql://u@db/app?hostaddr=127.0.0.1", "u@db:5432/app", &[VerifyFull]),
        ("postgresql://u@localhost/app?hostaddr=10.0.0.7", "u@localhost:5432/app", &[VerifyFull]),
        ("postgresql://u@db/app?schema=public&connection_limit=5&pgbouncer=true&", "u@db:5432/app", &[VerifyFull]),
        ("postgresql://u@db/app?sslaccept=strict&uselibpqcompat=true&pool_timeout=3", "u@db:5432/app", &[VerifyFull]),
        ("postgresql://u@db/app?application_name=web&client_encoding=UTF8", "u@db:5432/app", &[VerifyFull]),
        ("postgresql://u@db/app?gssencmode=disable&sslnegotiation=postgres", "u@db:5432/app", &[VerifyFull]),
        ("host=db user=u dbname=app", "u@db:5432/app", &[VerifyFull]),
        ("host = db  user = 'u v' dbname='it\\'s' port=6432", "u v@db:6432/it's", &[VerifyFull]),
        ("host=/run/pg user=u\\ v", "u v@/run/pg:5432/u v", &[Disable]),
        ("user=u password='a://b c' host=localhost sslmode=prefer", "u@localhost:5432/u", &[Prefer]),
        ("user=u host=h1,h2 port=1,2 dbname=app", "u@h1:1,h2:2/app", &[VerifyFull, VerifyFull]),
    ];
    for (url, described, modes) in table {
        let connection = ok(url);
        assert_eq!(connection.describe(), *described, "{url}");
        assert_eq!(connection.endpoints.iter().map(|one| one.mode).collect::<Vec<_>>(), *modes, "{url}");
    }
}

/// What cannot be taken, and a piece of what is said about it. Every password is the same, and is never repeated.
#[test]
fn what_cannot_be_taken_is_refused_with_its_place_and_without_its_password() {
    let table: &[(&str, &str)] = &[
        ("mysql://u:hunter2@db/app", "begins with \"mysql\""),
        ("postgress://u:hunter2@db/app", "begins with \"postgress\""),
        ("jdbc:postgresql://u:hunter2@db/app", "begins with \"jdbc:postgresql\""),
        ("postgresql+asyncpg://u:hunter2@db/app", "begins with \"postgresql+asyncpg\""),
        ("postgresql:/u:hunter2@db/app", "lacks //"),
        ("postgres:u:hunter2@db", "lacks //"),
        ("app", "no keyword = value at character 1"),
        ("host=db password=x hunter2", "no keyword = value at character 20"),
        ("host=db password='hunter2", "a quote is not closed in the value at character 9"),
        ("host=db = hunter2", "no keyword = value at character 9"),
        ("postgresql://u:hunter2@db:54x/app", "port in the connection URL is no number"),
        ("postgresql://u:hunter2@db:0/app", "a number from 1 to 65535"),
        ("postgresql://u:hunter2@db:65536/app", "a number from 1 to 65535"),
        ("postgresql://u:hunter2@db/app?port=-1", "a number from 1 to 65535"),
        ("postgresql://u:hunter2@h1,h2/app?port=1,2,3", "3 ports for 2 hosts"),
        ("postgresql://u:hunter2@[::1/app", "broken IPv6"),
        ("postgresql://u:hunter2@[]/app", "broken IPv6"),
        ("postgresql://u:hunter2@[::1]x/app", "broken IPv6"),
        // An unencoded / or @ in a password moves the borders of all that follows.
        ("postgresql://u:hunter2/x@db/app", "a second @, or one behind"),
        ("postgresql://u:12/hunter2@db/app", "a second @, or one behind"),
        ("postgresql://u:x@hunter2@db/app", "a second @, or one behind"),
        ("postgresql://u:12/?hunter2=x@db/app", "an @ behind its first ?"),
        ("postgresql://u:12@x?hunter2=x@db/app", "an @ behind its first ?"),
        ("postgresql://u:12@x?a&hunter2@db/app", "an @ behind its first ?"),
        ("postgresql://u@db/app?password=12&hunter2=x", "a parameter that is not known"),
        ("host=db password=12 hunter2=x", "no keyword that is known, behind the password, at character 21"),
        ("postgresql://u:hunter2%4@db/app", "the password has a % without"),
        ("postgresql://u:hunter2%zz@db/app", "the password has a % without"),
        ("postgresql://u:hunter2%00@db/app", "the password holds %00"),
        ("postgresql://u:hunter2%ff@db/app", "the password is not UTF-8"),
        ("postgresql://u:hunter2@db%/app", "the host has a % without"),
        ("postgresql://u:hunter2@db/app?sslmode", "parameter 1 of the connection URL has no value"),
        ("postgresql://u:hunter2@db/app?sslmode=no-verify", "\"no-verify\" is none of disable"),
        ("postgresql://u:hunter2@db/app?sslmode=prefer", "prefer is for a host on this machine only"),
        ("postgresql://u:hunter2@localhost,db/app?sslmode=allow", "allow is for a host on this machine only"),
        ("postgresql://u:hunter2@db/app?sslrootcert=system&sslmode=verify-ca", "sslrootcert=system needs verify-full"),
        ("postgresql://u:hunter2@db/app?sslrootcert=system&sslmode=require", "sslrootcert=system needs verify-full"),
        ("postgresql://u:hunter2@db/app?sslmod=require", "unknown parameter \"sslmod\""),
        ("postgresql://u:hunter2@db/app?ssl=false", "unknown parameter \"ssl\""),
        ("postgresql://u:hunter2@db/app?service=prod", "\"service\" of the connection string is not supported"),
        ("postgresql://u:hunter2@db/app?sslcrl=/crl.pem", "\"sslcrl\" of the connection string is not supported"),
        ("postgresql://u:hunter2@db/app?require_auth=scram-sha-256", "\"require_auth\""),
        ("postgresql://u:hunter2@db/app?requirepeer=postgres", "\"requirepeer\""),
        ("postgresql://u:hunter2@db/app?sslnegotiation=direct", "not supported with this value"),
        ("postgresql://u:hunter2@db/app?gssencmode=require", "not supported with this value"),
        ("postgresql://u:hunter2@db/app?replication=database", "not supported with this value"),
        ("postgresql://u:hunter2@db/app?hostaddr=db.example.com", "is no IP address"),
        ("postgresql://u:hunter2@h1,h2/app?hostaddr=10.0.0.1", "1 addresses for 2 hosts"),
        ("postgresql://u:hunter2@/app?host=@abstract", "abstract sockets"),
        ("postgresql://u:hunter2@db/app?channel_binding=maybe", "\"maybe\" is none of"),
        ("postgresql://u:hunter2@db/app?connect_timeout=5s", "no whole number of seconds"),
        ("postgresql://u:hunter2@db/app?keepalives=yes", "neither 0 nor 1"),
        ("postgresql://u:hunter2@db/app?keepalives_count=few", "no whole number"),
        ("postgresql://u:hunter2@db/app?target_session_attrs=standby", "tenantd writes"),
        ("postgresql://u:hunter2@db/app?target_session_attrs=master", "\"master\" is none of"),
        ("postgresql://u:hunter2@db/app?ssl_min_protocol_version=3", "is none of TLSv1"),
    ];
    for (url, said) in table {
        let Err(error) = read(url, &[("HOME", "/home/t"), ("USER", "os")]) else { panic!("{url} was taken") };
        assert_eq!(error.kind(), Kind::Usage, "{url}");
        assert!(error.chain().contains(said), "{url}: {}", error.chain());
        let all = format!("{} {}", error.chain(), error.advice().unwrap_or_default());
        assert!(!all.contains(SECRET), "{url}: {all}");
    }
}

#[test]
fn no_user_anywhere_is_refused() {
    assert!(read("postgresql://db/app", &[]).unwrap_err().chain().contains("no user"));
}

#[test]
fn a_certificate_without_its_key_is_refused_where_no_home_has_one() {
    let error = read("postgresql://u@db/app?sslcert=/c.pem", &[]).unwrap_err();
    assert!(error.chain().contains("sslcert is set without sslkey"), "{}", error.chain());
    let error = read("postgresql://u@db/app?sslkey=/k.pem", &[]).unwrap_err();
    assert!(error.chain().contains("sslkey is set without sslcert"), "{}", error.chain());
}

#[test]
fn the_nearest_known_parameter_is_named() {
    for (written, meant) in
        [("sslmod", "sslmode"), ("sslrootcrt", "sslrootcert"), ("database_name", ""), ("hots", "host")]
    {
        let error = read(&format!("postgresql://u@db/app?{written}=x"), &[]).unwrap_err();
        if !meant.is_empty() {
            assert_eq!(error.advice(), Some(format!("perhaps {meant:?} is meant").as_str()), "{written}");
        }
    }
}

#[test]
fn the_password_is_decoded_and_never_shown() {
    for (url, decoded) in [
        ("postgresql://u:hunter2%2F%40%3A%25@db/app", "hunter2/@:%"),
        ("postgresql://u:a:hunter2?#@db/app", "a:hunter2?#"),
        ("postgresql://u@db/app?password=hunter2%26", "hunter2&"),
        ("host=db user=u password='hunter2 \\\\ \\''", "hunter2 \\ '"),
        ("host=db user=u password=hunter2=", "hunter2="),
    ] {
        let connection = ok(url);
        assert_eq!(password(&connection), Some(decoded));
        let shown = format!("{connection:?} {}", connection.describe());
        assert!(!shown.contains(SECRET), "{shown}");
    }
}

#[test]
fn a_password_command_is_not_shown_either() {
    let environment = variables(&[("USER", "os")]);
    let mut parts = parts("", &environment);
    parts.password_command = Some("echo hunter2".to_owned());
    assert!(!format!("{:?}", Connection::from_parts(&parts).unwrap()).contains(SECRET));
}

#[test]
fn variables_fill_what_the_url_leaves_open() {
    let environment = [
        ("PGHOST", "env-host"),
        ("PGPORT", "6432"),
        ("PGUSER", "env-user"),
        ("PGDATABASE", "env-db"),
        ("PGPASSWORD", "env-password"),
        ("PGSSLMODE", "verify-ca"),
        ("PGSSLROOTCERT", "/env.pem"),
        ("PGSSLCERT", "/env.crt"),
        ("PGSSLKEY", "/env.key"),
        ("PGCHANNELBINDING", "require"),
        ("PGOPTIONS", "-c work_mem=8MB"),
        ("PGCONNECT_TIMEOUT", "3"),
        ("PGTARGETSESSIONATTRS", "any"),
        ("PGPASSFILE", "/env.pgpass"),
        ("HOME", "/home/t"),
    ];
    let all = read("", &environment).unwrap();
    assert_eq!(all.describe(), "env-user@env-host:6432/env-db");
    assert_eq!(password(&all), Some("env-password"));
    assert_eq!(all.endpoints[0].mode, SslMode::VerifyCa);
    assert_eq!(all.tls.roots, Roots::File("/env.pem".into()));
    let identity = Identity { certificate: "/env.crt".into(), key: "/env.key".into(), named: true };
    assert_eq!(all.tls.identity, Some(identity));
    assert_eq!(all.channel_binding, ChannelBinding::Require);
    assert_eq!(all.options.as_deref(), Some("-c work_mem=8MB"));
    assert_eq!(all.connect_timeout, Duration::from_secs(3));
    assert!(!all.writable);
    assert_eq!(all.password.passfile, Some("/env.pgpass".into()));

    let url = "postgresql://u:p@db:1/app?sslmode=verify-full&sslrootcert=/url.pem&target_session_attrs=read-write";
    let over = read(url, &environment).unwrap();
    assert_eq!(over.describe(), "u@db:1/app");
    assert_eq!(password(&over), Some("p"));
    assert_eq!(over.endpoints[0].mode, SslMode::VerifyFull);
    assert_eq!(over.tls.roots, Roots::File("/url.pem".into()));
    assert!(over.writable);
    assert_eq!(over.options.as_deref(), Some("-c work_mem=8MB"));
}

#[test]
fn a_variable_is_named_in_what_it_is_refused_for() {
    for (variable, value) in
        [("PGSSLMODE", "prefer"), ("PGPORT", "x"), ("PGSERVICE", "prod"), ("PGGSSENCMODE", "require")]
    {
        let error = read("postgresql://u@db/app", &[(variable, value)]).unwrap_err();
        assert!(error.chain().contains(variable), "{}", error.chain());
        assert_eq!(error.kind(), Kind::Usage);
    }
}

#[test]
fn keys_win_over_the_url() {
    let environment = variables(&[("PGSSLMODE", "disable")]);
    let mut parts =
        parts("postgresql://u@db/app?sslmode=require&sslrootcert=/url.pem&sslcert=/a&sslkey=/b", &environment);
    parts.sslmode = Some("verify-full".to_owned());
    parts.sslrootcert = Some("system".to_owned());
    parts.sslcert = Some("/key.crt".into());
    let connection = Connection::from_parts(&parts).unwrap();
    assert_eq!(connection.endpoints[0].mode, SslMode::VerifyFull);
    assert_eq!(connection.tls.roots, Roots::System);
    let identity = Identity { certificate: "/key.crt".into(), key: "/b".into(), named: true };
    assert_eq!(connection.tls.identity, Some(identity));

    parts.sslmode = Some("prefer".to_owned());
    assert!(Connection::from_parts(&parts).unwrap_err().chain().contains("main.sslmode: prefer"));
}

#[test]
fn a_home_gives_libpqs_own_files() {
    let connection = ok("postgresql://u@db/app");
    assert_eq!(connection.tls.roots, Roots::Home(Some("/home/t/.postgresql/root.crt".into())));
    assert_eq!(connection.password.passfile, Some("/home/t/.pgpass".into()));
    assert!(!connection.tls.identity.unwrap().named);
    let homeless = read("postgresql://u@db/app", &[]).unwrap();
    assert_eq!(homeless.tls, Tls { roots: Roots::Home(None), identity: None, only_tls13: false });
    assert_eq!(homeless.password.passfile, None);
}

#[test]
fn seconds_are_seconds_and_the_user_timeout_is_milliseconds() {
    let plain = ok("postgresql://u@db/app").keepalive;
    assert_eq!((plain.idle, plain.interval, plain.count), (Duration::from_secs(15), Duration::from_secs(5), 3));
    assert_eq!(plain.user_timeout, Duration::from_secs(20));
    let written =
        ok("postgresql://u@db/app?keepalives_idle=60&keepalives_interval=0&keepalives_count=9&tcp_user_timeout=2500")
            .keepalive;
    assert_eq!((written.idle, written.interval, written.count), (Duration::from_mins(1), Duration::from_secs(5), 9));
    assert_eq!(written.user_timeout, Duration::from_millis(2500));
    assert!(!ok("postgresql://u@db/app?keepalives=0").keepalive.enabled);
    assert!(ok("postgresql://u@db/app?ssl_min_protocol_version=TLSv1.3").tls.only_tls13);
}

#[test]
fn the_timeout_of_the_url_counts_where_the_setting_is_the_built_in_one() {
    assert_eq!(ok("postgresql://u@db/app?connect_timeout=4").connect_timeout, Duration::from_secs(4));
    assert_eq!(ok("postgresql://u@db/app?connect_timeout=0").connect_timeout, DEFAULT_CONNECT_TIMEOUT);
    assert_eq!(ok("postgresql://u@db/app?connect_timeout=-1").connect_timeout, DEFAULT_CONNECT_TIMEOUT);
    let environment = variables(&[]);
    let mut parts = parts("postgresql://u@db/app?connect_timeout=4", &environment);
    parts.connect_timeout = Duration::from_secs(2);
    assert_eq!(Connection::from_parts(&parts).unwrap().connect_timeout, Duration::from_secs(2));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_string_panics(
        text in "(postgres(ql)?://)?([a-z0-9:@/?=&%,'\\\\ \\[\\].é#-]|%[0-9a-f]{2}|sslmode=|host=|port=|user=){0,24}|.{0,40}",
    ) {
        if let Err(error) = read(&text, &[("USER", "os")]) {
            prop_assert_eq!(error.kind(), Kind::Usage);
        }
    }

    /// A password that nobody encoded or quoted, with all the signs that move borders.
    #[test]
    fn no_password_is_told_whatever_stands_in_it(
        before in "[a-z:@/?#=&%,'\\\\ \\[\\]é]{0,6}",
        after in "[a-z:@/?#=&%,'\\\\ \\[\\]é]{0,6}",
        form in 0..3_usize,
    ) {
        let password = format!("{before}{SECRET}{after}");
        let text = match form {
            0 => format!("postgresql://u:{password}@db:5432/app?sslmode=require"),
            1 => format!("host=db user=u password={password} dbname=app"),
            _ => format!("postgresql://u@db/app?sslmode=require&password={password}"),
        };
        let told = match read(&text, &[("USER", "os")]) {
            // Taken for a host, a user or a database: whoever connects learns of it there, and the URL was no URL.
            Ok(connection) if connection.describe().contains(SECRET) => String::new(),
            Ok(connection) => format!("{connection:?}{}", connection.describe()),
            Err(error) => format!("{} {}", error.chain(), error.advice().unwrap_or_default()),
        };
        prop_assert!(!told.contains(SECRET), "{}: {}", text, told);
    }

    #[test]
    fn names_that_postgres_would_cut_are_refused(length in 50_usize..80, database: bool) {
        let name = "n".repeat(length);
        let url = if database { format!("postgresql://u@db/{name}") } else { format!("postgresql://{name}@db/d") };
        prop_assert_eq!(read(&url, &[]).is_ok(), length <= 63);
    }

    #[test]
    fn an_encoded_login_comes_back_whole(user in "[^\0]{1,12}", password in "[^\0]{1,12}", database in "[^\0]{1,12}") {
        let encode = |text: &str| percent_encoding::percent_encode(text.as_bytes(), percent_encoding::NON_ALPHANUMERIC).to_string();
        let url = format!("postgresql://{}:{}@db/{}", encode(&user), encode(&password), encode(&database));
        let connection = ok(&url);
        prop_assert_eq!(connection.user(), user);
        prop_assert_eq!(super::tests::password(&connection), Some(password.as_str()));
        prop_assert_eq!(connection.database(), database);
    }
}
