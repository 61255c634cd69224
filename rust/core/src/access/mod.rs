//! A guest request becomes extents, extents become storage operations.
