use wire::iscsi::serial;

/// The serial numbers of a connection (RFC 7143 §4.2.2), ours to send and the target's to check.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    /// CmdSN of the next command that is not immediate.
    pub(crate) cmd_sn: u32,
    /// StatSN the next status must have; `None` before the first.
    pub(crate) exp_stat_sn: Option<u32>,
    exp_cmd_sn: u32,
    pub(crate) max_cmd_sn: u32,
    /// The highest CmdSN ever used, plus one: the target cannot expect more.
    used: u32,
}

impl Window {
    pub(crate) fn new(cmd_sn: u32) -> Window {
        Window {
            cmd_sn,
            exp_stat_sn: None,
            exp_cmd_sn: cmd_sn,
            max_cmd_sn: cmd_sn.wrapping_sub(1),
            used: cmd_sn,
        }
    }

    /// A command that is not immediate may be sent.
    pub(crate) fn is_open(&self) -> bool {
        serial::less_or_equal(self.cmd_sn, self.max_cmd_sn)
    }

    /// The CmdSN for a command that is sent now.
    pub(crate) fn take(&mut self, immediate: bool) -> u32 {
        let cmd_sn = self.cmd_sn;
        if !immediate {
            self.note(cmd_sn);
            self.cmd_sn = cmd_sn.wrapping_add(1);
        }
        cmd_sn
    }

    /// `cmd_sn` was sent.
    pub(crate) fn note(&mut self, cmd_sn: u32) {
        let after = cmd_sn.wrapping_add(1);
        if serial::less(self.used, after) {
            self.used = after;
        }
    }

    /// The target has received the command with this number.
    pub(crate) fn is_acknowledged(&self, cmd_sn: u32) -> bool {
        serial::less(cmd_sn, self.exp_cmd_sn)
    }

    pub(crate) fn exp_stat_sn(&self) -> u32 {
        self.exp_stat_sn.unwrap_or(0)
    }

    /// Checks the StatSN of a PDU that carries a status (`advances`) or only tells the next one.
    pub(crate) fn check_stat_sn(&mut self, stat_sn: u32, advances: bool) -> Result<(), String> {
        let expected = self.exp_stat_sn.unwrap_or(stat_sn);
        let next = if advances { stat_sn.wrapping_add(1) } else { stat_sn };
        self.exp_stat_sn =
            Some(if stat_sn == expected || serial::less(expected, stat_sn) { next } else { expected });
        if stat_sn == expected {
            Ok(())
        } else {
            Err(format!("StatSN {stat_sn:#x}, expected {expected:#x} (§4.2.2.2)"))
        }
    }

    /// Takes ExpCmdSN and MaxCmdSN of a PDU. On one connection they arrive in the order they were sent, so neither
    /// may go back.
    pub(crate) fn check_commands(&mut self, exp_cmd_sn: u32, max_cmd_sn: u32) -> Result<(), String> {
        if serial::less(max_cmd_sn, exp_cmd_sn.wrapping_sub(1)) {
            return Err(format!("MaxCmdSN {max_cmd_sn:#x} below ExpCmdSN {exp_cmd_sn:#x} - 1 (§4.2.2.1)"));
        }
        let mut result = Ok(());
        if serial::less(exp_cmd_sn, self.exp_cmd_sn) {
            result =
                Err(format!("ExpCmdSN went back from {:#x} to {exp_cmd_sn:#x} (§4.2.2.1)", self.exp_cmd_sn));
        } else if serial::less(self.used, exp_cmd_sn) {
            result = Err(format!("ExpCmdSN {exp_cmd_sn:#x}, but {:#x} was not sent (§4.2.2.1)", self.used));
        } else {
            self.exp_cmd_sn = exp_cmd_sn;
        }
        if serial::less(max_cmd_sn, self.max_cmd_sn) {
            result =
                Err(format!("MaxCmdSN went back from {:#x} to {max_cmd_sn:#x} (§4.2.2.1)", self.max_cmd_sn));
        } else {
            self.max_cmd_sn = max_cmd_sn;
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_opens_and_never_goes_back() {
        let mut window = Window::new(0xFFFF_FFFF);
        assert!(!window.is_open());
        window.check_commands(0xFFFF_FFFF, 0).unwrap();
        assert_eq!(window.take(true), 0xFFFF_FFFF);
        assert_eq!(window.take(false), 0xFFFF_FFFF);
        assert_eq!(window.take(false), 0);
        assert!(!window.is_open());
        window.check_commands(1, 2).unwrap();
        assert!(window.check_commands(0, 2).is_err());
        assert!(window.check_commands(1, 1).is_err());
        assert!(window.check_commands(2, 2).is_err(), "1 was never sent");
        assert!(window.check_commands(1, 0xFFFF_FFF0).is_err());
        window.check_commands(1, 0x2).unwrap();
    }

    #[test]
    fn status_numbers_have_no_gaps() {
        let mut window = Window::new(1);
        window.check_stat_sn(7, true).unwrap();
        window.check_stat_sn(8, false).unwrap();
        window.check_stat_sn(8, true).unwrap();
        assert!(window.check_stat_sn(8, true).is_err());
        assert!(window.check_stat_sn(10, true).is_err());
        window.check_stat_sn(11, true).unwrap();
    }
}
