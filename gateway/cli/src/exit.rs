//! Exit codes. Scripts depend on them: they do not change meaning.

use tonic::Code;

/// Done, or allowed.
pub const DONE: u8 = 0;
/// A check or a decision said no.
pub const NO: u8 = 1;
/// Wrong usage: an argument that makes no sense, here or to the gateway.
pub const USAGE: u8 = 2;
/// The gateway could not be reached, or did not answer in time.
pub const UNREACHABLE: u8 = 3;
/// Not permitted.
pub const NOT_PERMITTED: u8 = 4;
/// Failed for another reason.
pub const FAILED: u8 = 5;

/// The exit code of a status that the gateway, or the way to it, answered with.
pub fn of_code(code: Code) -> u8 {
    match code {
        Code::Ok => DONE,
        Code::InvalidArgument | Code::OutOfRange => USAGE,
        Code::Unavailable | Code::DeadlineExceeded => UNREACHABLE,
        Code::PermissionDenied | Code::Unauthenticated => NOT_PERMITTED,
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_code_has_its_exit_code() {
        for (code, wanted) in [
            (Code::Ok, 0),
            (Code::InvalidArgument, 2),
            (Code::OutOfRange, 2),
            (Code::Unavailable, 3),
            (Code::DeadlineExceeded, 3),
            (Code::PermissionDenied, 4),
            (Code::Unauthenticated, 4),
            (Code::NotFound, 5),
            (Code::AlreadyExists, 5),
            (Code::FailedPrecondition, 5),
            (Code::Aborted, 5),
            (Code::ResourceExhausted, 5),
            (Code::Internal, 5),
            (Code::Unimplemented, 5),
            (Code::Unknown, 5),
            (Code::Cancelled, 5),
            (Code::DataLoss, 5),
        ] {
            assert_eq!(of_code(code), wanted, "{code:?}");
        }
    }
}
