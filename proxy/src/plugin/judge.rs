//! What is checked about a file before anything is compiled, and the wrapping of a core module into a component.
//!
//! The compiler's cost is set by the file, not by its size: 58 KB of nested components or 300 KB of nested blocks take
//! minutes and gigabytes. A linear walk over the file finds such shapes at the cost of decoding it once, and gives better
//! reasons than the compiler does: a file that was cut short, a module without a description of its world, a program for
//! WASI. The limits are far above what compilers of real languages produce. They are no proof of a bounded compilation:
//! that is what the limits of the process are for in which all of this runs (see [`super::compile`]).

use std::panic::{AssertUnwindSafe, catch_unwind};

use wasmparser::{BinaryReaderError, Encoding, FunctionBody, Operator, Parser, Payload};
use wit_component::ComponentEncoder;

use super::fault::one_line;
use super::generation::{LoadError, MAX_BYTES};

/// Modules and components within one file. Components made of dozens of shared libraries have about a hundred.
const MAX_PARTS: usize = 256;

/// Components within components; tools produce two levels.
const MAX_NESTING: usize = 16;

/// Functions of all modules of a file. A JavaScript engine has about 15,000.
const MAX_FUNCTIONS: u64 = 50_000;

/// Types of all modules and components of a file.
const MAX_TYPES: u64 = 50_000;

/// Blocks within blocks in a function. A `match` with a thousand arms nests a thousand blocks.
const MAX_BLOCKS: usize = 4_096;

/// Tables and memories of one file, globals, element and data segments: of each kind.
const MAX_OTHERS: u64 = 50_000;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Module,
    Component,
}

/// Checks a file's content, and makes a component of it where it is a core module.
///
/// # Errors
///
/// [`LoadError::NotWasm`], [`LoadError::NotWrappable`] or [`LoadError::Compile`], with the reason. No input makes it
/// panic: a panic of the encoder is the reason then.
pub fn component_of(bytes: &[u8]) -> Result<std::borrow::Cow<'_, [u8]>, LoadError> {
    let form = match bytes.get(..8) {
        _ if bytes.len() as u64 > MAX_BYTES => return Err(LoadError::TooLarge { bytes: bytes.len() as u64 }),
        Some([0, b'a', b's', b'm', 0x01, 0, 0, 0]) => Form::Module,
        Some([0, b'a', b's', b'm', _, 0, 1, 0]) => Form::Component,
        _ => return Err(LoadError::NotWasm),
    };
    let refused = |why: String| match form {
        Form::Module => LoadError::NotWrappable(why),
        Form::Component => LoadError::Compile(why),
    };
    let seen = catch_unwind(|| Walk::of(bytes)).unwrap_or_else(|_| Err("it cannot be decoded".to_owned()));
    let walk = seen.map_err(|why| refused(one_line(&why)))?;
    match form {
        Form::Component => Ok(bytes.into()),
        Form::Module if !walk.has_world => Err(refused(
            "no component-type section: expected a module built with this version's bindings (the crate heddle-plugin, \
             or wit-bindgen), or a component"
                .to_owned(),
        )),
        Form::Module => wrap(bytes).map(Into::into).map_err(|why| refused(one_line(&why))),
    }
}

/// Makes a component of a core module that carries the bindings' description of its world. The encoder takes parts of a
/// file on trust and panics where they do not fit.
fn wrap(module: &[u8]) -> Result<Vec<u8>, String> {
    let encode = || ComponentEncoder::default().module(module).and_then(|encoder| encoder.validate(true).encode());
    match catch_unwind(AssertUnwindSafe(encode)) {
        Ok(wrapped) => wrapped.map_err(|error| format!("{error:#}")),
        Err(_) => Err("its component-type section does not fit its code".to_owned()),
    }
}

/// What has been seen of a file.
#[derive(Debug, Default)]
struct Walk {
    parts: usize,
    /// Whether each of the parts that the walk is in is a component, the outermost first.
    within: Vec<Encoding>,
    types: u64,
    functions: u64,
    others: u64,
    has_world: bool,
}

impl Walk {
    fn of(bytes: &[u8]) -> Result<Self, String> {
        let mut walk = Self::default();
        for payload in Parser::new(0).parse_all(bytes) {
            walk.see(payload.map_err(|error| reason(&error, bytes.len()))?, bytes.len())?;
        }
        Ok(walk)
    }

    fn see(&mut self, payload: Payload<'_>, length: usize) -> Result<(), String> {
        let said = |error: BinaryReaderError| reason(&error, length);
        let is_outermost = self.within.len() == 1;
        match payload {
            Payload::Version { encoding, .. } => {
                self.parts += 1;
                self.within.push(encoding);
                at_most("modules and components", self.parts as u64, MAX_PARTS as u64)?;
                at_most("components within components", self.within.len() as u64, MAX_NESTING as u64)?;
            }
            Payload::End(_) => drop(self.within.pop()),
            Payload::TypeSection(section) => self.count_types(section.count())?,
            Payload::ComponentTypeSection(section) => self.count_types(section.count())?,
            Payload::CoreTypeSection(section) => self.count_types(section.count())?,
            Payload::ImportSection(section) if is_outermost => {
                for import in section.into_imports() {
                    without_wasi(import.map_err(said)?.module)?;
                }
            }
            Payload::ComponentImportSection(section) if is_outermost => {
                for import in section {
                    without_wasi(import.map_err(said)?.name.name)?;
                }
            }
            Payload::FunctionSection(section) => {
                self.functions = self.functions.saturating_add(section.count().into());
                at_most("functions", self.functions, MAX_FUNCTIONS)?;
            }
            Payload::TableSection(section) => self.count_others("tables", section.count())?,
            Payload::MemorySection(section) => self.count_others("memories", section.count())?,
            Payload::GlobalSection(section) => self.count_others("globals", section.count())?,
            Payload::ElementSection(section) => self.count_others("element segments", section.count())?,
            Payload::DataSection(section) => self.count_others("data segments", section.count())?,
            Payload::ComponentInstanceSection(section) => self.count_others("instances", section.count())?,
            Payload::InstanceSection(section) => self.count_others("instances", section.count())?,
            Payload::ComponentAliasSection(section) => self.count_others("aliases", section.count())?,
            Payload::ComponentCanonicalSection(section) => self.count_others("canonical functions", section.count())?,
            Payload::CodeSectionEntry(body) => blocks(&body).map_err(said)??,
            Payload::CustomSection(section) if is_outermost && section.name().starts_with("component-type") => {
                self.has_world = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn count_types(&mut self, count: u32) -> Result<(), String> {
        self.types = self.types.saturating_add(count.into());
        at_most("types", self.types, MAX_TYPES)
    }

    fn count_others(&mut self, what: &str, count: u32) -> Result<(), String> {
        self.others = self.others.saturating_add(count.into());
        at_most(what, self.others, MAX_OTHERS)
    }
}

/// Walks a function's body; the inner error is a refusal.
fn blocks(body: &FunctionBody<'_>) -> Result<Result<(), String>, BinaryReaderError> {
    let mut depth = 0_usize;
    for operator in body.get_operators_reader()? {
        match operator? {
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } | Operator::TryTable { .. } => {
                depth += 1;
                if depth > MAX_BLOCKS {
                    return Ok(at_most("blocks within blocks", depth as u64, MAX_BLOCKS as u64));
                }
            }
            Operator::End => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(Ok(()))
}

fn at_most(what: &str, found: u64, limit: u64) -> Result<(), String> {
    if found <= limit { Ok(()) } else { Err(format!("too many {what}: expected at most {limit}")) }
}

fn without_wasi(import: &str) -> Result<(), String> {
    let is_wasi = import.starts_with("wasi:") || import.starts_with("wasi_");
    if !is_wasi {
        return Ok(());
    }
    Err(format!(
        "it imports {import}, and policies have no WASI: expected a program without files, clocks and network, in Rust \
         built for wasm32-unknown-unknown"
    ))
}

/// Why a file cannot be decoded. A file that ends too early was most likely being written.
fn reason(error: &BinaryReaderError, length: usize) -> String {
    if error.message().contains("unexpected end") {
        return format!("cut short: the file ends after {length} bytes, within a section");
    }
    format!("{} (at byte {})", error.message(), error.offset())
}
