#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| imago_fuzz::open_and_read(bytes));
