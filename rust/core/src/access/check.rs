//! A whole image checked, and repaired where that is asked for.

use std::path::Path;
use std::sync::Arc;

use super::align::aligned;
use super::chain::Opener;
use super::gate::Gate;
use super::job::Job;
use super::pool::cores;
use super::probe::probe;
use super::unpack;
use crate::error::{Error, Result};
use crate::format::FormatKind;
use crate::format::qcow2::check::{Control, DataFile, Survey, data_file};
pub use crate::format::qcow2::check::{Finding, FindingKind, Repair, Report, Severity};
use crate::storage::file::File;
use crate::storage::{Lock, Storage, StorageOpenOptions};

/// How to check an image; the default only looks, at metadata only, and probes the format.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// The format; without one the image's first bytes decide.
    pub format: Option<FormatKind>,
    /// What to do about what is found.
    pub repair: Repair,
    /// Unpack every compressed cluster, too.
    pub deep: bool,
    /// The external data file, instead of the one that the image names.
    pub data_file: Option<Arc<dyn Storage>>,
    /// Who decides on the data file that the image names.
    pub gate: Gate,
    /// Whether the files opened here are locked: a check as by a reader, a repair as by a writer.
    pub lock: Lock,
}

/// Checks the image in the file at `path`, on all cores. What [`Progress`](super::job::Progress) counts are bytes of tables. Raw images have nothing to check: [`Unsupported`](crate::ErrorKind::Unsupported).
///
/// An image whose header makes no sense is an error, everything else a finding.
pub fn check(path: impl AsRef<Path>, options: CheckOptions, job: &mut Job<'_>) -> Result<Report> {
    let open = StorageOpenOptions::new().filename(path.as_ref());
    let open = open.write(options.repair != Repair::None).lock(options.lock);
    check_storage(Arc::new(File::open_sync(open)?), options, job)
}

/// The same for the image in `storage`, which a repair needs open for writing.
pub fn check_storage(storage: Arc<dyn Storage>, options: CheckOptions, job: &mut Job<'_>) -> Result<Report> {
    let path = storage.path().map(Path::to_owned);
    check_aligned(&*aligned(storage), options, job).map_err(|error| match path {
        Some(path) => error.in_file(path),
        None => error,
    })
}

fn check_aligned(storage: &dyn Storage, options: CheckOptions, job: &mut Job<'_>) -> Result<Report> {
    let CheckOptions { format, repair, deep, data_file: given, gate, lock } = options;
    let format = match format {
        Some(format) => format,
        None => probe(storage)?,
    };
    if format == FormatKind::Raw {
        return Err(Error::unsupported("a raw image has no metadata that could be checked"));
    }
    if repair != Repair::None {
        return Err(Error::unsupported("images are only checked yet, not repaired"));
    }
    let data = match (data_file(storage)?, given) {
        (DataFile::None, _) => None,
        (DataFile::External(_), Some(data)) => Some(aligned(data)),
        (DataFile::External(reference), None) => {
            let mut opener = Opener::new(&gate, false, lock);
            opener.note(storage)?;
            Some(opener.open_data_file_named(storage.path(), reference, repair != Repair::None)?)
        }
    };
    let wanted = job.wanted();
    let wanted = || wanted.check();
    let mut report = |done, total| job.report(done, total);
    let passes = 1 + u64::from(deep);
    let mut control = Control::new(cores(), passes, &mut report, &wanted);
    let mut survey = Survey::open(storage, data.as_deref())?;
    survey.count(&mut control)?;
    if deep {
        survey.each_compressed(&mut control, |bytes, cluster| unpack::cluster(storage, cluster, bytes))?;
    }
    Ok(survey.into_report())
}
