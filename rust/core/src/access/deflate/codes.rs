//! Prefix codes.

/// Longest code of literals and distances.
pub(super) const MAX_BITS: usize = 15;

/// A prefix code: for each symbol its bits (the first in the least significant) and their number; 0: it has none.
#[derive(Clone, Copy)]
pub(super) struct Code<const N: usize> {
    pub(super) codes: [(u16, u8); N],
}

impl<const N: usize> Code<N> {
    /// The best code of at most `longest` bits for symbols that occur so often.
    pub(super) fn of(counts: &[u32; N], longest: usize) -> Self {
        let occurs = |(symbol, &count): (u16, &u32)| (count > 0).then_some((count, symbol));
        let mut used: Vec<_> = (0..).zip(counts).filter_map(occurs).collect();
        // Some readers want two symbols at least.
        for symbol in 0..2 {
            if used.len() < 2 && used.iter().all(|&(_, other)| other != symbol) {
                used.push((1, symbol));
            }
        }
        used.sort_unstable();
        let mut lens = best_lengths(&used.iter().map(|&(count, _)| count).collect::<Vec<_>>());
        limit_lengths(&mut lens, longest);
        let mut of_symbols = [0; N];
        for (&(_, symbol), &len) in used.iter().zip(&lens) {
            of_symbols[symbol as usize] = len;
        }
        Self::with_lengths(&of_symbols)
    }

    /// The code whose lengths are these: shorter ones first, and those of one length in the order of the symbols.
    pub(super) fn with_lengths(lens: &[u8; N]) -> Self {
        let mut numbers = [0_u16; MAX_BITS + 1];
        for &len in lens.iter().filter(|len| **len > 0) {
            numbers[len as usize] += 1;
        }
        let mut next = [0_u16; MAX_BITS + 2];
        for len in 1..=MAX_BITS {
            next[len + 1] = (next[len] + numbers[len]) << 1;
        }
        let mut codes = [(0, 0); N];
        for (code, &len) in codes.iter_mut().zip(lens).filter(|(_, len)| **len > 0) {
            *code = (next[len as usize].reverse_bits() >> (16 - len), len);
            next[len as usize] += 1;
        }
        Code { codes }
    }

    /// Bits that symbols take that occur so often.
    pub(super) fn cost(&self, counts: &[u32; N]) -> u64 {
        self.codes.iter().zip(counts).map(|((_, len), &count)| u64::from(*len) * u64::from(count)).sum()
    }
}

/// The code lengths of Huffman's code for `counts`, two or more, which ascend.
fn best_lengths(counts: &[u32]) -> Vec<u8> {
    let leaves = counts.len();
    let nodes = 2 * leaves - 1;
    // The leaves, then the inner nodes in the order in which they come about; their weights ascend as well.
    let mut weights = counts.to_vec();
    let mut parents = vec![0; nodes];
    let (mut leaf, mut inner) = (0, leaves);
    for node in leaves..nodes {
        let mut weight = 0;
        for _ in 0..2 {
            let lightest = if leaf < leaves && (inner == node || weights[leaf] <= weights[inner]) {
                &mut leaf
            } else {
                &mut inner
            };
            parents[*lightest] = node;
            weight += weights[*lightest];
            *lightest += 1;
        }
        weights.push(weight);
    }
    let mut depths = vec![0; nodes];
    for node in (0..nodes - 1).rev() {
        depths[node] = depths[parents[node]] + 1;
    }
    depths.truncate(leaves);
    depths
}

/// Shortens codes to `longest` bits, at the cost of those that are nearly as long. `lens` are of symbols that occur ever more often.
fn limit_lengths(lens: &mut [u8], longest: usize) {
    let mut numbers = [0_u32; MAX_BITS + 1];
    for &len in &*lens {
        numbers[longest.min(len as usize)] += 1;
    }
    // The share of all codes, in units of that of one of `longest` bits.
    let mut total: u32 = (1..=longest).map(|len| numbers[len] << (longest - len)).sum();
    while total > 1 << longest {
        let shorter = (1..longest).rev().find(|&len| numbers[len] > 0).expect("a shorter code");
        numbers[longest] -= 1;
        numbers[shorter] -= 1;
        numbers[shorter + 1] += 2;
        total -= 1;
    }
    let ascending = (1..=longest).flat_map(|len| std::iter::repeat_n(len as u8, numbers[len] as usize));
    lens.iter_mut().rev().zip(ascending).for_each(|(len, new)| *len = new);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums of the shares of all codes, in units of the longest's.
    fn shares(lens: &[u8], longest: usize) -> u32 {
        lens.iter().map(|&len| 1 << (longest - len as usize)).sum()
    }

    #[test]
    fn codes_are_complete_and_within_the_limit() {
        let mut fibonacci = vec![1_u32, 1];
        for i in 2..30 {
            fibonacci.push(fibonacci[i - 1] + fibonacci[i - 2]);
        }
        for counts in [vec![1, 1], vec![1; 286], fibonacci, (1..=200).collect()] {
            for longest in [9, MAX_BITS] {
                let mut lens = best_lengths(&counts);
                limit_lengths(&mut lens, longest);
                assert_eq!(shares(&lens, longest), 1 << longest, "{counts:?}");
                assert!(lens.iter().all(|&len| (1..=longest as u8).contains(&len)));
                assert!(lens.is_sorted_by(|a, b| a >= b), "what occurs more often has no longer code");
            }
        }
    }

    #[test]
    fn canonical_codes_are_those_of_the_standards_example() {
        // RFC 1951, section 3.2.2, with the bits of each code turned round.
        let code = Code::with_lengths(&[3, 3, 3, 3, 3, 2, 4, 4]);
        let codes = code.codes.map(|(bits, len)| bits.reverse_bits() >> (16 - len));
        assert_eq!(codes, [0b010, 0b011, 0b100, 0b101, 0b110, 0b00, 0b1110, 0b1111]);
    }
}
