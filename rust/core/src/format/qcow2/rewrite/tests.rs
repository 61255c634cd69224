use imago_testkit::rng::Rng;
use imago_testkit::sim::{CrashImage, Failing, SimStorage};
use zerocopy::{FromBytes, FromZeros};

use super::*;
use crate::error::ErrorKind;
use crate::ondisk::RawFeatureName;
use crate::storage::memory::Memory;
use crate::storage::simulated::Simulated;

/// What an image says of itself, wherever in the cluster that stands.
#[derive(Clone, Debug, PartialEq)]
struct Said {
    header: String,
    fields: Vec<u8>,
    unknown_fields: Vec<u8>,
    extensions: Vec<Extension>,
    backing_name: Vec<u8>,
}

fn said(bytes: &[u8]) -> Result<Said> {
    let memory = Memory::from(bytes.to_vec());
    let area = HeaderArea::read(&memory)?;
    let mut raw = area.raw;
    (raw.header_length, raw.backing_name_offset) = (0.into(), 0.into());
    Ok(Said {
        header: format!("{:?}", Header::read(&memory)?),
        fields: raw.as_bytes().to_vec(),
        unknown_fields: area.unknown_fields,
        extensions: area.extensions,
        backing_name: area.backing_name,
    })
}

impl Said {
    /// A detour's header skips what lies behind the fields: those bytes count as fields that nobody knows.
    fn is(&self, other: &Said) -> bool {
        let mut this = self.clone();
        if this.unknown_fields.len() > other.unknown_fields.len() {
            this.unknown_fields.truncate(other.unknown_fields.len());
        }
        this == *other
    }
}

/// The shape of a header; what it says is made up from the rest.
#[derive(Clone, Debug)]
struct Shape {
    version: u32,
    cluster_bits: u32,
    header_length: usize,
    unknown: Vec<usize>,
    name: usize,
    format: Option<&'static str>,
}

fn image(shape: &Shape, rng: &mut Rng) -> Option<Vec<u8>> {
    let mut raw = RawHeader::new_zeroed();
    let cluster = 1_usize << shape.cluster_bits;
    raw.magic = header::MAGIC.into();
    raw.version = shape.version.into();
    raw.cluster_bits = shape.cluster_bits.into();
    raw.refcount_table_offset = (cluster as u64).into();
    raw.refcount_table_clusters = 1.into();
    raw.refcount_order = 4.into();
    let mut extensions: Vec<Extension> = Vec::new();
    if let Some(format) = shape.format {
        extensions.push(Extension { kind: extensions::BACKING_FORMAT, data: format.into() });
    }
    for (index, len) in shape.unknown.iter().enumerate() {
        let mut data = vec![0; *len];
        rng.fill(&mut data);
        extensions.push(Extension { kind: 0x7000_0000 + index as u32, data });
    }
    let area = extensions::to_bytes(&extensions);
    let start = if shape.version == 2 { 72 } else { shape.header_length };
    if shape.version == 3 {
        raw.header_length = (start as u32).into();
        raw.compatible = (1 << 40).into();
        raw.autoclear = (1 << 50).into();
    }
    raw.backing_name_offset = if shape.name == 0 { 0 } else { (start + area.len()) as u64 }.into();
    raw.backing_name_len = (shape.name as u32).into();
    let mut bytes = raw.as_bytes()[..start.min(112)].to_vec();
    for _ in bytes.len()..start {
        bytes.push(1 + rng.below(255) as u8);
    }
    bytes.extend(area);
    bytes.extend((0..shape.name).map(|_| b'a' + rng.below(26) as u8));
    if bytes.len() > cluster {
        return None;
    }
    bytes.resize(3 * cluster, 0);
    Some(bytes)
}

fn shape(rng: &mut Rng) -> Shape {
    let cluster_bits = 9 + rng.below(8) as u32;
    let unknown = (0..rng.below(3)).map(|_| rng.below(700) as usize).collect();
    Shape {
        version: 2 + rng.below(2) as u32,
        cluster_bits,
        header_length: [104, 112, 120, 640][rng.below(4) as usize],
        unknown,
        name: [0, 1, 30, 300, 700, 1023][rng.below(6) as usize],
        format: [None, Some("qcow2"), Some("raw")][rng.below(3) as usize],
    }
}

/// Changes one to three things.
fn change(area: &mut HeaderArea, rng: &mut Rng) {
    for _ in 0..=rng.below(3) {
        match rng.below(6) {
            0 => area.set_backing(b"", None),
            1 => {
                let name = vec![b'A' + rng.below(26) as u8; 1 + rng.below(1023) as usize];
                area.set_backing(&name, [None, Some("vmdk")][rng.below(2) as usize]);
            }
            2 => area.set_extension(0x7000_0000, None),
            3 => area.set_extension(0x7100_0000, Some(vec![rng.below(256) as u8; rng.below(900) as usize])),
            4 => area.set_extension(0x7000_0001, Some(vec![7; rng.below(300) as usize])),
            _ => area.raw.size = 0.into(),
        }
    }
    if area.raw.version.get() == 2 && rng.below(4) == 0 {
        area.raw.version = 3.into();
    } else if area.raw.version.get() == 3 && rng.below(4) == 0 {
        area.raw.version = 2.into();
        (area.raw.compatible, area.raw.autoclear) = (0.into(), 0.into());
        area.unknown_fields.clear();
    }
}

fn crash_images(storage: &Simulated, seed: u64) -> impl Iterator<Item = CrashImage> + use<> {
    storage.0.crash_images(seed, 48)
}

/// Whether a crash image is the old header or the new one, or, going down to version 2, the new one with version 3.
fn is_old_or_new(image: &CrashImage, old: &Said, new: &Said, returned: u64, down: bool) -> bool {
    match said(&image.media[0]) {
        Ok(found) if image.epoch >= returned => found == *new,
        Ok(mut found) => {
            if down && !found.is(old) {
                let raw = RawHeader::mut_from_bytes(&mut found.fields).unwrap();
                raw.version = 2.into();
                found.header = found.header.replace("version: 3", "version: 2");
            }
            found.is(old) || found.is(new)
        }
        Err(_) => false,
    }
}

#[test]
fn every_crash_leaves_the_old_or_the_new_header() {
    let mut routes = [0; 4];
    for seed in 0..imago_testkit::scaled(400) {
        let mut rng = Rng::new(seed);
        let shape = shape(&mut rng);
        let Some(bytes) = image(&shape, &mut rng) else { continue };
        let storage = Simulated(SimStorage::from(bytes.clone()));
        let mut area = HeaderArea::read(&storage).unwrap();
        change(&mut area, &mut rng);
        let down = shape.version == 3 && area.raw.version.get() == 2;
        let before = storage.0.epoch();
        match area.install(&storage) {
            Ok(_) => routes[((storage.0.epoch() - before) as usize / 2).min(2)] += 1,
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported), "{error}");
                assert_eq!(storage.0.contents(), bytes, "seed {seed}: touched, and refused: {error}");
                routes[3] += 1;
                continue;
            }
        }
        let (old, new) = (said(&bytes).unwrap(), said(&storage.0.contents()).unwrap());
        let returned = storage.0.epoch();
        for image in crash_images(&storage, seed) {
            assert!(
                is_old_or_new(&image, &old, &new, returned, down),
                "seed {seed}, {shape:?}: {image:?}\nold {old:?}\nnew {new:?}\nfound {:?}",
                said(&image.media[0])
            );
        }
    }
    assert!(routes.iter().all(|count| *count > 5), "one sector, straight, detour, refused: {routes:?}");
}

/// An image of version 3 whose name reaches into the second sector, and the change of the name.
fn detour() -> (Vec<u8>, impl Fn(&mut HeaderArea)) {
    let shape = Shape {
        version: 3,
        cluster_bits: 12,
        header_length: 112,
        unknown: vec![40],
        name: 900,
        format: None,
    };
    let bytes = image(&shape, &mut Rng::new(1)).unwrap();
    (bytes, |area: &mut HeaderArea| area.set_backing(&[b'n'; 950], Some("qcow2")))
}

/// A name where there was none.
fn straight() -> (Vec<u8>, impl Fn(&mut HeaderArea)) {
    let shape =
        Shape { version: 2, cluster_bits: 12, header_length: 72, unknown: vec![40], name: 0, format: None };
    let bytes = image(&shape, &mut Rng::new(1)).unwrap();
    (bytes, |area: &mut HeaderArea| area.set_backing(&[b'n'; 950], Some("qcow2")))
}

/// Whether the crash images of a change show that a barrier is missing.
fn is_noticed(bytes: &[u8], change: impl Fn(&mut HeaderArea), broken: u64) -> bool {
    let storage = Simulated(SimStorage::from(bytes.to_vec()));
    let mut area = HeaderArea::read(&storage).unwrap();
    change(&mut area);
    storage.0.break_sync(broken);
    area.install(&storage).unwrap();
    let (old, new) = (said(bytes).unwrap(), said(&storage.0.contents()).unwrap());
    let returned = storage.0.epoch();
    storage.0.crash_images(1, 400).any(|image| !is_old_or_new(&image, &old, &new, returned, false))
}

#[test]
fn every_barrier_is_needed() {
    let (bytes, change) = straight();
    let noticed: Vec<bool> = (0..3).map(|broken| is_noticed(&bytes, &change, broken)).collect();
    assert_eq!(noticed, [true, true, false], "straight: two barriers");
    let (bytes, change) = detour();
    let noticed: Vec<bool> = (0..5).map(|broken| is_noticed(&bytes, &change, broken)).collect();
    assert_eq!(noticed, [true, true, true, true, false], "detour: four barriers");
}

#[test]
fn a_failing_call_leaves_the_old_or_the_new_header() {
    let (bytes, change) = detour();
    for nth in 0.. {
        let storage = Simulated(SimStorage::from(bytes.clone()));
        let mut area = HeaderArea::read(&storage).unwrap();
        change(&mut area);
        // Whether none or all of a failing write takes effect goes by the calls before; half of a sector is what no medium does.
        while (storage.0.calls() + nth).is_multiple_of(3) {
            storage.len().unwrap();
        }
        storage.0.fail_call(nth, Failing::Forever);
        let result = area.install(&storage);
        let found = said(&storage.0.contents()).unwrap();
        let new = found.backing_name == vec![b'n'; 950];
        assert!(new || found == said(&bytes).unwrap(), "call {nth}");
        if result.is_ok() {
            assert!(new && nth > 8, "the detour makes nine calls");
            break;
        }
    }
}

#[test]
fn what_is_not_known_is_kept_and_unknown_autoclear_bits_go() {
    let shape = Shape {
        version: 3,
        cluster_bits: 16,
        header_length: 136,
        unknown: vec![13, 600],
        name: 40,
        format: Some("raw"),
    };
    let bytes = image(&shape, &mut Rng::new(3)).unwrap();
    let storage = Memory::from(bytes.clone());
    let old = HeaderArea::read(&storage).unwrap();
    let mut area = old.clone();
    area.set_backing("ba\u{df}e:1".as_bytes(), Some("qcow2"));
    let header = area.install(&storage).unwrap();
    assert_eq!(header.backing.unwrap().format.as_deref(), Some("qcow2"));
    let new = HeaderArea::read(&storage).unwrap();
    assert_eq!((new.raw.compatible.get(), new.raw.autoclear.get()), (1 << 40, 0));
    assert_eq!((new.raw.header_length.get(), &new.unknown_fields), (136, &old.unknown_fields));
    assert_eq!(new.extension(0x7000_0000), old.extension(0x7000_0000));
    assert_eq!(new.extension(0x7000_0001), old.extension(0x7000_0001));
    let kinds: Vec<u32> = new.extensions.iter().map(|extension| extension.kind).collect();
    assert_eq!(
        kinds,
        [extensions::BACKING_FORMAT, extensions::FEATURE_NAMES, 0x7000_0000, 0x7000_0001],
        "QEMU's order"
    );
    let whole = storage.to_vec().unwrap();
    let end = new.on_disk.layout.end();
    assert!(whole[end..1 << 16].iter().all(|byte| *byte == 0), "nothing of the old header is left behind");
}

#[test]
fn names_of_unknown_bits_stay_in_the_table() {
    let mut own = RawFeatureName { class: 1, bit: 40, name: [0; 46] };
    own.name[..4].copy_from_slice(b"ours");
    let mut lie = features::name_table()[0];
    lie.name[0] = b'X';
    let merged = features::merged_name_table(Some(&[own.as_bytes(), lie.as_bytes()].concat()));
    assert_eq!(merged, [features::name_table().as_bytes(), own.as_bytes()].concat());
}

#[test]
fn a_header_that_makes_no_sense_is_never_written() {
    let (bytes, _) = detour();
    let storage = Memory::from(bytes.clone());
    let changes: [fn(&mut HeaderArea); 4] = [
        |area| area.set_backing(&[b'n'; 1024], None),
        |area| area.set_backing(b"n", Some("sixteen letters!")),
        |area| area.raw.l1_offset = 7.into(),
        |area| area.set_extension(0x7000_0000, Some(vec![1; 4096])),
    ];
    for change in changes {
        let mut area = HeaderArea::read(&storage).unwrap();
        change(&mut area);
        area.install(&storage).unwrap_err();
        assert_eq!(storage.to_vec().unwrap(), bytes);
    }
}
