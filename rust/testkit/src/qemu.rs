//! QEMU's tools as a peer. Every call panics with what the tool said when it fails: callers are tests.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::model::{Bitmap, View};
use crate::qcow2::Qcow2;

/// Whether `qemu-img` and `qemu-io` are there.
pub fn have_qemu() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        ["qemu-img", "qemu-io"].iter().all(|tool| Command::new(tool).arg("--version").output().is_ok())
    })
}

/// `have_qemu`, and a line that names the test that does without when it is not there.
#[track_caller]
pub fn qemu_or_skip() -> bool {
    let found = have_qemu();
    if !found {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        eprintln!("skipped: {test}: qemu-img or qemu-io is not installed");
    }
    found
}

/// Runs the tool in the folder of its last argument: QEMU looks for a relative data file in the current one.
fn run(tool: &str, args: &[&OsStr]) -> Output {
    let folder = args.last().and_then(|path| Path::new(path).parent()).filter(|folder| folder.is_dir());
    let mut command = Command::new(tool);
    command.args(args).current_dir(folder.unwrap_or(Path::new(".")));
    command.output().unwrap_or_else(|e| panic!("{tool}: {e}"))
}

#[track_caller]
fn succeed(tool: &str, args: &[&OsStr]) -> String {
    let output = run(tool, args);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{tool} {args:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

/// Runs `qemu-img` with these arguments and returns what it printed.
#[track_caller]
pub fn img<S: AsRef<OsStr>>(args: &[S]) -> String {
    succeed("qemu-img", &args.iter().map(AsRef::as_ref).collect::<Vec<_>>())
}

/// Creates a qcow2 image of `size` bytes with options as `-o` takes them (`""`: none).
#[track_caller]
pub fn create(path: &Path, size: u64, options: &str) {
    let size = size.to_string();
    let mut args: Vec<&OsStr> = vec!["create".as_ref(), "-q".as_ref(), "-f".as_ref(), "qcow2".as_ref()];
    if !options.is_empty() {
        args.extend([OsStr::new("-o"), options.as_ref()]);
    }
    args.extend([path.as_os_str(), size.as_ref()]);
    succeed("qemu-img", &args);
}

/// Runs `qemu-io` commands (`write -P 7 0 64k`, ...) on an image in one process.
#[track_caller]
pub fn io<S: AsRef<str>>(path: &Path, format: &str, commands: &[S]) -> String {
    let mut args: Vec<&OsStr> = vec!["-f".as_ref(), format.as_ref(), "-d".as_ref(), "unmap".as_ref()];
    for command in commands {
        args.extend([OsStr::new("-c"), command.as_ref().as_ref()]);
    }
    args.push(path.as_os_str());
    let said = succeed("qemu-io", &args);
    assert!(!said.contains("verification failed") && !said.contains("failed:"), "{said}");
    said
}

/// What `qemu-img check` finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Clean,
    /// Leaked clusters only.
    Leaks,
    /// Worse.
    Corrupt,
}

/// `qemu-img check`, which changes nothing.
#[track_caller]
pub fn check(path: &Path) -> (Verdict, String) {
    let output = run("qemu-img", &["check".as_ref(), "-f".as_ref(), "qcow2".as_ref(), path.as_os_str()]);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let verdict = match output.status.code() {
        Some(0) => Verdict::Clean,
        Some(3) => Verdict::Leaks,
        _ => Verdict::Corrupt,
    };
    (verdict, said.into_owned())
}

/// The numbers of `qemu-img check --output=json`, with `-r` `leaks` or `all` where `repair` says so; those that are left out are 0.
/// `None` where it prints no document, since the check itself failed.
#[track_caller]
pub fn check_numbers(path: &Path, repair: Option<&str>) -> Option<BTreeMap<String, u64>> {
    let mut args: Vec<&OsStr> = ["check", "-f", "qcow2", "--output=json"].map(OsStr::new).to_vec();
    if let Some(repair) = repair {
        args.extend(["-r".as_ref(), OsStr::new(repair)]);
    }
    args.push(path.as_os_str());
    let output = run("qemu-img", &args);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers = said.lines().filter_map(|line| {
        let (name, number) = line.trim().trim_end_matches(',').split_once(": ")?;
        Some((name.trim_matches('"').to_owned(), number.parse().ok()?))
    });
    said.contains("check-errors").then(|| numbers.collect())
}

/// # Panics
/// When `qemu-img check` finds anything.
#[track_caller]
pub fn assert_clean(path: &Path) {
    let (verdict, said) = check(path);
    assert_eq!(verdict, Verdict::Clean, "qemu-img check {}: {said}", path.display());
}

/// What the guest sees, as `qemu-img convert` has it.
#[track_caller]
pub fn content(path: &Path) -> Vec<u8> {
    convert_to_raw(path, &[])
}

/// What the guest saw at the time of a snapshot.
#[track_caller]
pub fn snapshot_content(path: &Path, snapshot: &str) -> Vec<u8> {
    convert_to_raw(path, &["-l", snapshot])
}

/// What the image shows, as `qemu-img convert` has it; only the names of the snapshots, and the bitmaps, are the oracle's.
#[track_caller]
pub fn view(path: &Path) -> View {
    let bytes = std::fs::read(path).expect("an image");
    let image = Qcow2::parse(&bytes).expect("an image");
    let names = image.snapshots.iter().map(|snapshot| &snapshot.name);
    View {
        disk: content(path),
        snapshots: names.map(|name| (name.clone(), snapshot_content(path, name).into())).collect(),
        bitmaps: Bitmap::all_of(&image).expect("bitmaps"),
    }
}

#[track_caller]
fn convert_to_raw(path: &Path, more: &[&str]) -> Vec<u8> {
    let folder = path.parent().expect("an image is in a folder");
    let raw = tempfile::NamedTempFile::new_in(folder).expect("a temporary file");
    let mut args: Vec<&OsStr> = ["convert", "-f", "qcow2", "-O", "raw"].map(OsStr::new).to_vec();
    args.extend(more.iter().map(OsStr::new));
    args.extend([path.as_os_str(), raw.path().as_os_str()]);
    succeed("qemu-img", &args);
    std::fs::read(raw.path()).expect("what qemu-img wrote")
}

/// An encrypted image of format `luks` or `qcow2`, and what opens it.
#[derive(Clone, Copy, Debug)]
pub struct Encrypted<'a> {
    /// Its file.
    pub path: &'a Path,
    /// `luks`, or `qcow2` with LUKS or AES inside.
    pub format: &'a str,
    /// The passphrase; text without commas.
    pub secret: &'a str,
}

impl Encrypted<'_> {
    /// What QEMU puts before the options of encryption.
    fn prefix(&self) -> &'static str {
        if self.format == "qcow2" { "encrypt." } else { "" }
    }

    fn secret(&self) -> String {
        format!("secret,id=s,data={}", self.secret)
    }

    fn node(&self) -> String {
        let (format, prefix) = (self.format, self.prefix());
        format!("driver={format},{prefix}key-secret=s,file.filename={}", self.path.display())
    }

    /// Creates it; `options` are those of encryption, without prefix. QEMU takes a second or so to count iterations.
    #[track_caller]
    pub fn create(&self, size: u64, options: &[&str]) {
        let prefix = self.prefix();
        let mut all = vec![format!("{prefix}key-secret=s")];
        all.extend(options.iter().map(|option| format!("{prefix}{option}")));
        let (secret, all, size) = (self.secret(), all.join(","), size.to_string());
        let path = self.path.to_str().expect("text");
        img(&["create", "-q", "-f", self.format, "--object", &secret, "-o", &all, path, &size]);
    }

    /// As [`io`].
    #[track_caller]
    pub fn io<S: AsRef<str>>(&self, commands: &[S]) -> String {
        let (secret, node) = (self.secret(), self.node());
        let mut args: Vec<&OsStr> = vec!["--object".as_ref(), secret.as_ref(), "--image-opts".as_ref()];
        for command in commands {
            args.extend([OsStr::new("-c"), command.as_ref().as_ref()]);
        }
        args.push(node.as_ref());
        let said = succeed("qemu-io", &args);
        assert!(!said.contains("verification failed") && !said.contains("failed:"), "{said}");
        said
    }

    /// Whether QEMU opens it with the secret.
    pub fn opens(&self) -> bool {
        let (secret, node) = (self.secret(), self.node());
        let args = ["--object", &secret, "--image-opts", "-r", "-c", "read 0 512", &node];
        run("qemu-io", &args.map(OsStr::new)).status.success()
    }

    /// # Panics
    /// When `qemu-img check` finds anything.
    #[track_caller]
    pub fn assert_clean(&self) {
        img(&["check", "-q", "--object", &self.secret(), "--image-opts", &self.node()]);
    }

    /// What the guest sees, as `qemu-img convert` has it.
    #[track_caller]
    pub fn content(&self) -> Vec<u8> {
        let folder = self.path.parent().expect("an image is in a folder");
        let raw = tempfile::NamedTempFile::new_in(folder).expect("a temporary file");
        let (secret, node) = (self.secret(), self.node());
        let path = raw.path().to_str().expect("text");
        img(&["convert", "--object", &secret, "--image-opts", "-O", "raw", &node, path]);
        std::fs::read(raw.path()).expect("what qemu-img wrote")
    }
}
