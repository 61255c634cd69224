//! The persistent dirty bitmaps of the source, for its copy.

use std::sync::Arc;

use super::super::create::CreateOptions;
use super::super::image::Image;
use super::input::Input;
use crate::error::{Error, Result};
use crate::format::qcow2::create::Version;
use crate::format::{DirtyBitmap, Recording};

/// Which persistent dirty bitmaps are copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyBitmaps {
    /// None.
    #[default]
    None,
    /// All; one that is inconsistent is an error, before anything is written.
    All,
    /// All but those that are inconsistent.
    Sound,
}

/// Refuses what the options alone say cannot be.
pub(super) fn check(input: &Input, target: &CreateOptions, which: CopyBitmaps) -> Result<()> {
    if which == CopyBitmaps::None {
        return Ok(());
    }
    match target {
        CreateOptions::Qcow2(options) if options.version == Version::V2 => {
            return Err(Error::unsupported("bitmaps need version 3 of qcow2 (compat 1.1)"));
        }
        CreateOptions::Qcow2(_) => {}
        _ => {
            return Err(Error::unsupported(format!(
                "Format driver '{}' does not support bitmaps",
                target.kind()
            )));
        }
    }
    find(input, which).map(drop)
}

/// The bitmaps that are to be copied into `target`.
pub(super) fn plan(input: &Input, target: &Image, which: CopyBitmaps) -> Result<Plan> {
    if which == CopyBitmaps::None {
        return Ok(Plan::default());
    }
    let plan = find(input, which)?;
    let there = target.bitmaps().list()?;
    match plan.sound.iter().find(|bitmap| there.iter().any(|other| other.name == bitmap.name)) {
        Some(twice) => Err(target
            .name(Error::invalid_input(format!("there is a bitmap {:?} in the target already", twice.name)))),
        None => Ok(plan),
    }
}

fn find(input: &Input, which: CopyBitmaps) -> Result<Plan> {
    let Some(source) = input.single() else {
        return Err(Error::invalid_input("Copying bitmaps only possible with single source"));
    };
    let (broken, sound): (Vec<_>, Vec<_>) =
        source.bitmaps().list()?.into_iter().partition(|bitmap| bitmap.inconsistent);
    match broken.first() {
        Some(bitmap) if which == CopyBitmaps::All => {
            Err(source
                .name(Error::invalid_input(format!("Cannot copy inconsistent bitmap '{}'", bitmap.name))))
        }
        _ => Ok(Plan {
            source: Some(Arc::clone(source)),
            sound,
            skipped: broken.into_iter().map(|bitmap| bitmap.name).collect(),
        }),
    }
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    source: Option<Arc<Image>>,
    sound: Vec<DirtyBitmap>,
    skipped: Vec<String>,
}

impl Plan {
    /// Copies them, after the data, whose writing they must not follow. Gives the names of those that are left out.
    pub(super) fn copy(self, target: &Image) -> Result<Vec<String>> {
        if let Some(source) = &self.source {
            for DirtyBitmap { name, granularity, enabled, .. } in &self.sound {
                target.bitmaps().add(name, Some(*granularity), Recording::Disabled)?;
                target.bitmaps().merge(name, source.bitmaps().ranges(name)?)?;
                if *enabled {
                    target.bitmaps().set_recording(name, Recording::Enabled)?;
                }
            }
        }
        Ok(self.skipped)
    }
}
