//! A deflate encoder (RFC 1951) whose matches are at most 4 KiB behind.
//!
//! QEMU unpacks with a window of 4 KiB. libdeflate's encoder cannot keep to that, and the others that are fast look for
//! matches of four bytes and more only, which in so small a window makes files several percent larger than QEMU's.

mod block;
mod codes;
mod matches;

use block::{Bits, a_match, literal};
use matches::{Effort, Finder, MIN_MATCH, load};

/// An encoder; its memory is used again and again.
pub(super) struct Deflater {
    effort: Effort,
    finder: Box<Finder>,
    symbols: Vec<u32>,
    bits: Bits,
}

impl Deflater {
    /// An encoder that tries about as hard as zlib does at `level`, 1 to 9.
    pub(super) fn new(level: u32) -> Self {
        let (depth, nice, lazy) = match level {
            ..=1 => (2, 32, false),
            2 => (6, 32, false),
            3 => (16, 64, false),
            4 => (8, 32, true),
            5 => (12, 48, true),
            6 => (16, 64, true),
            7 => (48, 130, true),
            8 => (256, 258, true),
            _ => (4096, 258, true),
        };
        Deflater {
            effort: Effort { depth, nice, lazy },
            finder: Finder::new(),
            symbols: Vec::new(),
            bits: Bits::default(),
        }
    }

    /// The stream that `data`, which is not empty, comes to; `None` if that takes as many bytes as `data` or more.
    pub(super) fn pack(&mut self, data: &[u8]) -> Option<&[u8]> {
        self.find_matches(data);
        let most = data.len() - 1;
        self.bits.start(most);
        self.bits.write(&self.symbols, most).then(|| self.bits.bytes())
    }

    fn find_matches(&mut self, data: &[u8]) {
        let Deflater { effort, finder, symbols, .. } = self;
        let effort = *effort;
        let once_more = Effort { depth: effort.depth.div_ceil(2), ..effort };
        symbols.clear();
        finder.forget();
        // Positions that have the four bytes which a look-up needs.
        let end = data.len().saturating_sub(3);
        let mut at = 0;
        while at < end {
            let mut found = finder.find(data, at, MIN_MATCH - 1, effort);
            if found.distance == 0 {
                symbols.push(literal(data[at]));
                at += 1;
                continue;
            }
            let mut noted = at + 1;
            while effort.lazy && found.len < effort.nice && noted < end {
                let next = finder.find(data, noted, found.len - 1, once_more);
                noted += 1;
                if !next.is_better(found) {
                    break;
                }
                symbols.push(literal(data[at]));
                at += 1;
                found = next;
            }
            symbols.push(a_match(found.len, found.distance));
            at += found.len;
            for position in noted..at.min(end) {
                finder.note(load(data, position), position);
            }
        }
        symbols.extend(data[at..].iter().map(|&byte| literal(byte)));
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Decompress, FlushDecompress, Status};

    use super::*;

    /// Unpacks with a window of 4 KiB and no memory of what is farther behind.
    fn unpack(packed: &[u8]) -> Vec<u8> {
        let mut stream = Decompress::new_with_window_bits(false, 12);
        let mut out = Vec::new();
        loop {
            let mut part = [0; 100];
            let (taken, made) = (stream.total_in() as usize, stream.total_out());
            let status = stream
                .decompress(&packed[taken..], &mut part, FlushDecompress::None)
                .expect("a valid stream");
            out.extend_from_slice(&part[..(stream.total_out() - made) as usize]);
            if status == Status::StreamEnd {
                assert_eq!(stream.total_in() as usize, packed.len(), "bytes behind the stream's end");
                return out;
            }
        }
    }

    /// Bytes of many kinds: text-like, runs, far repetitions, noise.
    fn samples() -> Vec<Vec<u8>> {
        let mut random = 1_u64;
        let mut next = move |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % below
        };
        let mut samples = vec![vec![7; 1], vec![7; 5], b"abcabcabcabcab".to_vec(), vec![0; 70_000]];
        for len in [512, 4096, 65_536, 300_000] {
            let words: Vec<Vec<u8>> =
                (0..500).map(|_| (0..=next(9)).map(|_| b'a' + next(26) as u8).collect()).collect();
            let mut text = Vec::new();
            while text.len() < len {
                text.extend_from_slice(&words[next(20) * next(26)]);
                text.push(b' ');
            }
            text.truncate(len);
            samples.push(text);
            samples.push((0..len).map(|i| (i / 300) as u8).collect());
            samples.push((0..len).map(|_| next(256) as u8).collect());
            samples
                .push((0..len).map(|i| if i % 9 == 0 { next(256) as u8 } else { (i % 5) as u8 }).collect());
            // Repetitions at every distance about the window's size.
            let block: Vec<u8> = (0..3900 + next(400)).map(|_| next(256) as u8).collect();
            samples.push(block.iter().copied().cycle().take(len).collect());
        }
        samples
    }

    #[test]
    fn every_stream_unpacks_in_a_window_of_4_kib() {
        for level in 1..=9 {
            let mut encoder = Deflater::new(level);
            let mut packed_any = 0;
            for sample in samples() {
                if let Some(packed) = encoder.pack(&sample) {
                    assert!(packed.len() < sample.len());
                    assert!(unpack(packed) == sample, "level {level}, {} bytes", sample.len());
                    packed_any += 1;
                }
            }
            assert!(packed_any >= 15, "level {level} packed {packed_any}");
        }
    }

    #[test]
    fn the_same_bytes_come_to_the_same_stream_whatever_was_before() {
        let samples = samples();
        let mut used = Deflater::new(6);
        for sample in samples.iter().chain(&samples) {
            assert_eq!(
                used.pack(sample).map(<[u8]>::to_vec),
                Deflater::new(6).pack(sample).map(<[u8]>::to_vec)
            );
        }
    }

    #[test]
    fn what_cannot_be_packed_is_not() {
        let mut random = 1_u32;
        let mut noise = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 24) as u8
        };
        let noise: Vec<u8> = (0..65_536).map(|_| noise()).collect();
        for level in 1..=9 {
            assert!(Deflater::new(level).pack(&noise).is_none());
        }
        assert!(Deflater::new(6).pack(&[1]).is_none());
    }

    #[test]
    fn higher_levels_pack_better() {
        let text = &samples()[14];
        assert_eq!(text.len(), 65_536);
        let len = |level| Deflater::new(level).pack(text).unwrap().len();
        assert!(len(1) > len(6) && len(6) >= len(9), "{} {} {}", len(1), len(6), len(9));
        assert!(len(6) < text.len() / 2);
    }
}
