#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kagami_decoders::etcd::value(bytes));
