#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| imago_fuzz::write_and_check(bytes));
