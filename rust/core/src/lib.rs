//! VM disk images: storages, formats and access to them.
