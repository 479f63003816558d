//! A standby: a copy of a server that follows it, until it takes its place.

use std::fs;
use std::io::Write;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::directory::Directory;
use super::place::free_port;
use super::process::run;
use super::server::{Stop, TestServer};
use super::until::until;

/// How long a standby may take to get what the primary has.
const DEADLINE: Duration = Duration::from_secs(30);

impl TestServer {
    /// A standby of this server that follows it through its socket: on a port of its own, with the same roles and certificates. This server is
    /// stopped while it is copied.
    #[must_use]
    pub fn standby(&self) -> Arc<TestServer> {
        self.stop(Stop::Fast);
        let directory = Directory::make();
        run(Command::new("cp").arg("-a").arg(self.data()).arg(self.directory.path().join("wal")).arg(directory.path()));
        let made = TestServer {
            programs: self.programs.clone(),
            user: self.user.clone(),
            port: free_port(),
            authority: self.authority.clone(),
            process: Mutex::new(None),
            prepared: self.prepared.clone(),
            connector: self.connector.clone(),
            directory,
        };
        // The log of writes is a link into the first server's directory.
        let (log, folder) = (made.data().join("pg_wal"), made.directory.path());
        fs::remove_file(&log).expect("remove the link");
        fs::rename(folder.join("wal"), &log).expect("move the log of writes");
        fs::write(made.data().join("standby.signal"), "").expect("write standby.signal");
        let mut file = fs::OpenOptions::new().append(true).open(made.data().join("postgresql.conf")).expect("open it");
        let (port, primary) = (made.port, self.directory.path().display());
        let settings = format!(
            "port = {port}\nunix_socket_directories = '{}'\nprimary_conninfo = 'host={primary} port={} user=postgres'\n",
            folder.display(),
            self.port
        );
        file.write_all(settings.as_bytes()).expect("write postgresql.conf");
        made.own(folder);
        self.start();
        made.start();
        Arc::new(made)
    }

    /// Waits until this standby has everything that `primary` has written.
    pub async fn catch_up(&self, primary: &TestServer) {
        let select = "select pg_current_wal_lsn()::text";
        let written: String = primary.superuser("postgres").await.query_one(select, &[]).await.expect("ask").get(0);
        let client = self.superuser("postgres").await;
        let replayed = format!("select pg_last_wal_replay_lsn() >= '{written}'::pg_lsn");
        until("the standby has it all", DEADLINE, async || client.query_one(&replayed, &[]).await.expect("ask").get(0))
            .await;
    }

    /// Lets this standby hear nothing of its primary any more, as if the network between them were gone.
    pub async fn stop_following(&self) {
        let client = self.superuser("postgres").await;
        client.batch_execute("alter system set primary_conninfo = ''").await.expect("change the setting");
        client.batch_execute("select pg_reload_conf()").await.expect("reload");
        let following = "select from pg_stat_wal_receiver";
        until("it follows nobody", DEADLINE, async || client.query(following, &[]).await.expect("ask").is_empty())
            .await;
    }

    /// Makes this standby a primary, and returns when it is one.
    pub fn promote(&self) {
        run(self.program("pg_ctl").args(["promote", "--wait", "--silent", "--pgdata"]).arg(self.data()));
    }
}
