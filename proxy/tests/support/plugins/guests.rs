//! Guests for tests, made of one that is written by hand.

use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// What a guest does before what it should do, as text of WebAssembly.
pub mod instead {
    /// Traps.
    pub const TRAP: &str = "(unreachable)";
    /// Loops for ever.
    pub const LOOP: &str = "(loop $ever (br $ever))";
    /// Allocates until it gets no more, as an allocator would, and then gives up.
    pub const ALLOCATE: &str =
        "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (unreachable)";
    /// Picks a slot that nobody has.
    pub const NONSENSE: &str = "(return (call $answer (i32.const -7)))";
    /// Picks no slot.
    pub const DECLINE: &str = "(return (i32.const 0))";
    /// Refuses its configuration.
    pub const REFUSE: &str = "(i32.store8 (i32.const 32) (i32.const 1)) (i32.store (i32.const 36) (i32.const 64)) \
                              (i32.store (i32.const 40) (i32.const 28)) (return (i32.const 32))";
    /// Answers a refusal as long as its memory.
    pub const REFUSE_AT_LENGTH: &str = "(drop (memory.grow (i32.const 31))) (i32.store8 (i32.const 32) (i32.const 1)) \
         (i32.store (i32.const 36) (i32.const 64)) (i32.store (i32.const 40) (i32.const 2000000)) \
         (return (i32.const 32))";
}

/// The same only for requests whose path begins with `/` and this letter: such a guest passes its probe.
pub fn on_path(letter: char, what: &str) -> String {
    format!("(if (call $on (i32.const {})) (then {what}))", u32::from(letter))
}

/// The same only in an `update` that adds more endpoints than the probe does.
pub fn on_many(what: &str) -> String {
    format!("(if (i32.gt_u (local.get $additions) (i32.const 3)) (then {what}))")
}

/// A guest that rotates, but for what stands at the marks: a core module as a compiler makes it.
pub fn guest(marks: &[(&str, &str)]) -> Vec<u8> {
    let mut text = include_str!("../../guests/rotation.wat").to_owned();
    for (mark, what) in marks {
        let mark = format!("(;{mark};)");
        assert!(text.contains(&mark), "rotation.wat has no mark {mark}");
        text = text.replace(&mark, what);
    }
    module(&text, "balancer")
}

/// A core module with the description of a world of the contract.
pub fn module(text: &str, world: &str) -> Vec<u8> {
    let mut module = wat::parse_str(text).unwrap();
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin-sdk/wit")).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    module
}

/// The component of a core module.
pub fn component(module: &[u8]) -> Vec<u8> {
    ComponentEncoder::default().module(module).unwrap().validate(true).encode().unwrap()
}
