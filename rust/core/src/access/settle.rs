//! Waiting for the medium, so that who does not want to any more need not.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::job::Job;
use crate::error::{Error, ErrorKind, Result};
use crate::format::steps::settle;
use crate::storage::Storage;

/// How often somebody who waits for the medium is asked whether he still does.
const PATIENCE: Duration = Duration::from_millis(20);

/// Makes `storage`, which is of no use unless it is whole, durable. Who does not want it any more does not wait for the medium.
pub(super) fn sync(storage: &Arc<dyn Storage>, job: &Job<'_>) -> Result<()> {
    settle(&**storage, || job.wanted().check())?;
    let (done, result) = channel();
    let syncing = Arc::clone(storage);
    thread::spawn(move || done.send(syncing.sync()));
    loop {
        match result.recv_timeout(PATIENCE) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::new(ErrorKind::Io, "the thread that syncs the target died"));
            }
            Err(RecvTimeoutError::Timeout) => job.wanted().check()?,
        }
    }
}
