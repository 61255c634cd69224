//! Finding what stood before.

/// Farthest that a match may be behind.
pub(super) const WINDOW: usize = 4096;
/// Shortest and longest match.
pub(super) const MIN_MATCH: usize = 3;
pub(super) const MAX_MATCH: usize = 258;

/// Bits of the hashes of three and four bytes. The window has no more positions than that.
const BITS3: u32 = 12;
const BITS4: u32 = 13;

/// How far to look for a match.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Candidates that are tried at most.
    pub(super) depth: u32,
    /// A match as long as this is good enough.
    pub(super) nice: usize,
    /// Whether the next position may have a better one.
    pub(super) lazy: bool,
}

/// The positions at which bytes stood before, by their hash. Positions are kept modulo 2^16: what a candidate has is
/// always compared, so that a position of long ago does no harm.
pub(super) struct Finder {
    /// The last position of three bytes.
    last3: [u16; 1 << BITS3],
    /// The last position of four bytes, and for each position the one before with the same hash.
    last4: [u16; 1 << BITS4],
    before: [u16; WINDOW],
}

/// Bytes that stood before already.
#[derive(Clone, Copy)]
pub(super) struct Match {
    pub(super) len: usize,
    /// How far behind; 0: there is no match.
    pub(super) distance: usize,
}

impl Match {
    /// Whether it pays to write a literal first and then this instead of `other`: a far match takes more bits.
    pub(super) fn is_better(self, other: Match) -> bool {
        if self.distance == 0 {
            return false;
        }
        let log = |found: Match| found.distance.ilog2() as usize;
        4 * self.len + log(other) > 4 * other.len + log(self) + 2
    }
}

/// The four bytes at `at`.
#[inline]
pub(super) fn load(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(data[at..at + 4].try_into().expect("four bytes"))
}

/// How many bytes are the same from the start on.
#[inline]
fn common(a: &[u8], b: &[u8]) -> usize {
    let mut len = 0;
    let (a8, b8) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0);
    for (x, y) in a8.iter().zip(b8) {
        let difference = u64::from_le_bytes(*x) ^ u64::from_le_bytes(*y);
        if difference != 0 {
            return len + difference.trailing_zeros() as usize / 8;
        }
        len += 8;
    }
    len + a[len..].iter().zip(&b[len..]).take_while(|(x, y)| x == y).count()
}

impl Finder {
    pub(super) fn new() -> Box<Self> {
        Box::new(Finder { last3: [0; 1 << BITS3], last4: [0; 1 << BITS4], before: [0; WINDOW] })
    }

    /// Starts anew. Positions that were never noted count as the first, where a look shows whether that is one.
    pub(super) fn forget(&mut self) {
        self.last3.fill(0);
        self.last4.fill(0);
    }

    fn hashes(word: u32) -> (usize, usize) {
        let hash = |word: u32, bits: u32| (word.wrapping_mul(0x1e35_a7bd) >> (32 - bits)) as usize;
        (hash(word << 8, BITS3), hash(word, BITS4))
    }

    /// Notes position `at` and returns the last ones with its three and four bytes.
    #[inline]
    pub(super) fn note(&mut self, word: u32, at: usize) -> (u16, u16) {
        let (hash3, hash4) = Self::hashes(word);
        let found = (self.last3[hash3], self.last4[hash4]);
        self.last3[hash3] = at as u16;
        self.before[at % WINDOW] = found.1;
        self.last4[hash4] = at as u16;
        found
    }

    /// The longest match of position `at` that is longer than `shortest`, and notes the position. There are four bytes at least.
    #[inline]
    pub(super) fn find(&mut self, data: &[u8], at: usize, shortest: usize, effort: Effort) -> Match {
        let word = load(data, at);
        let (near3, near4) = self.note(word, at);
        let most = MAX_MATCH.min(data.len() - at);
        let mut best = Match { len: shortest, distance: 0 };
        if best.len >= most {
            return best;
        }
        let reach = at.min(WINDOW);
        let distance_to = |position: u16| (at as u16).wrapping_sub(position) as usize;
        if best.len < MIN_MATCH {
            let distance = distance_to(near3);
            if (1..=reach).contains(&distance) && (load(data, at - distance) ^ word) << 8 == 0 {
                best = Match { len: MIN_MATCH, distance };
            }
        }
        let mut distance = distance_to(near4);
        let mut last = 0;
        let mut depth = effort.depth;
        let current = &data[at..at + most];
        let mut tail = load(data, at + best.len.max(3) - 3);
        while distance > last && distance <= reach {
            let candidate = at - distance;
            let same = load(data, candidate + best.len.max(3) - 3) == tail && load(data, candidate) == word;
            if same {
                let len = common(&data[candidate..candidate + most], current);
                if len > best.len {
                    best = Match { len, distance };
                    if len >= effort.nice || len >= most {
                        break;
                    }
                    tail = load(data, at + len - 3);
                }
            }
            depth -= 1;
            if depth == 0 {
                break;
            }
            last = distance;
            distance = distance_to(self.before[candidate % WINDOW]);
        }
        best
    }
}
