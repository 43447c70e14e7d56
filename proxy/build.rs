fn main() {
    // placeholder until the real one is merged
    let out = std::env::var("OUT_DIR").unwrap();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins/target/wasm32-unknown-unknown/release");
    let mut s = String::from("pub static BUILTIN: &[(&str, &[u8])] = &[\n");
    if let Ok(d) = std::fs::read_dir(root) {
        for e in d.flatten() {
            let p = e.path();
            if p.extension().is_some_and(|x| x == "wasm") {
                let n = p.file_stem().unwrap().to_str().unwrap().replace('_', "-");
                s += &format!("({n:?}, include_bytes!({:?})),\n", p);
            }
        }
    }
    s += "];\n";
    std::fs::write(format!("{out}/builtin.rs"), s).unwrap();
    println!("cargo:rerun-if-changed={root}");
}
