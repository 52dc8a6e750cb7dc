#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| weft_proxy_fuzz::identity(bytes));
