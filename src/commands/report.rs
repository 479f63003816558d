//! stub
use super::ExitStatus;
use crate::error::Result;
use crate::sweep::Report;
use std::io::Write;
/// x
pub fn print(report: &Report, _json: bool, out: &mut impl Write) -> Result<ExitStatus> {
    super::output::text(out, &format!("{report:#?}\n"))?;
    Ok(if report.is_clean() { ExitStatus::Well } else { ExitStatus::Findings })
}
