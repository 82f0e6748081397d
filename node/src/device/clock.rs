//! Whether the kernel's clock is kept by somebody, without asking the network.

use serde::Serialize;

/// What the kernel says about its clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "clock")]
pub enum ClockState {
    /// A time service disciplines it.
    Synchronised {
        /// Largest error the kernel admits, in milliseconds.
        error_max_ms: u64,
    },
    /// No time service has done so, or not for long.
    Unsynchronised,
    /// The kernel does not say.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// Asks the kernel (`adjtimex`, which anybody may call to read).
#[cfg(target_os = "linux")]
#[must_use]
pub fn clock_state() -> ClockState {
    #[allow(unsafe_code)]
    let (answer, timex) = {
        // SAFETY: `timex` is plain integers, for which all zeros is a valid value.
        let mut timex: libc::timex = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a live, exclusively borrowed `timex`; with `modes` zero the
        // kernel only writes into it.
        let answer = unsafe { libc::adjtimex(&raw mut timex) };
        (answer, timex)
    };
    if answer < 0 {
        return ClockState::Unknown { reason: std::io::Error::last_os_error().to_string() };
    }
    if answer == libc::TIME_ERROR || timex.status & libc::STA_UNSYNC != 0 {
        return ClockState::Unsynchronised;
    }
    let error_max_us = u64::try_from(timex.maxerror).unwrap_or(0);
    ClockState::Synchronised { error_max_ms: error_max_us / 1000 }
}

/// Asks nobody: there is no such call here.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn clock_state() -> ClockState {
    ClockState::Unknown { reason: "this system does not tell".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers() {
        let json = serde_json::to_value(clock_state()).unwrap();
        assert!(json["clock"].is_string());
    }
}
