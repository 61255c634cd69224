//! Converts an image to raw: `cargo run --example convert -- IMAGE TARGET`.

use std::error::Error;

use imago_core::access::convert::{ConvertOptions, convert};
use imago_core::access::create::CreateOptions;
use imago_core::access::job::{Job, Progress};
use imago_core::access::open::OpenOptions;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(source), Some(target)) = (arguments.next(), arguments.next()) else {
        return Err("usage: convert IMAGE TARGET".into());
    };
    let source = OpenOptions::default().open(source)?;
    let mut progress = |Progress { done, total }| eprint!("\r{:3} %", done * 100 / total.max(1));
    let options = ConvertOptions::new(CreateOptions::raw(0));
    convert(&source, target, options, &mut Job::default().progress(&mut progress))?;
    eprintln!();
    Ok(())
}
