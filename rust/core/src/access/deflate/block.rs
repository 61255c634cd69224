//! Blocks: where they end, their codes, and their bits. Sections are those of RFC 1951.

use super::codes::{Code, MAX_BITS};
use super::matches::{MAX_MATCH, MIN_MATCH};

const LITERALS: usize = 286;
const DISTANCES: usize = 30;
/// The symbol that ends a block.
const END: usize = 256;

/// Longest code of code lengths.
const MAX_LENGTH_BITS: usize = 7;
/// The order in which the lengths of that code's codes are stored (3.2.7).
const LENGTH_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Symbols that stay together when a cluster is cut into blocks.
const PART: usize = 4096;
/// What the head of a block takes, about.
const HEAD_BITS: f64 = 500.0;

/// Set in a symbol that is a match; then bits 16 to 24 are its length and the lower ones its distance. Otherwise it is a literal.
const MATCH: u32 = 1 << 31;

pub(super) fn literal(byte: u8) -> u32 {
    u32::from(byte)
}

pub(super) fn a_match(len: usize, distance: usize) -> u32 {
    MATCH | (len as u32) << 16 | distance as u32
}

/// The symbol of each length, the number of bits behind it, and those bits (3.2.5).
const LENGTH_SYMBOLS: [(u16, u8, u16); MAX_MATCH + 1] = {
    let mut table = [(0, 0, 0); MAX_MATCH + 1];
    let (mut symbol, mut base) = (257, MIN_MATCH);
    while symbol < LITERALS {
        let bits = if symbol < 265 || symbol == 285 { 0 } else { (symbol - 261) / 4 };
        let mut len = base;
        while len < base + (1 << bits) && len <= MAX_MATCH {
            table[len] = (symbol as u16, bits as u8, (len - base) as u16);
            len += 1;
        }
        symbol += 1;
        // The longest has a symbol of its own.
        base = if symbol == 285 { MAX_MATCH } else { len };
    }
    table
};

/// The symbol of a distance, the number of bits behind it, and those bits (3.2.5).
#[inline]
fn distance_symbol(distance: u32) -> (usize, u32, u32) {
    let less = distance - 1;
    if less < 4 {
        return (less as usize, 0, 0);
    }
    let bits = 30 - less.leading_zeros();
    ((2 * bits + (less >> bits)) as usize, bits, less & ((1 << bits) - 1))
}

/// How often the symbols of one block occur.
#[derive(Clone)]
struct Counts {
    literals: [u32; LITERALS],
    distances: [u32; DISTANCES],
}

impl Counts {
    fn of(symbols: &[u32]) -> Self {
        let mut counts = Counts { literals: [0; LITERALS], distances: [0; DISTANCES] };
        for &symbol in symbols {
            if symbol & MATCH == 0 {
                counts.literals[symbol as usize & 0xff] += 1;
            } else {
                let (length, _, _) = LENGTH_SYMBOLS[symbol as usize >> 16 & 0x1ff];
                counts.literals[length as usize] += 1;
                counts.distances[distance_symbol(symbol & 0xffff).0] += 1;
            }
        }
        counts
    }

    fn and(&self, other: &Counts) -> Counts {
        Counts {
            literals: std::array::from_fn(|i| self.literals[i] + other.literals[i]),
            distances: std::array::from_fn(|i| self.distances[i] + other.distances[i]),
        }
    }

    /// Bits that the symbols take at least, by their entropy.
    fn entropy(&self) -> f64 {
        let of = |counts: &[u32]| {
            let bits = |count: u32| if count > 1 { f64::from(count) * f64::from(count).log2() } else { 0.0 };
            bits(counts.iter().sum()) - counts.iter().map(|&count| bits(count)).sum::<f64>()
        };
        of(&self.literals) + of(&self.distances)
    }

    /// Bits behind the symbols of lengths and distances.
    fn bits_behind(&self) -> u64 {
        let lengths = (265..285).map(|i| u64::from(self.literals[i]) * ((i as u64 - 261) / 4));
        let distances = (4..DISTANCES).map(|i| u64::from(self.distances[i]) * (i as u64 / 2 - 1));
        lengths.chain(distances).sum()
    }
}

/// Some symbols that are a block.
struct Block {
    /// Where they end.
    end: usize,
    counts: Counts,
    /// Bits, about.
    entropy: f64,
}

/// Cuts symbols, one at least, into blocks: neighbours are one unless two codes fit them so much better that they pay for another head.
fn blocks(symbols: &[u32]) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut end = 0;
    for part in symbols.chunks(PART) {
        end += part.len();
        let counts = Counts::of(part);
        let mut block = Block { end, entropy: counts.entropy(), counts };
        while let Some(before) = blocks.pop() {
            let counts = before.counts.and(&block.counts);
            let entropy = counts.entropy();
            if entropy > before.entropy + block.entropy + HEAD_BITS {
                blocks.push(before);
                break;
            }
            block = Block { end, counts, entropy };
        }
        blocks.push(block);
    }
    for block in &mut blocks {
        block.counts.literals[END] = 1;
    }
    blocks
}

/// Bits in bytes, the first in the least significant one.
#[derive(Default)]
pub(super) struct Bits {
    bytes: Vec<u8>,
    /// Bytes that are full, and what comes behind them: its bits and their number, less than a byte's.
    full: usize,
    word: u64,
    count: u32,
}

impl Bits {
    /// Starts anew; [`write`](Self::write) takes no more than `most` bytes.
    pub(super) fn start(&mut self, most: usize) {
        // As far as `push` writes words.
        self.bytes.resize(most + 16, 0);
        (self.full, self.word, self.count) = (0, 0, 0);
    }

    /// All bits, the last byte filled up with zeroes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.full + usize::from(self.count > 0)]
    }

    /// Adds the `count` bits (at most 56) of `bits`.
    #[inline]
    fn push(&mut self, bits: u64, count: u32) {
        self.word |= bits << self.count;
        self.count += count;
        self.bytes[self.full..self.full + 8].copy_from_slice(&self.word.to_le_bytes());
        self.full += (self.count / 8) as usize;
        self.word >>= self.count & !7;
        self.count %= 8;
    }

    /// Writes `symbols`, one at least, as the blocks of a whole stream. `false`: they take more than `most` bytes.
    pub(super) fn write(&mut self, symbols: &[u32], most: usize) -> bool {
        let blocks = blocks(symbols);
        let mut start = 0;
        for (block, left) in blocks.iter().zip((0..blocks.len()).rev()) {
            if !self.write_block(&symbols[start..block.end], &block.counts, left == 0, most) {
                return false;
            }
            start = block.end;
        }
        true
    }

    fn write_block(&mut self, symbols: &[u32], counts: &Counts, last: bool, most: usize) -> bool {
        let own = (Code::of(&counts.literals, MAX_BITS), Code::of(&counts.distances, MAX_BITS));
        let head = Head::new(&own.0, &own.1);
        let fixed = fixed_codes();
        let cost = |(literals, distances): &(Code<LITERALS>, Code<DISTANCES>)| {
            literals.cost(&counts.literals) + distances.cost(&counts.distances)
        };
        let (own_cost, fixed_cost) = (head.cost + cost(&own), cost(&fixed));
        let bits = 3 + own_cost.min(fixed_cost) + counts.bits_behind() + u64::from(self.count);
        if self.full as u64 + bits.div_ceil(8) > most as u64 {
            return false;
        }
        if own_cost < fixed_cost {
            self.push(u64::from(last) | 2 << 1, 3);
            head.write(self);
            self.write_symbols(symbols, &own.0, &own.1);
        } else {
            self.push(u64::from(last) | 1 << 1, 3);
            self.write_symbols(symbols, &fixed.0, &fixed.1);
        }
        true
    }

    fn write_symbols(&mut self, symbols: &[u32], literals: &Code<LITERALS>, distances: &Code<DISTANCES>) {
        for &symbol in symbols {
            if symbol & MATCH == 0 {
                let (code, len) = literals.codes[symbol as usize & 0xff];
                self.push(u64::from(code), u32::from(len));
                continue;
            }
            let (length, behind, rest) = LENGTH_SYMBOLS[symbol as usize >> 16 & 0x1ff];
            let (code, len) = literals.codes[length as usize];
            let mut bits = u64::from(code) | u64::from(rest) << len;
            let mut count = u32::from(len) + u32::from(behind);
            let (distance, behind, rest) = distance_symbol(symbol & 0xffff);
            let (code, len) = distances.codes[distance];
            bits |= u64::from(code) << count;
            count += u32::from(len);
            self.push(bits | u64::from(rest) << count, count + behind);
        }
        let (code, len) = literals.codes[END];
        self.push(u64::from(code), u32::from(len));
    }
}

/// The codes of a block without a head (3.2.6).
fn fixed_codes() -> (Code<LITERALS>, Code<DISTANCES>) {
    // Two literals and two distances more than there are belong to the codes.
    let literals = Code::<288>::with_lengths(&std::array::from_fn(|symbol| match symbol {
        144..256 => 9,
        256..280 => 7,
        _ => 8,
    }));
    let distances = Code::<32>::with_lengths(&[5; 32]);
    (
        Code { codes: std::array::from_fn(|symbol| literals.codes[symbol]) },
        Code { codes: std::array::from_fn(|symbol| distances.codes[symbol]) },
    )
}

/// The head of a block with codes of its own: the lengths of those codes, packed themselves (3.2.7).
struct Head {
    /// Numbers of literals and of distances.
    literals: usize,
    distances: usize,
    /// Lengths and repetitions, with the bits behind them.
    symbols: Vec<(u8, u8)>,
    code: Code<19>,
    /// How many of that code's lengths are stored.
    stored: usize,
    /// Bits.
    cost: u64,
}

/// Bits behind a symbol of the head: how often it stands for the length before it, or for none.
fn bits_behind(symbol: usize) -> u32 {
    match symbol {
        16 => 2,
        17 => 3,
        18 => 7,
        _ => 0,
    }
}

impl Head {
    fn new(literals: &Code<LITERALS>, distances: &Code<DISTANCES>) -> Self {
        let used = |codes: &[(u16, u8)], least: usize| {
            codes.iter().rposition(|(_, len)| *len > 0).map_or(0, |last| last + 1).max(least)
        };
        let (literals, distances) =
            (&literals.codes[..used(&literals.codes, 257)], &distances.codes[..used(&distances.codes, 1)]);
        let lens: Vec<u8> = literals.iter().chain(distances).map(|(_, len)| *len).collect();
        let mut symbols = Vec::new();
        for run in lens.chunk_by(|a, b| a == b) {
            let (len, mut left) = (run[0], run.len());
            let most = if len == 0 { 138 } else { 6 };
            if len > 0 {
                symbols.push((len, 0));
                left -= 1;
            }
            while left >= 3 {
                let part = left.min(most);
                symbols.push(match (len, part) {
                    (0, 11..) => (18, part as u8 - 11),
                    (0, _) => (17, part as u8 - 3),
                    _ => (16, part as u8 - 3),
                });
                left -= part;
            }
            symbols.extend(std::iter::repeat_n((len, 0), left));
        }
        let mut counts = [0; 19];
        for &(symbol, _) in &symbols {
            counts[symbol as usize] += 1;
        }
        let code = Code::of(&counts, MAX_LENGTH_BITS);
        let last = LENGTH_ORDER.iter().rposition(|&symbol| code.codes[symbol].1 > 0);
        let stored = last.map_or(0, |last| last + 1).max(4);
        let behind: u32 = (0..19).map(|symbol| counts[symbol] * bits_behind(symbol)).sum();
        let cost = 14 + 3 * stored as u64 + code.cost(&counts) + u64::from(behind);
        Head { literals: literals.len(), distances: distances.len(), symbols, code, stored, cost }
    }

    fn write(&self, out: &mut Bits) {
        out.push((self.literals - 257) as u64, 5);
        out.push((self.distances - 1) as u64, 5);
        out.push((self.stored - 4) as u64, 4);
        for &symbol in &LENGTH_ORDER[..self.stored] {
            out.push(u64::from(self.code.codes[symbol].1), 3);
        }
        for &(symbol, rest) in &self.symbols {
            let (code, len) = self.code.codes[symbol as usize];
            out.push(u64::from(code) | u64::from(rest) << len, u32::from(len) + bits_behind(symbol as usize));
        }
    }
}
