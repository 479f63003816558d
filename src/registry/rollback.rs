//! Rollbacks in the registry: a tenant is held before anything of it is taken back, and recorded with what it has then. Each write is fenced
//! by the claim, and tells its event in the same statement.

use tokio_postgres::types::Type;

use super::claim::{Claim, fenced};
use super::events::What;
use super::{Parameters, Registry, field};
use crate::error::{Error, Result};

/// What a tenant has after a rollback.
#[derive(Debug)]
pub struct RolledBack<'a> {
    /// Its newest migration; 0: none.
    pub version: i64,
    /// The id of the set that it has; `None`: it has no migration.
    pub migration_set: Option<String>,
    /// What the event says.
    pub detail: &'a str,
    /// Why it did not get as far as was asked.
    pub error: Option<&'a Error>,
}

impl Registry {
    /// Holds the claimed tenant, so that no sweep brings it up again, and says why.
    ///
    /// # Errors
    /// [`Kind::LeaseLost`](crate::error::Kind::LeaseLost). The main database cannot be reached.
    pub async fn hold_for_rollback(&self, claim: &Claim, detail: &str) -> Result<()> {
        self.change(claim, "work = 'held'", What::Held, detail, &[], "hold the tenant").await
    }

    /// Gives back a tenant of which nothing was taken back; its work is what it was before.
    ///
    /// # Errors
    /// As for [`Registry::hold_for_rollback`].
    pub async fn let_go_after_rollback(&self, claim: &Claim, detail: &str) -> Result<()> {
        let parameters: Parameters<'_> = &[(&claim.work.word(), Type::TEXT)];
        let set = "work = $6, leased_until = null, leased_by = null";
        self.change(claim, set, What::Released, detail, parameters, "let the tenant go").await
    }

    /// Records what the tenant has after a rollback, and gives it back, held.
    ///
    /// # Errors
    /// As for [`Registry::hold_for_rollback`].
    pub async fn record_rollback(&self, claim: &Claim, rolled_back: &RolledBack<'_>) -> Result<()> {
        let RolledBack { version, migration_set, detail, error } = rolled_back;
        let kind = error.map(|error| error.kind().word());
        let (text, code) = (error.map(Error::with_advice), error.and_then(Error::code));
        let step = error.map(|_| "roll_back");
        let parameters: Parameters<'_> = &[
            (version, Type::INT8),
            (migration_set, Type::TEXT),
            (&kind, Type::TEXT),
            (&text, Type::TEXT),
            (&code, Type::TEXT),
            (&step, Type::TEXT),
        ];
        let set = "work = 'held', failures = 0, leased_until = null, leased_by = null, version = $6, migration_set = $7, migrated_at = now(),
                   verified_at = now(), error_kind = $8, error_text = $9, error_sqlstate = $10, error_step = $11";
        self.change(claim, set, What::RolledBack, detail, parameters, "record the rollback").await
    }

    /// Sets columns of the claimed tenant's row; `more` are the parameters from `$6` on.
    async fn change(
        &self,
        claim: &Claim,
        set: &str,
        what: What,
        detail: &str,
        more: Parameters<'_>,
        doing: &str,
    ) -> Result<()> {
        let sql = format!(
            "with changed as (
                 update tenantd.tenant set {set} where key = $1 and attempt = $2 and leased_by = $3 and leased_until > now() returning key
             ) insert into tenantd.event (key, what, who, detail) select key, '{what}', $4, $5 from changed"
        );
        let mut parameters = vec![
            (&claim.key as &(dyn tokio_postgres::types::ToSql + Sync), Type::TEXT),
            (&claim.attempt, Type::INT8),
            (&self.worker, Type::TEXT),
            (&self.who, Type::TEXT),
            (&detail, Type::TEXT),
        ];
        parameters.extend_from_slice(more);
        fenced(self.execute(&sql, &parameters, || doing.to_owned()).await?, claim)
    }

    /// The versions that the tenants `keys` are known to have, each once.
    ///
    /// # Errors
    /// The main database cannot be reached.
    pub async fn versions(&self, keys: &[String]) -> Result<Vec<i64>> {
        let sql = "select distinct version from tenantd.tenant where key = any ($1) and version is not null";
        let rows =
            self.query(sql, &[(&keys, Type::TEXT_ARRAY)], || "look for the tenants' versions".to_owned()).await?;
        rows.iter().map(|row| field(row, "version")).collect()
    }
}
