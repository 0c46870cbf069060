//! Exit codes in words: for the help, for the manual.

use crate::base::ErrorKind;

/// Every code and what it means, lowest first. 0 is not among them.
pub(super) fn codes() -> Vec<(u8, &'static str)> {
    let mut codes = ErrorKind::ALL.map(|kind| (kind.exit_code(), meaning(kind)));
    codes.sort_unstable();
    codes.to_vec()
}

/// All of them in a line.
pub(super) fn summary() -> String {
    let codes = codes().into_iter().map(|(code, meaning)| format!(", {code} {meaning}"));
    format!("Exit codes: 0 done{}.", codes.collect::<String>())
}

fn meaning(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "not found",
        ErrorKind::Denied => "denied",
        ErrorKind::Invalid => "invalid input",
        ErrorKind::Conflict => "changed underneath",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::NoSpace => "no space",
        ErrorKind::Busy => "busy",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::Timeout => "timed out",
        ErrorKind::Cancelled => "cancelled",
        ErrorKind::Internal => "internal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_told_once() {
        assert_eq!(
            summary(),
            "Exit codes: 0 done, 64 invalid input, 65 corrupt, 66 not found, 69 unavailable, 70 internal, 73 no space, \
             75 busy, 76 changed underneath, 77 denied, 124 timed out, 130 cancelled."
        );
    }
}
