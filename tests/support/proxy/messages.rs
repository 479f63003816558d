//! The messages of a connection without TLS, as far as the proxy has to know them.

use super::{Mode, Side};

/// Length 8, and the code that asks for TLS.
const QUESTION_FOR_TLS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// Protocol 3.0, after the length.
const START: [u8; 4] = [0, 3, 0, 0];

/// Whether a connection begins by asking for TLS.
pub(super) fn is_question_for_tls(first: &[u8]) -> bool {
    first == QUESTION_FOR_TLS
}

/// Whether it begins without.
pub(super) fn is_start_in_the_clear(first: &[u8]) -> bool {
    first.get(4..8) == Some(&START)
}

/// Cuts the bytes of one side into messages.
#[derive(Debug, Default)]
struct Messages {
    waiting: Vec<u8>,
    /// A client's first message has no tag.
    begun: bool,
}

impl Messages {
    /// The next message that is here whole.
    fn next(&mut self) -> Option<Vec<u8>> {
        let tag = usize::from(self.begun);
        let length = self.waiting.get(tag..tag + 4)?;
        let length = tag + usize::try_from(u32::from_be_bytes(length.try_into().ok()?)).ok()?;
        if self.waiting.len() < length {
            return None;
        }
        self.begun = true;
        Some(self.waiting.drain(..length).collect())
    }
}

/// What both sides have said, as far as an answer is to be lost.
///
/// Each request of the client ends with Query or Sync and is answered up to one `ReadyForQuery`; one more comes after the login.
#[derive(Debug)]
pub(super) struct Talk {
    client: Messages,
    server: Messages,
    /// Requests that were sent to their end.
    requests: u64,
    /// `ReadyForQuery` messages that came: while the n-th request is answered it is n.
    ready: u64,
    /// From this request on answers are held back, until its transaction ends.
    from: Option<u64>,
    held: Held,
}

/// An answer, or the answers of a transaction's last request, on the way to be lost.
#[derive(Debug, Default)]
struct Held {
    messages: Vec<u8>,
    did: bool,
    failed: bool,
}

/// How a piece of a connection leaves it.
pub(super) enum TalkEnd {
    /// As it was.
    GoesOn,
    /// A statement was carried out, and these messages are its answer.
    Lost(Vec<u8>),
}

impl Default for Talk {
    fn default() -> Self {
        let server = Messages { begun: true, ..Messages::default() };
        Talk { client: Messages::default(), server, requests: 0, ready: 0, from: None, held: Held::default() }
    }
}

impl Talk {
    /// Takes a piece of what `side` sends; returns what is to be passed on, and whether an answer comes next that may be lost. Then what is
    /// left comes with the next call.
    pub(super) fn sort(&mut self, side: Side, piece: &[u8], mode: Mode) -> (Vec<u8>, TalkEnd) {
        let mut whole = Vec::new();
        match side {
            Side::Client => {
                self.client.waiting.extend_from_slice(piece);
                while let Some(message) = self.client.next() {
                    self.asked(&message, mode);
                    whole.extend(message);
                }
            }
            Side::Server => {
                self.server.waiting.extend_from_slice(piece);
                while let Some(message) = self.server.next() {
                    if message[0] == b'A' {
                        whole.extend(message.repeat(copies(&message, mode)));
                    } else if let Some(answer) = self.answered(message, &mut whole) {
                        return (whole, TalkEnd::Lost(answer));
                    }
                }
            }
        }
        (whole, TalkEnd::GoesOn)
    }

    fn asked(&mut self, message: &[u8], mode: Mode) {
        if let Mode::LoseAnswer(text) = mode
            && self.from.is_none()
            && matches!(message[0], b'Q' | b'P')
            && message.windows(text.len()).any(|part| part == text.as_bytes())
        {
            self.from = Some(self.requests + 1);
        }
        if matches!(message[0], b'Q' | b'S') {
            self.requests += 1;
        }
    }

    /// The whole answer, once it is here and the statement was carried out for good.
    fn answered(&mut self, message: Vec<u8>, whole: &mut Vec<u8>) -> Option<Vec<u8>> {
        let (tag, last) = (message[0], message.last().copied());
        let in_question = self.from.is_some_and(|from| self.ready >= from);
        match tag {
            // What was done before a rollback is undone.
            b'C' if in_question => {
                self.held.did = &message[5..] != b"ROLLBACK\0" && (self.held.did || did(&message[5..]));
            }
            b'E' => self.held.failed |= in_question,
            b'Z' => self.ready += 1,
            _ => {}
        }
        if !in_question {
            whole.extend(message);
            return None;
        }
        self.held.messages.extend(message);
        if tag != b'Z' {
            return None;
        }
        let Held { messages, did, failed } = std::mem::take(&mut self.held);
        if last == Some(b'T') && !failed {
            // Nothing is carried out before the commit.
            (self.held.did, self.from) = (did, Some(self.ready));
            whole.extend(messages);
            return None;
        }
        self.from = None;
        if last == Some(b'I') && did && !failed {
            return Some(messages);
        }
        whole.extend(messages);
        None
    }
}

/// Whether a completed command did anything: `SELECT 0`, say, found nothing to do.
fn did(tag: &[u8]) -> bool {
    let tag = tag.strip_suffix(b"\0").unwrap_or(tag);
    !tag.ends_with(b" 0") && ![b"BEGIN".as_slice(), b"SET"].contains(&tag)
}

/// How often a notification is to arrive.
fn copies(message: &[u8], mode: Mode) -> usize {
    // Channel and payload each end with a zero.
    let is_ring = message.ends_with(&[0, 0]);
    match mode {
        Mode::NoNotifications => 0,
        Mode::Rings(copies) if is_ring => copies,
        _ => 1,
    }
}
