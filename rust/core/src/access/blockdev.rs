//! What QEMU's block device options describe, as an image names another one in full:
//! `json:{"driver": "qcow2", "file": {"driver": "file", "filename": "base.qcow2"}}`.
//!
//! All of a description is read before any of it is opened, and an option that nobody knows is an error: what is opened is what was
//! meant, or nothing. Who may open the files in it, the gate says.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::gate::protocol;
use crate::error::{Error, Result};
use crate::format::FormatKind;
use crate::storage::Identity;
use crate::storage::file::File;

/// What a name begins with that describes an image in full.
pub(super) const PREFIX: &str = "json:";

/// Trees within trees: each is opened by a call within a call.
const DEPTH_MAX: u32 = 64;

/// Options of every node that change nothing here: how QEMU goes about it, or what is the word of whoever opens the image and not of
/// what it names (locks, caches, secrets).
const WITHOUT_EFFECT: &[&str] =
    &["auto-read-only", "cache", "detect-zeroes", "discard", "force-share", "node-name", "read-only"];
/// The same of an image.
const WITHOUT_EFFECT_ON_IMAGES: &[&str] = &[
    "cache-clean-interval",
    "cache-size",
    "discard-no-unref",
    "encrypt",
    "key-secret",
    "l2-cache-entry-size",
    "l2-cache-size",
    "lazy-refcounts",
    "overlap-check",
    "pass-discard-other",
    "pass-discard-request",
    "pass-discard-snapshot",
    "refcount-cache-size",
];
/// The same of a file.
const WITHOUT_EFFECT_ON_FILES: &[&str] =
    &["aio", "aio-max-batch", "drop-cache", "locking", "x-check-cache-dropped"];

/// An image: what it is in, and what belongs to it.
#[derive(Debug)]
pub(super) struct Node {
    /// Its format; without one the first bytes decide.
    pub(super) kind: Option<FormatKind>,
    pub(super) place: Place,
    /// Where the guest's data is, instead of the data file that the image names.
    pub(super) data_file: Option<Place>,
    pub(super) below: Below,
}

/// What an image is in.
#[derive(Debug)]
pub(super) enum Place {
    File(PathBuf),
    /// So many bytes (`None`: all) from an offset on.
    Part {
        of: Box<Place>,
        offset: u64,
        size: Option<u64>,
    },
    /// The disk that another image holds.
    Disk(Box<Node>),
}

/// What is below an image.
#[derive(Debug)]
pub(super) enum Below {
    /// The backing file that it names, if it does.
    Named,
    /// Nothing, whatever it names.
    Nothing,
    Node(Box<Node>),
}

impl Node {
    /// The image in the file at `path`.
    pub(super) fn in_file(path: PathBuf, kind: Option<FormatKind>) -> Self {
        Node { kind, place: Place::File(path), data_file: None, below: Below::Named }
    }

    /// What `json`, the text behind `json:`, describes. `kind` is the format that the image has by the word of what names it, and goes
    /// before the one in the description.
    pub(super) fn parse(json: &str, kind: Option<FormatKind>) -> Result<Self> {
        Self::read(Tree::parse(json)?, kind)
    }

    fn read(mut tree: Tree, kind: Option<FormatKind>) -> Result<Self> {
        let driver = tree.driver()?;
        let kind = match (kind, &driver) {
            (None, Some(Driver::File)) => {
                let place = Place::file(tree)?;
                return Ok(Node {
                    kind: Some(FormatKind::Raw),
                    place,
                    data_file: None,
                    below: Below::Nothing,
                });
            }
            (None, Some(Driver::Format(kind))) => Some(*kind),
            (kind, _) => kind,
        };
        let Some(file) = tree.child("file")? else {
            return Err(tree.wrong("has no file: what the image is in"));
        };
        let mut place = Place::read(file)?;
        let (mut data_file, mut below) = (None, Below::Named);
        match kind {
            Some(FormatKind::Raw) => place = place.part(&mut tree)?,
            Some(FormatKind::Luks) => {}
            Some(FormatKind::Qcow2) | None => {
                data_file = tree.child("data-file")?.map(Place::read).transpose()?;
                below = tree.below()?;
            }
        }
        tree.end(WITHOUT_EFFECT_ON_IMAGES)?;
        Ok(Node { kind, place, data_file, below })
    }

    /// Every file that opening this opens by its own word.
    pub(super) fn files(&self) -> Vec<&Path> {
        let mut files = self.place.files();
        files.extend(self.data_file.iter().flat_map(Place::files));
        if let Below::Node(node) = &self.below {
            files.extend(node.files());
        }
        files
    }
}

impl Place {
    fn read(mut tree: Tree) -> Result<Self> {
        match tree.driver()? {
            None => {
                tree.check_protocol()?;
                Self::file(tree)
            }
            Some(Driver::File) => Self::file(tree),
            Some(Driver::Format(FormatKind::Raw)) => {
                let Some(file) = tree.child("file")? else {
                    return Err(tree.wrong("has no file: what it is a part of"));
                };
                let place = Self::read(file)?.part(&mut tree)?;
                tree.end(&[])?;
                Ok(place)
            }
            Some(Driver::Format(kind)) => Ok(Place::Disk(Box::new(Node::read(tree, Some(kind))?))),
        }
    }

    fn file(mut tree: Tree) -> Result<Self> {
        let Some(name) = tree.text("filename")? else {
            return Err(tree.wrong("has no filename"));
        };
        tree.end(WITHOUT_EFFECT_ON_FILES)?;
        Ok(Place::File(absolute(Path::new(&name))?))
    }

    /// The part of this that a tree says is meant.
    fn part(self, tree: &mut Tree) -> Result<Self> {
        Ok(match (tree.size("offset")?, tree.size("size")?) {
            (None, None) => self,
            (offset, size) => Place::Part { of: Box::new(self), offset: offset.unwrap_or(0), size },
        })
    }

    pub(super) fn files(&self) -> Vec<&Path> {
        match self {
            Place::File(path) => vec![path],
            Place::Part { of, .. } => of.files(),
            Place::Disk(node) => node.files(),
        }
    }

    /// What of which file this is, where it is one.
    pub(super) fn identity(&self) -> Option<Identity> {
        match self {
            Place::File(path) => File::identity_of(path),
            Place::Part { of, offset, size } => Some(of.identity()?.part(*offset, *size)),
            Place::Disk(_) => None,
        }
    }

    /// The file that this is, where it is a whole one.
    pub(super) fn as_file(&self) -> Option<&Path> {
        if let Place::File(path) = self { Some(path) } else { None }
    }
}

/// The file of that name; as for QEMU a relative one starts at the working directory, not where the image is.
fn absolute(name: &Path) -> Result<PathBuf> {
    std::path::absolute(name).map_err(|error| Error::io("find the working directory", error))
}

enum Driver {
    File,
    Format(FormatKind),
}

/// Options. One that was looked at is gone from them.
struct Tree {
    options: Map<String, Value>,
    /// The way to it, for messages.
    name: String,
    depth: u32,
}

impl Tree {
    fn parse(json: &str) -> Result<Self> {
        let options = match serde_json::from_str(&double_quoted(json)) {
            Ok(Value::Object(options)) => options,
            Ok(_) => return Err(Error::invalid_image("the description of an image is a JSON object")),
            Err(error) => {
                return Err(Error::invalid_image(format!(
                    "the description of an image cannot be read: {error}"
                )));
            }
        };
        Ok(Tree { options, name: String::new(), depth: 0 })
    }

    fn text_of(&self, what: &str) -> String {
        let name = if self.name.is_empty() { "it" } else { self.name.as_str() };
        format!("in the description of an image, {name} {what}")
    }

    #[cold]
    fn wrong(&self, what: &str) -> Error {
        Error::invalid_image(self.text_of(what))
    }

    fn driver(&mut self) -> Result<Option<Driver>> {
        let Some(name) = self.text("driver")? else { return Ok(None) };
        if matches!(name.as_str(), "file" | "host_device") {
            return Ok(Some(Driver::File));
        }
        match FormatKind::from_name(&name) {
            Some(kind) => Ok(Some(Driver::Format(kind))),
            None => {
                Err(Error::unsupported(self.text_of(&format!("has the driver {name:?}, which is not there"))))
            }
        }
    }

    fn text(&mut self, name: &str) -> Result<Option<String>> {
        match self.options.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(&format!("has as {name} no text but {other}"))),
        }
    }

    /// Where no driver is given, QEMU takes one by the protocol that the file's name begins with.
    fn check_protocol(&self) -> Result<()> {
        let name = self.options.get("filename").and_then(Value::as_str);
        match name.and_then(|name| protocol(Path::new(name))) {
            None => Ok(()),
            Some(protocol) => {
                let text = format!("has a filename with the protocol {protocol:?}, which is not there");
                Err(Error::unsupported(self.text_of(&text)))
            }
        }
    }

    /// A number of bytes; a text may have a suffix.
    fn size(&mut self, name: &str) -> Result<Option<u64>> {
        let Some(value) = self.options.remove(name) else { return Ok(None) };
        let size = match &value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => bytes(text),
            _ => None,
        };
        size.map(Some).ok_or_else(|| self.wrong(&format!("has as {name} no number of bytes but {value}")))
    }

    /// An option that has options of its own: as an object, or each with a dot in its name.
    fn child(&mut self, name: &str) -> Result<Option<Tree>> {
        let mut options = Map::new();
        let (own, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.options)
            .into_iter()
            .partition(|(key, _)| key.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')));
        self.options = rest.into_iter().collect();
        options.extend(own.into_iter().map(|(key, value)| (key[name.len() + 1..].to_owned(), value)));
        match self.options.remove(name) {
            None if options.is_empty() => return Ok(None),
            None => {}
            Some(Value::Object(object)) => {
                for (key, value) in object {
                    if options.insert(key.clone(), value).is_some() {
                        return Err(self.wrong(&format!("has {name}.{key} twice")));
                    }
                }
            }
            Some(other) => {
                return Err(self.wrong(&format!("has as {name} no description of what to open but {other}")));
            }
        }
        if self.depth == DEPTH_MAX {
            return Err(self.wrong(&format!("has more than {DEPTH_MAX} images within images")));
        }
        let name = if self.name.is_empty() { name.to_owned() } else { format!("{}.{name}", self.name) };
        Ok(Some(Tree { options, name, depth: self.depth + 1 }))
    }

    fn below(&mut self) -> Result<Below> {
        if self.options.get("backing").is_some_and(|backing| backing.is_null() || backing == "") {
            self.options.remove("backing");
            return Ok(Below::Nothing);
        }
        Ok(match self.child("backing")? {
            None => Below::Named,
            Some(tree) => Below::Node(Box::new(Node::read(tree, None)?)),
        })
    }

    /// Refuses what nobody has looked at.
    fn end(&self, without_effect: &[&str]) -> Result<()> {
        let known = |name: &str| {
            // Some have options of their own.
            let name = name.split('.').next().unwrap_or(name);
            WITHOUT_EFFECT.contains(&name) || without_effect.contains(&name)
        };
        match self.options.keys().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => Err(self.wrong(&format!("has an option that is not there: {name:?}"))),
        }
    }
}

/// A size as QEMU's options have it: digits, and a suffix for a power of 1,024.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let power = match &text[digits.len()..] {
        "" | "B" | "b" => 0,
        suffix => 1 + "kmgtpe".find(&suffix.to_ascii_lowercase()).filter(|_| suffix.len() == 1)? as u32,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << (10 * power))
}

/// The same JSON for everyone: QEMU takes single quotes, too, and records them as they came.
fn double_quoted(json: &str) -> Cow<'_, str> {
    if !json.contains('\'') {
        return Cow::Borrowed(json);
    }
    let mut text = String::with_capacity(json.len());
    let mut quote = None;
    let mut characters = json.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(_), '\\') => match characters.next() {
                Some('\'') => text.push('\''),
                next => {
                    text.push('\\');
                    text.extend(next);
                }
            },
            (None, '\'' | '"') => {
                quote = Some(character);
                text.push('"');
            }
            (Some(open), _) if open == character => {
                quote = None;
                text.push('"');
            }
            (Some('\''), '"') => text.push_str("\\\""),
            _ => text.push(character),
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn refused(json: &str) -> (ErrorKind, String) {
        let error = Node::parse(json, None).unwrap_err();
        (error.kind(), error.to_string())
    }

    #[test]
    fn a_description_says_what_is_opened() {
        let node = Node::parse(r#"{"driver": "qcow2", "file": {"driver": "file", "filename": "/a"}}"#, None)
            .unwrap();
        assert_eq!((node.kind, node.place.as_file()), (Some(FormatKind::Qcow2), Some(Path::new("/a"))));
        assert!(matches!((node.data_file, node.below), (None, Below::Named)));
        let same = Node::parse(r"{'driver': 'qcow2', 'file.filename': '/a\'b', 'file.locking': 'off'}", None)
            .unwrap();
        assert_eq!((same.kind, same.place.as_file()), (Some(FormatKind::Qcow2), Some(Path::new("/a'b"))));
        let file = Node::parse(r#"{"driver": "file", "filename": "/a:b"}"#, None).unwrap();
        assert_eq!((file.kind, file.place.as_file()), (Some(FormatKind::Raw), Some(Path::new("/a:b"))));
        assert!(Node::parse(r#"{"file": {"filename": "/a"}}"#, None).unwrap().kind.is_none());
    }

    #[test]
    fn whoever_names_an_image_has_the_word_on_its_format() {
        let json = r#"{"driver": "qcow2", "file.filename": "/a"}"#;
        assert_eq!(Node::parse(json, Some(FormatKind::Raw)).unwrap().kind, Some(FormatKind::Raw));
    }

    #[test]
    fn parts_and_images_within_images_are_places() {
        let json = r#"{"driver": "raw", "offset": "1k", "size": 512, "file": {"driver": "qcow2", "file": {"filename": "/a"}, "backing": null}}"#;
        let Place::Part { of, offset: 1024, size: Some(512) } = Node::parse(json, None).unwrap().place else {
            panic!("no part");
        };
        let Place::Disk(inner) = *of else { panic!("no disk") };
        assert!(matches!(inner.below, Below::Nothing));
        let json = r#"{"driver": "qcow2", "file": {"driver": "raw", "offset": 7, "file.filename": "/a"},
            "data-file": {"driver": "file", "filename": "/b"}, "backing.driver": "raw", "backing": {"file": {"filename": "/c"}}}"#;
        let node = Node::parse(json, None).unwrap();
        assert_eq!(node.files(), [Path::new("/a"), Path::new("/b"), Path::new("/c")]);
    }

    #[test]
    fn relative_names_start_at_the_working_directory() {
        let node = Node::parse(r#"{"file": {"filename": "a/b"}}"#, None).unwrap();
        assert_eq!(node.place.as_file(), Some(std::env::current_dir().unwrap().join("a/b").as_path()));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for json in [
            "",
            "[]",
            "{",
            r#"{"driver": "qcow2"}"#,
            r#"{"driver": 1}"#,
            r#"{"file": "node"}"#,
            r#"{"file": {"driver": "file"}}"#,
            r#"{"file": {"filename": "/a"}, "file.filename": "/b"}"#,
            r#"{"file.filename": "/a", "new": 1}"#,
            r#"{"driver": "qcow2", "file.filename": "/a", "offset": 1}"#,
            r#"{"driver": "raw", "file.filename": "/a", "offset": -1}"#,
            r#"{"driver": "raw", "file.filename": "/a", "offset": "1x"}"#,
            r#"{"driver": "raw", "file.filename": "/a", "size": "18014398509481984k"}"#,
            r#"{"driver": "raw", "file.filename": "/a", "backing": {"file.filename": "/b"}}"#,
            r#"{"file": {"filename": "/a", "server": "b"}}"#,
        ] {
            let (kind, text) = refused(json);
            assert_eq!(kind, ErrorKind::InvalidImage, "{json}: {text}");
        }
        for json in [
            r#"{"driver": "nbd", "host": "a"}"#,
            r#"{"file": {"filename": "nbd://host"}}"#,
            r#"{"file": {"driver": "https", "url": "a"}}"#,
        ] {
            assert_eq!(refused(json).0, ErrorKind::Unsupported, "{json}");
        }
    }

    #[test]
    fn trees_within_trees_have_a_bound() {
        for json in [
            format!("{{\"{}filename\": \"a\"}}", "file.".repeat(100_000)),
            format!("{}1{}", "{\"file\":".repeat(100_000), "}".repeat(100_000)),
        ] {
            assert_eq!(refused(&json).0, ErrorKind::InvalidImage);
        }
        // Drivers all the way down.
        let mut json = r#"{"filename": "/a"}"#.to_owned();
        for _ in 0..100 {
            json = format!(r#"{{"driver": "raw", "file": {json}}}"#);
        }
        let (kind, text) = refused(&json);
        assert_eq!(kind, ErrorKind::InvalidImage);
        assert!(text.contains("more than 64"), "{text}");
    }
}
