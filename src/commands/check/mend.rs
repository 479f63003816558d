//! `--fix`: what is safe is put right, tenants through reconcile like everything else; the rest stays a person's.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};

use super::outside::ROLLOUT;
use super::{Check, Finding, Ill, Report, parallel};
use crate::error::Result;
use crate::provision::spare::drop_strays;
use crate::provision::{Context, Outcome, reconcile};
use crate::registry::events::What;
use crate::shutdown::Requests;

/// What became of a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mended {
    /// Nobody asked for it, or it is a person's.
    NotAsked,
    /// It would be put right, by a run that is not dry.
    WouldBe,
    /// It is right now.
    Done,
    /// It could not be put right; why.
    Failed(String),
}

/// Puts right what may be, and says of each finding what became of it.
pub(super) async fn all(context: &Context, report: &mut Report, arguments: &Check, requests: &Requests) -> Result<()> {
    let in_turn = !context.gate.is_open();
    let cures = |ill: Ill| ill.cure().is_some() && !(in_turn && ill == Ill::Behind);
    let (free, reconcilable, strays) = chosen(&report.findings, cures);
    if arguments.dry_run {
        let would = |finding: &Finding| would_be(finding, &reconcilable, cures);
        let which: Vec<bool> = report.findings.iter().map(would).collect();
        for (finding, _) in report.findings.iter_mut().zip(which).filter(|(_, would)| *would) {
            finding.mended = Mended::WouldBe;
        }
        return Ok(());
    }
    let freed = if free.is_empty() { Vec::new() } else { context.registry.free_expired_leases(&free).await? };
    let outcomes: BTreeMap<String, Mended> = stream::iter(reconcilable)
        .take_until(requests.stop.cancelled())
        .map(async |(key, ills)| {
            let mended = one(context, &key, &ills).await;
            (key, mended)
        })
        .buffer_unordered(parallel(context, arguments))
        .collect()
        .await;
    if strays {
        let dropped = drop_strays(&context.registry, || requests.stop.is_cancelled()).await?;
        context
            .registry
            .tell(What::Fixed, None, Some(&format!("dropped {dropped} half-made {}s", context.registry.isolation)))
            .await?;
    }
    let left = if strays { context.registry.strays().await? } else { Vec::new() };
    for finding in &mut report.findings {
        let Some(key) = &finding.key else {
            if finding.ill == Ill::Stray {
                let there = finding.database.as_ref().is_some_and(|name| left.contains(name));
                finding.mended =
                    if there { Mended::Failed("it cannot be dropped now".to_owned()) } else { Mended::Done };
            }
            continue;
        };
        match finding.ill {
            // One that is not there any more was taken up meanwhile.
            Ill::Lease if freed.contains(key) || free.contains(key) => finding.mended = Mended::Done,
            ill if ill.cure().is_some() && !cures(ill) => finding.mended = Mended::Failed(ROLLOUT.to_owned()),
            ill if cures(ill) => {
                finding.mended = outcomes.get(key).cloned().unwrap_or_else(|| {
                    Mended::Failed("what else is wrong with the tenant stands in the way".to_owned())
                });
            }
            _ => {}
        }
    }
    report.cut_off |= requests.stop.is_cancelled();
    Ok(())
}

/// Tenants whose leases are to be freed, those to be reconciled with why, and whether there are strays.
fn chosen(findings: &[Finding], cures: impl Fn(Ill) -> bool) -> (Vec<String>, BTreeMap<String, Vec<Ill>>, bool) {
    let (mut free, mut ills, mut strays) = (Vec::new(), BTreeMap::<String, Vec<Ill>>::new(), false);
    for finding in findings {
        strays |= finding.ill == Ill::Stray;
        let Some(key) = &finding.key else { continue };
        if finding.ill == Ill::Lease {
            free.push(key.clone());
        } else {
            ills.entry(key.clone()).or_default().push(finding.ill);
        }
    }
    ills.retain(|_, ills| !ills.iter().any(|ill| ill.bars()) && ills.iter().any(|ill| cures(*ill)));
    (free, ills, strays)
}

fn would_be(finding: &Finding, reconcilable: &BTreeMap<String, Vec<Ill>>, cures: impl Fn(Ill) -> bool) -> bool {
    match (&finding.key, finding.ill) {
        (_, Ill::Lease | Ill::Stray) => true,
        (Some(key), ill) => cures(ill) && reconcilable.contains_key(key),
        _ => false,
    }
}

/// Reconciles one tenant, as a sweep would.
async fn one(context: &Context, key: &str, ills: &[Ill]) -> Mended {
    let claimed = context.registry.claim_keys(&[key.to_owned()], context.config.work.lease).await;
    let mut claim = match claimed.map(|mut claims| claims.pop()) {
        Ok(Some(claim)) => claim,
        Ok(None) => return Mended::Failed("somebody works on the tenant, or holds it".to_owned()),
        Err(error) => return Mended::Failed(error.chain()),
    };
    if ills.contains(&Ill::Connect) {
        // The grants are not what they are said to be.
        claim.access = None;
    }
    match reconcile(context, claim).await.outcome {
        Outcome::Ready { .. } => {
            let cured: Vec<&str> = ills.iter().filter(|ill| ill.cure().is_some()).map(|ill| ill.word()).collect();
            match context.registry.tell(What::Fixed, Some(key), Some(&cured.join(", "))).await {
                Ok(()) => Mended::Done,
                Err(error) => {
                    Mended::Failed(format!("it is right now, but that was not written down: {}", error.chain()))
                }
            }
        }
        Outcome::Failed { error, .. } | Outcome::Left(error) | Outcome::Server(error) => {
            Mended::Failed(error.with_advice())
        }
    }
}
