//! A whole image checked, and repaired where that is asked for.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::align::aligned;
use super::chain::Opener;
use super::convert::Progress;
use super::gate::Gate;
use super::pool::cores;
use super::probe::probe;
use super::unpack;
use crate::error::{Error, Result};
use crate::format::qcow2::check::{Control, DataFile, Survey, data_file};
pub use crate::format::qcow2::check::{Finding, FindingKind, Repair, Report, Severity};
use crate::format::{CompressedCluster, FormatKind};
use crate::storage::file::File;
use crate::storage::{Lock, Storage, StorageOpenOptions};

/// How to check an image; the default only looks, at metadata only, and probes the format.
#[derive(Default)]
pub struct CheckOptions<'a> {
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
    /// Told how far it is, on the calling thread. The steps are tables; reading them takes nearly all of the time.
    pub progress: Option<&'a mut dyn FnMut(Progress)>,
    /// Set by another thread to end it soon: [`Interrupted`](std::io::ErrorKind::Interrupted).
    pub cancel: Option<&'a AtomicBool>,
}

/// Checks the image in the file at `path`, on all cores. Raw images have nothing to check: [`Unsupported`](crate::ErrorKind::Unsupported).
///
/// An image whose header makes no sense is an error, everything else a finding.
pub fn check(path: impl AsRef<Path>, options: CheckOptions<'_>) -> Result<Report> {
    let open = StorageOpenOptions::new().filename(path.as_ref());
    let open = open.write(options.repair != Repair::None).lock(options.lock);
    check_storage(Arc::new(File::open_sync(open)?), options)
}

/// The same for the image in `storage`, which a repair needs open for writing.
pub fn check_storage(storage: Arc<dyn Storage>, options: CheckOptions<'_>) -> Result<Report> {
    let path = storage.path().map(Path::to_owned);
    check_aligned(&*aligned(storage), options).map_err(|error| match path {
        Some(path) => error.in_file(path),
        None => error,
    })
}

fn check_aligned(storage: &dyn Storage, options: CheckOptions<'_>) -> Result<Report> {
    let CheckOptions { format, repair, deep, data_file: given, gate, lock, mut progress, cancel } = options;
    let format = match format {
        Some(format) => format,
        None => probe(storage)?,
    };
    if format == FormatKind::Raw {
        return Err(Error::unsupported("a raw image has no metadata that could be checked"));
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
    let mut report = |done, total| {
        if let Some(progress) = &mut progress {
            progress(Progress { done, total });
        }
    };
    let mut control = Control { workers: cores(), progress: &mut report, cancel };
    let mut survey = Survey::open(storage, data.as_deref())?;
    survey.count(&mut control)?;
    if deep {
        unpack_all(storage, &survey, &mut control)?;
    }
    Ok(survey.into_report())
}

/// Unpacks every compressed cluster.
fn unpack_all(storage: &dyn Storage, survey: &Survey<'_>, control: &mut Control<'_>) -> Result<()> {
    control.spread(survey.parts(), |(clusters, bytes): &mut (Vec<CompressedCluster>, Vec<u8>), part| {
        clusters.clear();
        survey.compressed_in(part, clusters)?;
        for cluster in clusters {
            if let Err(error) = unpack::cluster(storage, cluster, bytes) {
                survey.note_undecodable(cluster, &error);
            }
        }
        Ok(())
    })
}
