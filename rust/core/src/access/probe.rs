//! What an image looks like from its first bytes.

use crate::error::{Error, Result};
use crate::format::FormatKind;
use crate::storage::Storage;

/// Bytes at the start of a file that decide.
pub(crate) const LEN: usize = 512;

/// Signatures, where they stand, and whose they are.
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (0, b"QFI\xfb\0\0\0\x02", "qcow2"),
    (0, b"QFI\xfb\0\0\0\x03", "qcow2"),
    (0, b"QFI\xfb\0\0\0\x01", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
    (0, b"OOOM", "cow"),
];

/// The format (QEMU's name) that these first bytes of a file are the signature of.
pub(crate) fn signature(start: &[u8]) -> Option<&'static str> {
    SIGNATURES
        .iter()
        .find(|(offset, magic, _)| start.get(*offset..).is_some_and(|rest| rest.starts_with(magic)))
        .map(|(_, _, name)| *name)
}

/// The format of what is in `storage`: raw where nothing else is recognised; another format that is
/// recognised but not there is an error and never raw.
pub(crate) fn probe(storage: &dyn Storage) -> Result<FormatKind> {
    let mut start = [0; LEN];
    storage.readv_at(start.as_mut_slice().into(), 0)?;
    let Some(name) = signature(&start) else { return Ok(FormatKind::Raw) };
    FormatKind::from_name(name).ok_or_else(|| {
        let error = Error::unsupported(format!(
            "this is an image of the format {name}, which cannot be opened yet; give the format raw to open its bytes as they are"
        ));
        match storage.path() {
            Some(path) => error.in_file(path),
            None => error,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_told_apart() {
        assert_eq!(signature(b"QFI\xfb\0\0\0\x01...."), Some("qcow"));
        assert_eq!(signature(b"QFI\xfb\0\0\0\x03...."), Some("qcow2"));
        assert_eq!(signature(b"KDMV"), Some("vmdk"));
        assert_eq!(signature(b"KDM"), None);
        let mut vdi = [0; LEN];
        vdi[0x40..0x44].copy_from_slice(&0xbeda_107f_u32.to_le_bytes());
        assert_eq!(signature(&vdi), Some("vdi"));
        assert_eq!(signature(&[0; LEN]), None);
    }
}
