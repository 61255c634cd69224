//! Offsets with a meaning: what the guest sees and where a file holds it never mix.

use std::fmt;

macro_rules! offset {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// This offset moved up by `bytes`; `None` on overflow.
            pub fn checked_add(self, bytes: u64) -> Option<Self> {
                self.0.checked_add(bytes).map(Self)
            }

            /// The bytes below the last multiple of `unit` (a power of two).
            pub fn within(self, unit: u64) -> u64 {
                debug_assert!(unit.is_power_of_two());
                self.0 & (unit - 1)
            }

            /// The last multiple of `unit` (a power of two) that is not above this offset.
            #[must_use]
            pub fn align_down(self, unit: u64) -> Self {
                debug_assert!(unit.is_power_of_two());
                Self(self.0 & !(unit - 1))
            }

            /// Whether this offset is a multiple of `unit` (a power of two).
            pub fn is_aligned(self, unit: u64) -> bool {
                self.within(unit) == 0
            }
        }

        impl std::ops::Add<u64> for $name {
            type Output = Self;
            fn add(self, bytes: u64) -> Self {
                Self(self.0 + bytes)
            }
        }

        impl std::ops::Sub for $name {
            type Output = u64;
            fn sub(self, other: Self) -> u64 {
                self.0 - other.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

offset! {
    /// An offset in the disk that the guest sees, in bytes.
    GuestOffset
}
offset! {
    /// An offset in a storage (an image file, an external data file), in bytes.
    HostOffset
}
