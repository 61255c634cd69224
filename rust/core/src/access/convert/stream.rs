//! Conversions into a stream of bytes, such as a pipe: written from the first byte to the last.

use std::ops::Range;
use std::sync::mpsc::sync_channel;
use std::thread;

use super::super::create::CreateOptions;
use super::super::job::Job;
use super::super::pool::among_all;
use super::super::sweep::{Hands, PIECE, Piece, cut};
use super::input::{Input, Known, Reader, Units};
use super::{Converted, CopyBitmaps, Copying, hands};
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::create as qcow2;
use crate::format::qcow2::sequential::Sequential;

static ZEROES: [u8; 256 << 10] = [0; 256 << 10];

/// Gives `put` the content of `input` as an image of `target`'s format (raw or qcow2), first byte to last, on the calling thread, while
/// other threads read ahead. It cannot take back what it gave.
///
/// A qcow2 image is laid out before its first byte by what the source knows of its data: data that is all zeroes takes its space.
/// Nobody may write to the source meanwhile.
///
/// # Errors
/// [`Unsupported`](crate::ErrorKind::Unsupported) for what cannot be without going back: compressed clusters, bitmaps, encryption,
/// preallocation, other files. Nothing was given then.
pub fn convert_to_stream(
    input: impl Into<Input>,
    target: CreateOptions,
    copying: &Copying,
    job: &mut Job<'_>,
    put: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Converted> {
    let input = input.into();
    if copying.compress.is_some() {
        return Err(Error::unsupported("compressed clusters need a target that can be written out of order"));
    }
    if copying.bitmaps != CopyBitmaps::None {
        return Err(Error::unsupported("bitmaps need a target that can be written out of order"));
    }
    let stream = Stream { input: &input, copying, hands: hands(copying) };
    match target {
        CreateOptions::Raw { .. } => stream.raw(job, put),
        CreateOptions::Qcow2(options) => {
            stream.qcow2(&qcow2::CreateOptions { size: input.size(), ..options }, job, put)
        }
        CreateOptions::Luks { .. } => {
            Err(Error::unsupported("only raw and qcow2 can be written as a stream"))
        }
    }
}

struct Stream<'a> {
    input: &'a Input,
    copying: &'a Copying,
    hands: Hands,
}

impl Stream<'_> {
    fn raw(&self, job: &mut Job<'_>, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Converted> {
        let units = Units::new(self.input, self.copying.on_error, 1);
        self.data(units, job, |piece, bytes, job| match piece.what {
            Known::Nothing => put(bytes),
            Known::Zero | Known::Below => {
                let mut left = piece.len();
                while left > 0 {
                    job.wanted().check()?;
                    let part = left.min(ZEROES.len() as u64);
                    put(&ZEROES[..part as usize])?;
                    left -= part;
                    job.report(piece.end - left, self.input.size());
                }
                Ok(())
            }
        })
    }

    fn qcow2(
        &self,
        options: &qcow2::CreateOptions,
        job: &mut Job<'_>,
        put: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Converted> {
        if let Some(image) = self.input.images().find(|image| image.writable()) {
            return Err(image.name(Error::invalid_input(
                "the source is open for writing: a stream is laid out before its data is read, which must not change",
            )));
        }
        qcow2::check(options)?;
        let cluster_size = u64::from(options.cluster_size);
        let units = || Units::new(self.input, self.copying.on_error, cluster_size);
        let data = || units().filter(|piece| !matches!(piece, Ok(piece) if piece.what != Known::Nothing));
        let clusters = || {
            let numbers = |piece: Piece<Known>| -> Range<u64> {
                piece.start / cluster_size..piece.end.div_ceil(cluster_size)
            };
            Box::new(data().map(move |piece| piece.map(numbers))) as Box<dyn Iterator<Item = _>>
        };
        let image = Sequential::new(options, &clusters)?;
        job.report(0, self.input.size());
        image.put_tables(&clusters, &mut |bytes| {
            job.wanted().check()?;
            put(bytes)
        })?;
        let mut left = image.data_clusters();
        let converted = self.data(data(), job, |piece, bytes, _| {
            let clusters = piece.len().div_ceil(cluster_size);
            left = left.checked_sub(clusters).ok_or_else(changed)?;
            put(bytes)?;
            put(&vec![0; (clusters * cluster_size - piece.len()) as usize])
        })?;
        if left > 0 { Err(changed()) } else { Ok(converted) }
    }

    /// Reads the pieces on other threads and hands them to `put`, in their order, on this one.
    fn data(
        &self,
        pieces: impl Iterator<Item = Result<Piece<Known>>>,
        job: &mut Job<'_>,
        mut put: impl FnMut(&Piece<Known>, &[u8], &mut Job<'_>) -> Result<()>,
    ) -> Result<Converted> {
        let reader = Reader::new(self.input, self.copying.on_error);
        let size = self.input.size();
        let mut pieces = cut(pieces, PIECE, |piece| piece.what != Known::Nothing);
        job.report(0, size);
        thread::scope(|scope| {
            // Each thread has a queue of its own, filled and emptied in turn: what comes out is in order.
            let lanes: Vec<_> = (0..self.hands.threads)
                .map(|_| {
                    let (give, work) = sync_channel::<(Piece<Known>, Vec<u8>)>(AHEAD);
                    let (done, take) = sync_channel(AHEAD);
                    let reader = &reader;
                    scope.spawn(move || {
                        for (piece, mut bytes) in work {
                            let result = among_all(|| read(reader, &piece, &mut bytes));
                            if done.send(result.map(|()| (piece, bytes))).is_err() {
                                return;
                            }
                        }
                    });
                    (give, take)
                })
                .collect();
            let (mut given, mut taken, mut spare) = (0, 0, Vec::new());
            loop {
                while given - taken < AHEAD * lanes.len() {
                    let Some(piece) = pieces.next().transpose()? else { break };
                    let buffer = spare.pop().unwrap_or_default();
                    lanes[given % lanes.len()].0.send((piece, buffer)).map_err(|_| died())?;
                    given += 1;
                }
                if taken == given {
                    return Ok(());
                }
                let (piece, bytes): (Piece<Known>, Vec<u8>) =
                    lanes[taken % lanes.len()].1.recv().map_err(|_| died())??;
                taken += 1;
                job.wanted().check()?;
                put(&piece, &bytes, job)?;
                self.hands.charge(piece.len());
                spare.push(bytes);
                job.report(piece.end, size);
                self.hands.rest(job, |job| job.report(piece.end, size))?;
            }
        })?;
        job.report(size, size);
        Ok(Converted { unreadable: reader.unreadable(), skipped_bitmaps: Vec::new() })
    }
}

/// Pieces that are given to a thread before it is asked for the first.
const AHEAD: usize = 2;

fn read(reader: &Reader<'_>, piece: &Piece<Known>, bytes: &mut Vec<u8>) -> Result<()> {
    if piece.what == Known::Nothing {
        bytes.resize(piece.len() as usize, 0);
        reader.read(bytes, piece.start)?;
    }
    Ok(())
}

fn died() -> Error {
    Error::new(ErrorKind::Io, "a thread that read the source died")
}

fn changed() -> Error {
    Error::invalid_input("the source changed while it was converted: what has data is not what it was")
}
