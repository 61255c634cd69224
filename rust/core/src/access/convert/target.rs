//! Where a conversion goes: a file that appears when it is whole, or a device.

use std::path::Path;
use std::sync::Arc;

use super::super::create::{self, CreateOptions};
use super::super::image::Image;
use super::super::job::Job;
use super::super::open::{Backing, OpenOptions};
use super::super::{settle, target};
use super::input::Input;
use super::{Converted, Durability};
use crate::error::{Error, Result};
use crate::format::FormatKind;
use crate::format::steps::Steps;
use crate::storage::file::File;
use crate::storage::{Identity, Lock, Storage, StorageOpenOptions, ZeroMode};

/// The file that is at `path` already, open so that its users are noticed; not one of `sources`.
pub(super) fn existing<'a>(
    sources: impl Iterator<Item = &'a Arc<Image>>,
    path: &Path,
) -> Result<Option<File>> {
    if !path.exists() {
        return Ok(None);
    }
    let probe = File::open_sync(StorageOpenOptions::new().filename(path).lock(Lock::Off))?;
    apart(sources, probe.identity()).map_err(|error| error.in_file(path))?;
    File::open_to_replace(path).map(Some)
}

/// An error if `target` has a file in common with `input`.
pub(super) fn check_apart(input: &Input, target: &Arc<Image>) -> Result<()> {
    if input.images().flat_map(chain).any(|image| Arc::ptr_eq(image, target)) {
        return Err(target.name(own_file()));
    }
    for storage in [target.format().storage(), target.format().data_storage()] {
        apart(input.images(), storage.identity()).map_err(|error| target.name(error))?;
    }
    Ok(())
}

fn apart<'a>(sources: impl Iterator<Item = &'a Arc<Image>>, identity: Option<Identity>) -> Result<()> {
    let Some(identity) = identity else { return Ok(()) };
    let same = |storage: &Arc<dyn Storage>| storage.identity().is_some_and(|its| its.overlaps(&identity));
    let uses = |image: &Arc<Image>| same(image.format().storage()) || same(image.format().data_storage());
    if sources.flat_map(chain).any(uses) { Err(own_file()) } else { Ok(()) }
}

fn own_file() -> Error {
    Error::invalid_input("the target is a file of the source's own chain")
}

fn chain(image: &Arc<Image>) -> impl Iterator<Item = &Arc<Image>> {
    std::iter::successors(Some(image), |image| image.backing())
}

/// Makes the image that `create` describes, has `write` write to it, and lets it appear at `path`. A block device becomes it where it stands.
///
/// Nobody sees the files before they are whole: in between they need no barrier, and one sync at the end makes them durable.
pub(super) fn make(
    path: &Path,
    replaced: Option<File>,
    create: &CreateOptions,
    backing: Option<&Arc<Image>>,
    durability: Durability,
    job: &mut Job<'_>,
    write: impl FnOnce(&Image, &mut Job<'_>) -> Result<Converted>,
) -> Result<Converted> {
    let mut converted = Converted::default();
    let data_path = create.data_file().map(|name| create::data_path(path, name)).transpose()?;
    let fill_all = |main: Arc<File>, data: Option<Arc<File>>| {
        let files = || data.iter().chain([&main]);
        files().for_each(|file| file.set_durable(false));
        let storage = |file: &Arc<File>| Arc::clone(file) as Arc<dyn Storage>;
        let (image, data_file) = (storage(&main), data.as_ref().map(storage));
        let wanted = job.wanted();
        create::fill(&image, data_file.as_ref(), create, &mut Steps::new(&mut |_, _| wanted.check()))?;
        let open = OpenOptions {
            write: true,
            format: Some(create.kind()),
            backing: backing.map_or(Backing::None, |backing| Backing::Image(Arc::clone(backing))),
            data_file,
            secret: create.secret().cloned(),
            ..Default::default()
        };
        let fill = || {
            let image = open.open_storage(image)?;
            converted = write(&image, job)?;
            image.close()?;
            let size = create.size();
            job.report(size, size);
            if durability == Durability::Synced {
                for file in files() {
                    file.set_durable(true);
                    settle::sync(&storage(file), job)?;
                }
            }
            job.wanted().check()
        };
        fill().inspect_err(|_| {
            if main.is_block_device() && create.kind() != FormatKind::Raw {
                // It cannot be removed: without its header nobody takes a part for the whole.
                let _ = main.write_zeroes_at(0, create::SECTOR, ZeroMode::Keep);
            }
        })
    };
    target::make(path, replaced, data_path.as_deref(), durability, fill_all)?;
    Ok(converted)
}
