//! Which of the files that an image names may be opened for it.
//!
//! An image is untrusted bytes, and a name in it could be any file that this process may read. So every name passes
//! here before anything is done with it.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blockdev::{self, Node};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{FormatKind, ImplicitReference};

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

/// A function that decides: it gets the file's name (a relative one made part of the image's directory) and what it is for. Of a backing
/// file's name with a protocol (but `file:`) it gets that as it stands, and after a yes each file that is behind it.
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
    /// What to open as the backing file of the image in `image`, or [`ErrorKind::ImplicitOpenDenied`].
    pub(super) fn backing(&self, image: Option<&Path>, reference: &ImplicitReference) -> Result<Node> {
        let ImplicitReference { name, format } = reference;
        let kind = match format.as_deref() {
            None => None,
            Some(name) => Some(FormatKind::from_name(name).ok_or_else(|| {
                Error::unsupported(format!(
                    "its format is {name:?} by the image's word, which cannot be opened yet"
                ))
            })?),
        };
        let asked = Asked { gate: self, image, name, kind: ReferenceKind::Backing };
        let Some(protocol) = protocol(name) else { return Ok(Node::in_file(asked.pass_file()?, kind)) };
        if let Some(file) = after_file_protocol(name) {
            // As for QEMU, a name with a protocol does not start at the image's directory.
            let file = std::path::absolute(&file).map_err(|e| Error::io("find", e).in_file(file))?;
            return Ok(Node::in_file(Asked { name: &file, ..asked }.pass_file()?, kind));
        }
        // A name with a protocol is nothing but a function's to allow.
        let Gate::Ask(ask) = self else {
            return Err(asked.denied(name, &format!("it names the protocol {protocol:?}")));
        };
        asked.pass_by(&**ask, name)?;
        let Some(json) = name.to_str().and_then(|name| name.strip_prefix(blockdev::PREFIX)) else {
            let name = name.to_string_lossy();
            return Err(Error::unsupported(format!(
                "the backing file {name:?} needs the protocol {protocol:?}, which is not there"
            )));
        };
        let node = Node::parse(json, kind)?;
        node.files().into_iter().try_for_each(|file| asked.pass_by(&**ask, file))?;
        Ok(node)
    }

    /// What a caller means who is going to have the image in `image` name its backing file so: nobody is asked.
    pub(super) fn by_the_caller(image: Option<&Path>, reference: &ImplicitReference) -> Result<Node> {
        Gate::Ask(Arc::new(|_, _| Ok(true))).backing(image, reference)
    }

    /// The file to open as its external data file. As for QEMU, no name of one has a protocol.
    pub(super) fn data_file(&self, image: Option<&Path>, name: &Path) -> Result<PathBuf> {
        Asked { gate: self, image, name, kind: ReferenceKind::DataFile }.pass_file()
    }
}

/// A name at the gate.
struct Asked<'a> {
    gate: &'a Gate,
    /// The image's file.
    image: Option<&'a Path>,
    /// As the image spells it.
    name: &'a Path,
    kind: ReferenceKind,
}

impl Asked<'_> {
    /// The file that the name means.
    fn pass_file(&self) -> Result<PathBuf> {
        let &Asked { gate, image, name, kind } = self;
        let directory = image.map(directory_of);
        if directory.is_none() && !name.is_absolute() {
            return Err(self.denied(name, "the image is in no directory that its name could start from"));
        }
        let file = resolve_beside(image, name);
        match gate {
            Gate::Deny => Err(self.denied(name, "implicit references are denied")),
            Gate::Allow => Ok(file),
            Gate::Ask(ask) if ask(&file, kind)? => Ok(file),
            Gate::Ask(_) => Err(self.denied(name, "it was refused")),
            Gate::Beside => {
                let Some(directory) = directory else {
                    return Err(self.denied(name, "the image is in no directory that it could be beside"));
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
                    Err(self.denied(name, "it is outside of the image's directory"))
                }
            }
        }
    }

    fn pass_by(&self, ask: &Ask, name: &Path) -> Result<()> {
        if ask(name, self.kind)? { Ok(()) } else { Err(self.denied(name, "it was refused")) }
    }

    #[cold]
    fn denied(&self, name: &Path, why: &str) -> Error {
        let (kind, name) = (self.kind, name.to_string_lossy());
        let error = Error::new(
            ErrorKind::ImplicitOpenDenied,
            format!(
                "the {kind} {name:?} is not opened: {why}; if you trust the image, allow it or open the {kind} yourself"
            ),
        );
        match self.image {
            Some(image) => error.in_file(image),
            None => error,
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

/// The file that a name with the protocol of files means.
fn after_file_protocol(name: &Path) -> Option<PathBuf> {
    let rest = name.as_os_str().as_bytes().strip_prefix(b"file:")?;
    Some(OsStr::from_bytes(rest).into())
}

/// Spells a caller's name of a backing file so that every reader takes it for what it is: a description, or else a file.
pub(super) fn name_as_meant(reference: &mut ImplicitReference) {
    if !reference.name.as_os_str().as_encoded_bytes().starts_with(blockdev::PREFIX.as_bytes()) {
        reference.name = as_file(std::mem::take(&mut reference.name));
    }
}

/// The name of a file so that nobody takes it for a protocol's.
pub(super) fn as_file(name: PathBuf) -> PathBuf {
    if protocol(&name).is_some() { Path::new(".").join(name) } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn backing(gate: &Gate, image: Option<&Path>, name: &str) -> Result<Node> {
        gate.backing(image, &ImplicitReference { name: name.into(), format: None })
    }

    fn kind_of(gate: &Gate, image: Option<&Path>, name: &str) -> Option<ErrorKind> {
        backing(gate, image, name).err().map(|error| error.kind())
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
    fn protocols_pass_by_a_functions_word_only() {
        let image = Path::new("/images/top");
        let json = r#"json:{"driver": "raw", "file": {"filename": "/base"}}"#;
        for name in [json, "nbd:unix:/x", "http://host/x", "files:beside", ":x"] {
            for gate in [Gate::Beside, Gate::Allow, Gate::Deny, Gate::Ask(Arc::new(|_, _| Ok(false)))] {
                assert_eq!(kind_of(&gate, Some(image), name), Some(ErrorKind::ImplicitOpenDenied), "{name}");
            }
            let ask = Gate::Ask(Arc::new(|_, _| Ok(true)));
            let expected = (name != json).then_some(ErrorKind::Unsupported);
            assert_eq!(kind_of(&ask, Some(image), name), expected, "{name}");
        }
        assert_eq!(protocol(Path::new("a/b:c")), None);
        assert_eq!(protocol(Path::new("/a:b")), None);
    }

    #[test]
    fn a_name_with_the_protocol_of_files_is_a_files() {
        let directory = tempfile::tempdir().unwrap();
        let (image, base) = (directory.path().join("top"), directory.path().join("base"));
        fs::write(&base, b"").unwrap();
        let name = format!("file:{}", base.display());
        for gate in [Gate::Beside, Gate::Allow, Gate::Ask(Arc::new(move |file, _| Ok(file == base)))] {
            assert_eq!(kind_of(&gate, Some(&image), &name), None);
        }
        assert_eq!(kind_of(&Gate::Deny, Some(&image), &name), Some(ErrorKind::ImplicitOpenDenied));
        for outside in ["file:/etc/passwd", "file:gate.rs"] {
            let expected = Some(ErrorKind::ImplicitOpenDenied);
            assert_eq!(kind_of(&Gate::Deny, Some(&image), outside), expected);
            assert_ne!(kind_of(&Gate::Beside, Some(&image), outside), None);
        }
        let here = std::env::current_dir().unwrap().join("base");
        let passed = backing(&Gate::Allow, Some(&image), "file:base").unwrap();
        assert_eq!(passed.place.as_file(), Some(here.as_path()));
    }

    #[test]
    fn every_file_of_a_description_is_asked_for() {
        let json = r#"json:{"driver": "qcow2", "file.filename": "/a", "backing": {"file.filename": "/b"}}"#;
        let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
        let all_but = |no: &'static str| {
            let asked = Arc::clone(&asked);
            Gate::Ask(Arc::new(move |name, kind| {
                assert_eq!(kind, ReferenceKind::Backing);
                asked.lock().unwrap().push(name.to_owned());
                Ok(name != Path::new(no))
            }))
        };
        backing(&all_but(""), None, json).unwrap();
        assert_eq!(asked.lock().unwrap().as_slice(), [json, "/a", "/b"].map(PathBuf::from));
        for no in ["/a", "/b"] {
            let error = backing(&all_but(no), None, json).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ImplicitOpenDenied);
            assert!(error.to_string().contains(no), "{error}");
        }
    }

    #[test]
    fn the_function_gets_the_whole_name() {
        let gate = Gate::Ask(Arc::new(|path, kind| {
            Ok(path == Path::new("/images/base.raw") && kind == ReferenceKind::Backing)
        }));
        let image = Path::new("/images/top");
        let passed = backing(&gate, Some(image), "base.raw").unwrap();
        assert_eq!(passed.place.as_file(), Some(Path::new("/images/base.raw")));
        let refused = gate.data_file(Some(image), Path::new("base.raw")).unwrap_err();
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
