//! Which of the files that an image names may be opened for it.
//!
//! An image is untrusted bytes, and a name in it could be any file that this process may read. So every name passes
//! here before anything is done with it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};

/// What an image wants another file for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReferenceKind {
    /// What is below it.
    Backing,
    /// The guest's data.
    DataFile,
}

impl fmt::Display for ReferenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReferenceKind::Backing => "backing file",
            ReferenceKind::DataFile => "data file",
        })
    }
}

/// A function that decides: it gets the file's name (a relative one made part of the image's directory; the name of a
/// protocol as it stands) and what it is for.
pub type Ask = dyn Fn(&Path, ReferenceKind) -> Result<bool> + Send + Sync;

/// Who decides whether a file that an image names is opened.
#[derive(Clone, Default)]
pub enum Gate {
    /// Files beside or below the image's own directory, and never through a symbolic link out of it.
    #[default]
    Beside,
    /// No file at all.
    Deny,
    /// Any file; still no protocols.
    Allow,
    /// A function.
    Ask(Arc<Ask>),
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Gate::Beside => "Beside",
            Gate::Deny => "Deny",
            Gate::Allow => "Allow",
            Gate::Ask(_) => "Ask",
        })
    }
}

impl Gate {
    /// The file to open for `name`, as the image in `image` spells it, or [`ErrorKind::ImplicitOpenDenied`].
    pub fn pass(&self, image: Option<&Path>, name: &Path, kind: ReferenceKind) -> Result<PathBuf> {
        let shown = name.to_string_lossy();
        let denied = |why: &str| {
            let error = Error::new(
                ErrorKind::ImplicitOpenDenied,
                format!(
                    "the {kind} {shown:?} is not opened: {why}; if you trust the image, allow it or open the {kind} yourself"
                ),
            );
            match image {
                Some(image) => error.in_file(image),
                None => error,
            }
        };
        if matches!(self, Gate::Deny) {
            return Err(denied("implicit references are denied"));
        }
        if let Some(protocol) = protocol(name) {
            let asked = if let Gate::Ask(ask) = self { ask(name, kind)? } else { false };
            if !asked {
                return Err(denied(&format!("it names the protocol {protocol:?}")));
            }
            return Err(Error::unsupported(format!(
                "the {kind} {shown:?} needs the protocol {protocol:?}, which is not there"
            )));
        }
        let directory = image.map(directory_of);
        if directory.is_none() && !name.is_absolute() {
            return Err(denied("the image is in no directory that its name could start from"));
        }
        let file = resolve_beside(image, name);
        match self {
            Gate::Deny => unreachable!("turned away above"),
            Gate::Allow => Ok(file),
            Gate::Ask(ask) if ask(&file, kind)? => Ok(file),
            Gate::Ask(_) => Err(denied("it was refused")),
            Gate::Beside => {
                let Some(directory) = directory else {
                    return Err(denied("the image is in no directory that it could be beside"));
                };
                let resolve = |path: &Path| {
                    path.canonicalize().map_err(|e| Error::io(format!("find the {kind}"), e).in_file(path))
                };
                let (inside, file) = (resolve(directory)?, resolve(&file)?);
                // The resolved name is what gets opened: links on the way are not followed a second time. Who puts a new one in place of
                // a directory at this very moment may write beside the image anyway.
                if file.starts_with(inside) {
                    Ok(file)
                } else {
                    Err(denied("it is outside of the image's directory"))
                }
            }
        }
    }
}

/// The file that an image in `image` means by `name`: a relative one starts at its directory.
pub(super) fn resolve_beside(image: Option<&Path>, name: &Path) -> PathBuf {
    image.map_or_else(|| name.to_owned(), |image| directory_of(image).join(name))
}

fn directory_of(image: &Path) -> &Path {
    match image.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The protocol that QEMU would take a name for: what stands before a colon that comes before any slash.
pub(super) fn protocol(name: &Path) -> Option<String> {
    let bytes = name.as_os_str().as_encoded_bytes();
    let end = bytes.iter().position(|byte| matches!(byte, b':' | b'/'))?;
    (bytes[end] == b':').then(|| String::from_utf8_lossy(&bytes[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn kind_of(gate: &Gate, image: Option<&Path>, name: &str) -> Option<ErrorKind> {
        gate.pass(image, Path::new(name), ReferenceKind::Backing).err().map(|error| error.kind())
    }

    #[test]
    fn beside_and_below_pass_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("images");
        fs::create_dir_all(own.join("below")).unwrap();
        for name in ["outside", "images/beside", "images/below/it", "images/top"] {
            fs::write(directory.path().join(name), b"").unwrap();
        }
        std::os::unix::fs::symlink("../outside", own.join("link")).unwrap();
        std::os::unix::fs::symlink("..", own.join("up")).unwrap();
        std::os::unix::fs::symlink("beside", own.join("inner")).unwrap();
        let image = own.join("top");
        let gate = Gate::default();
        let absolute = own.join("beside");
        for name in ["beside", "below/it", "./below/../beside", "inner", absolute.to_str().unwrap()] {
            assert_eq!(kind_of(&gate, Some(&image), name), None, "{name}");
        }
        let outside = directory.path().join("outside");
        for name in ["../outside", "link", "up/outside", outside.to_str().unwrap(), "/etc/passwd"] {
            assert_eq!(kind_of(&gate, Some(&image), name), Some(ErrorKind::ImplicitOpenDenied), "{name}");
            assert_eq!(kind_of(&Gate::Allow, Some(&image), name), None, "{name}");
            assert_eq!(kind_of(&Gate::Deny, Some(&image), name), Some(ErrorKind::ImplicitOpenDenied));
        }
        assert_eq!(kind_of(&gate, Some(&image), "missing"), Some(ErrorKind::Io));
    }

    #[test]
    fn protocols_never_pass() {
        let image = Path::new("/images/top");
        for name in ["json:{\"driver\":\"file\"}", "nbd:unix:/x", "http://host/x", "file:beside", ":x"] {
            for gate in [Gate::Beside, Gate::Allow] {
                assert_eq!(kind_of(&gate, Some(image), name), Some(ErrorKind::ImplicitOpenDenied), "{name}");
            }
            let ask = Gate::Ask(Arc::new(|_, _| Ok(true)));
            assert_eq!(kind_of(&ask, Some(image), name), Some(ErrorKind::Unsupported));
        }
        assert_eq!(protocol(Path::new("a/b:c")), None);
        assert_eq!(protocol(Path::new("/a:b")), None);
    }

    #[test]
    fn the_function_gets_the_whole_name() {
        let gate = Gate::Ask(Arc::new(|path, kind| {
            Ok(path == Path::new("/images/base.raw") && kind == ReferenceKind::Backing)
        }));
        let image = Path::new("/images/top");
        assert_eq!(
            gate.pass(Some(image), Path::new("base.raw"), ReferenceKind::Backing).unwrap(),
            Path::new("/images/base.raw")
        );
        let refused = gate.pass(Some(image), Path::new("base.raw"), ReferenceKind::DataFile).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ImplicitOpenDenied);
        assert!(refused.to_string().contains("data file \"base.raw\""), "{refused}");
    }

    #[test]
    fn an_image_in_no_file_has_no_directory() {
        assert_eq!(kind_of(&Gate::Beside, None, "base"), Some(ErrorKind::ImplicitOpenDenied));
        assert_eq!(kind_of(&Gate::Allow, None, "base"), Some(ErrorKind::ImplicitOpenDenied));
        assert_eq!(kind_of(&Gate::Allow, None, "/base"), None);
    }
}
