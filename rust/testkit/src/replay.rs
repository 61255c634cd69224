//! Power loss and failing storage by seed: one text names a case, and runs it again.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::crash::{Failure, Look, Start};
use crate::ops::Op;
use crate::sim::Failing;
use crate::starts;

/// The variable that holds a case to be run again.
pub const VARIABLE: &str = "IMAGO_REPLAY";

/// How long a failure may take to be shortened.
const SHORTEN_FOR: Duration = Duration::from_secs(60);

/// A script of a seed on a start image, and what happens to it: `START/SEED`, `START/SEED/EPOCH.INDEX`, `START/SEED/once.CALL` or
/// `START/SEED/forever.CALL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The name of the start image.
    pub start: String,
    /// Makes the script and chooses the crash images.
    pub seed: u64,
    /// What happens to it.
    pub fault: Fault,
}

/// What happens to a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Power is lost, at any time.
    PowerLoss,
    /// Power is lost, and the media look like this crash image (epoch, index).
    CrashImage(u64, usize),
    /// This call of a storage fails.
    Call(u64, Failing),
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.start, self.seed)?;
        match self.fault {
            Fault::PowerLoss => Ok(()),
            Fault::CrashImage(epoch, index) => write!(f, "/{epoch}.{index}"),
            Fault::Call(nth, Failing::Once) => write!(f, "/once.{nth}"),
            Fault::Call(nth, Failing::Forever) => write!(f, "/forever.{nth}"),
        }
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no START/SEED[/EPOCH.INDEX | /once.CALL | /forever.CALL]");
        let mut parts = text.splitn(3, '/');
        let start = parts.next().filter(|start| !start.is_empty()).ok_or_else(wrong)?.to_owned();
        let seed = parts.next().and_then(|seed| seed.parse().ok()).ok_or_else(wrong)?;
        let fault = match parts.next() {
            None => Fault::PowerLoss,
            Some(fault) => {
                let (what, number) = fault.split_once('.').ok_or_else(wrong)?;
                let number: u64 = number.parse().map_err(|_| wrong())?;
                match what {
                    "once" => Fault::Call(number, Failing::Once),
                    "forever" => Fault::Call(number, Failing::Forever),
                    epoch => Fault::CrashImage(epoch.parse().map_err(|_| wrong())?, number as usize),
                }
            }
        };
        Ok(Case { start, seed, fault })
    }
}

impl Case {
    /// Runs it; nothing happens where the start image needs QEMU and that is not there.
    ///
    /// # Errors
    /// What went wrong, how to replay it and the script.
    pub fn run(&self) -> Result<(), String> {
        starts::start(&self.start).map_or(Ok(()), |start| self.run_on(&start))
    }

    /// Its script.
    pub fn script(&self, start: &Start) -> Vec<Op> {
        start.script(6 + self.seed as usize % 5 * 6, self.seed)
    }

    /// The same on a start image that is there already.
    pub fn run_on(&self, start: &Start) -> Result<(), String> {
        let script = self.script(start);
        let look = Look { by_qemu: 1, ..Look::at(12, self.seed) };
        match self.fault {
            Fault::Call(nth, failing) => {
                start.fail(&script, nth, failing).map_err(|message| self.report(&message, start, &script))
            }
            Fault::PowerLoss => self.lose_power(start, &script, look),
            Fault::CrashImage(epoch, index) => {
                self.lose_power(start, &script, Look { only: Some((epoch, index)), ..look })
            }
        }
    }

    fn lose_power(&self, start: &Start, script: &[Op], look: Look) -> Result<(), String> {
        let Err(Failure { image, message }) = start.lose_power(script, look) else { return Ok(()) };
        let fault = image.map_or(self.fault, |(epoch, index)| Fault::CrashImage(epoch, index));
        let mut shortest = script.to_vec();
        let end = Instant::now() + SHORTEN_FOR;
        for at in (0..script.len()).rev().take_while(|_| Instant::now() < end) {
            let op = shortest.remove(at);
            if start
                .lose_power(&shortest, Look { by_qemu: look.by_qemu, ..Look::at(look.images, look.seed) })
                .is_ok()
            {
                shortest.insert(at, op);
            }
        }
        Err(Case { fault, ..self.clone() }.report(&message, start, &shortest))
    }

    fn report(&self, message: &str, start: &Start, script: &[Op]) -> String {
        format!(
            "{message}\nreplay: {VARIABLE}={self} cargo test -p imago-core --test qcow2_faults replay\n{:?}\na script that fails: {script:#x?}",
            start.config
        )
    }
}
