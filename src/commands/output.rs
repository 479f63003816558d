//! What commands write: data to stdout, talk to stderr, both through what they are given.

use std::io::{ErrorKind, Write};

use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};

/// Writes text. A reader that went away (`| head`) is no failure.
///
/// # Errors
/// The text could not be written.
pub fn text(out: &mut impl Write, text: &str) -> Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::new(Kind::Other, "write the output").because(error))
        }
        _ => Ok(()),
    }
}

/// Writes one JSON object with `"format": 1`.
///
/// # Errors
/// The text could not be written.
pub fn object(out: &mut impl Write, object: &Value) -> Result<()> {
    let mut whole = json!({ "format": 1 });
    if let (Value::Object(whole), Value::Object(object)) = (&mut whole, object) {
        whole.extend(object.clone());
    }
    text(out, &format!("{whole:#}\n"))
}
