//! Prints the start of a disk: `cargo run --example read_image -- IMAGE [OFFSET]`.

use std::error::Error;

use imago_core::SyncFormatAccess;
use imago_core::access::open::OpenOptions;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: read_image IMAGE [OFFSET]")?;
    let offset: u64 = arguments.next().map_or(Ok(0), |text| text.parse())?;
    let image = SyncFormatAccess::new(OpenOptions::default().open(path)?)?;
    let len = image.size().saturating_sub(offset).min(256);
    let mut bytes = vec![0; len as usize];
    image.read(&mut bytes, offset)?;
    for (row, bytes) in bytes.chunks(16).enumerate() {
        let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("{:012x}  {}", offset + row as u64 * 16, hex.join(" "));
    }
    Ok(())
}
