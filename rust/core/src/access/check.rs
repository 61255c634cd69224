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
use crate::format::qcow2::check::{Control, DamagedBitmaps, DataFile, Survey, data_file, repair};
pub use crate::format::qcow2::check::{Finding, FindingKind, Repair, Report, Severity};
use crate::storage::file::File;
use crate::storage::{Lock, Storage, StorageOpenOptions};

/// Passes over all tables that a repair takes: it looks, clears flags, sets flags, and looks again.
const REPAIR_PASSES: u64 = 4;

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
    let CheckOptions { format, repair: what_to_repair, deep, data_file: given, gate, lock } = options;
    let format = match format {
        Some(format) => format,
        None => probe(storage)?,
    };
    if format != FormatKind::Qcow2 {
        return Err(Error::unsupported(format!("a {format} image has no metadata that could be checked")));
    }
    let data = match (data_file(storage)?, given) {
        (DataFile::None, None) => None,
        (DataFile::None, Some(_)) => {
            return Err(Error::invalid_input("the image has no external data file"));
        }
        (DataFile::External(_), Some(data)) => Some(aligned(data)),
        (DataFile::External(reference), None) => {
            let mut opener = Opener::new(&gate, None, false, lock);
            opener.note(storage)?;
            Some(opener.open_data_file_named(storage.path(), reference, what_to_repair != Repair::None)?)
        }
    };
    let wanted = job.wanted();
    let wanted = || wanted.check();
    let mut report = |done, total| job.report(done, total);
    let passes = if what_to_repair == Repair::None { 1 } else { REPAIR_PASSES } + u64::from(deep);
    let mut control = Control::new(cores(), passes, &mut report, &wanted);
    let data = data.as_deref();
    let survey = match what_to_repair {
        Repair::None => {
            let mut survey = Survey::open(storage, data)?;
            survey.count(&mut control)?;
            survey
        }
        what => repaired(storage, data, what, DamagedBitmaps::Drop, &mut control)?,
    };
    if deep {
        survey.each_compressed(&mut control, |bytes, cluster| unpack::cluster(storage, cluster, bytes))?;
    }
    Ok(survey.into_report())
}

/// Repairs an image, and surveys it again.
fn repaired<'a>(
    storage: &'a dyn Storage,
    data: Option<&dyn Storage>,
    what: Repair,
    bitmaps: DamagedBitmaps,
    control: &mut Control<'_>,
) -> Result<Survey<'a>> {
    let repaired = repair(storage, data, what, bitmaps, control)?;
    let mut survey = Survey::open(storage, data)?;
    survey.count(control)?;
    survey.after_repair(repaired)?;
    Ok(survey)
}

/// Repairs an image that was not closed cleanly, so that it can be written again; an error if that does not make it right.
pub(super) fn make_clean(storage: &dyn Storage) -> Result<()> {
    let wanted = || Ok(());
    let mut report = |_, _| {};
    let mut control = Control::new(cores(), REPAIR_PASSES, &mut report, &wanted);
    // Nobody asked for a repair: what it would cost is somebody's to decide.
    let survey = repaired(storage, None, Repair::All, DamagedBitmaps::Keep, &mut control)?;
    let Report { corruptions, check_errors, .. } = survey.into_report();
    if corruptions == 0 && check_errors == 0 {
        return Ok(());
    }
    let error = Error::corrupt(format!(
        "the image was not closed cleanly, and a repair leaves {corruptions} corruptions and {check_errors} parts that \
         cannot be checked: open it read-only and save what can be read"
    ));
    Err(match storage.path() {
        Some(path) => error.in_file(path),
        None => error,
    })
}
