//! Two disks side by side: the ranges in which each has one answer.

use super::extent::Extent;
use super::map::Extents;
use super::sweep::Piece;
use crate::error::Result;

/// The ranges of two disks up to an end, and what a function makes of the two extents there.
///
/// Behind the end of its disk an image has no extent.
pub(super) struct Pairs<F> {
    extents: [Option<Extents>; 2],
    /// The extent of each disk at the position.
    current: [Option<Extent>; 2],
    position: u64,
    end: u64,
    judge: F,
}

impl<T, F: Fn(u64, Option<&Extent>, Option<&Extent>) -> T> Pairs<F> {
    /// `judge` gets the offset and both extents.
    pub(super) fn new(extents: [Option<Extents>; 2], end: u64, judge: F) -> Self {
        Pairs { extents, current: [None, None], position: 0, end, judge }
    }

    fn advance(&mut self) -> Result<()> {
        for (extents, current) in self.extents.iter_mut().zip(&mut self.current) {
            if current.as_ref().is_none_or(|extent| extent.end() <= self.position) {
                *current = extents.as_mut().and_then(Iterator::next).transpose()?;
            }
        }
        Ok(())
    }
}

impl<T, F: Fn(u64, Option<&Extent>, Option<&Extent>) -> T> Iterator for Pairs<F> {
    type Item = Result<Piece<T>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.position >= self.end {
            return None;
        }
        if let Err(error) = self.advance() {
            self.position = self.end;
            return Some(Err(error));
        }
        let [first, second] = self.current.each_ref().map(Option::as_ref);
        let start = self.position;
        let end = |extent: Option<&Extent>| extent.map_or(self.end, Extent::end);
        self.position = end(first).min(end(second)).min(self.end);
        Some(Ok(Piece { start, end: self.position, what: (self.judge)(start, first, second) }))
    }
}
