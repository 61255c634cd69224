//! Big-endian structures as they stand on disk, and the arithmetic to place them.
