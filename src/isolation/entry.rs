//! The way into a tenant's database, and whose failure it is where there is none.

use crate::error::{Error, Kind, Result};
use crate::pg::{Server, Session, admin};

/// How often a connection is tried while what refuses it goes away again.
const TRIES: usize = 3;

/// Whose failure a refused connection is.
enum Blame {
    Tenant,
    Server,
    /// Nobody's: what was in the way is gone.
    Past,
}

/// Connects to the tenant's database `name`.
///
/// # Errors
/// [`Kind::Refused`] where the server refuses this database alone; otherwise what connecting to the main database gives as well.
pub(super) async fn enter(server: &Server, name: &str, application_name: &str) -> Result<Session> {
    let mut tries = 0;
    loop {
        let error = match server.connect(Some(name), application_name).await {
            Ok(session) => return Ok(session),
            Err(error) => error.context(format!("connect to database {name:?}")),
        };
        tries += 1;
        match blame(server, &error, name, application_name).await {
            Blame::Tenant => return Err(error.with_kind(Kind::Refused)),
            Blame::Past if tries < TRIES => {}
            Blame::Server | Blame::Past => return Err(error),
        }
    }
}

/// The tenant's alone, if the main database takes a connection; and where too many were connected, if they are in the tenant, since the main database
/// may take one only because another session has ended meanwhile.
///
/// Without this, one database with its CONNECTION LIMIT reached would look like a server that is full, and make all others wait.
async fn blame(server: &Server, error: &Error, name: &str, application_name: &str) -> Blame {
    let refused = matches!(
        error.kind(),
        Kind::TooManyConnections | Kind::Shortage | Kind::Login | Kind::Rights | Kind::ReadOnly | Kind::Tls
    );
    if !refused {
        return Blame::Server;
    }
    let Ok(session) = server.connect(None, application_name).await else { return Blame::Server };
    let full = match error.kind() {
        Kind::TooManyConnections => admin::is_full(&session, name).await,
        _ => Ok(true),
    };
    session.close().await;
    match full {
        Ok(true) => Blame::Tenant,
        Ok(false) => Blame::Past,
        Err(_) => Blame::Server,
    }
}
