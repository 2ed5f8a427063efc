//! What the built program needs of the machine it starts on: read from the file itself.
//! Source: the ELF-64 object file format; elf(5).

use std::fs;
use std::path::Path;

/// What every Linux of the last ten years has.
const ALLOWED: [&str; 4] = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"];

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

fn number<const N: usize>(file: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..N].copy_from_slice(&file[at..at + N]);
    u64::from_le_bytes(bytes)
}

/// One program header: kind, offset in the file, address, size in the file.
fn program_headers(file: &[u8]) -> Vec<(u32, u64, u64, u64)> {
    let (table, size, count) = (number::<8>(file, 32), number::<2>(file, 54), number::<2>(file, 56));
    (0..count)
        .map(|header| (table + header * size) as usize)
        .map(|at| {
            (
                number::<4>(file, at) as u32,
                number::<8>(file, at + 8),
                number::<8>(file, at + 16),
                number::<8>(file, at + 32),
            )
        })
        .collect()
}

/// The libraries that the loader must find before the program starts.
fn needed(file: &[u8]) -> Vec<String> {
    assert_eq!(&file[..6], b"\x7fELF\x02\x01", "a 64-bit little-endian ELF file");
    let headers = program_headers(file);
    let &(_, offset, _, size) = headers.iter().find(|header| header.0 == PT_DYNAMIC).expect("it is linked dynamically");
    let entries: Vec<(u64, u64)> = (offset..offset + size)
        .step_by(16)
        .map(|at| (number::<8>(file, at as usize), number::<8>(file, at as usize + 8)))
        .take_while(|(tag, _)| *tag != DT_NULL)
        .collect();
    let address = entries.iter().find(|(tag, _)| *tag == DT_STRTAB).expect("a string table").1;
    let &(_, offset, start, _) = headers
        .iter()
        .find(|&&(kind, _, start, size)| kind == PT_LOAD && (start..start + size).contains(&address))
        .expect("the string table is loaded");
    let strings = &file[(offset + address - start) as usize..];
    let names = entries.iter().filter(|(tag, _)| *tag == DT_NEEDED).map(|(_, at)| &strings[*at as usize..]);
    names.map(|name| String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default()).into()).collect()
}

fn check(program: &Path) {
    let needed = needed(&fs::read(program).expect("a built program"));
    let place = program.display();
    assert!(needed.iter().any(|name| name == "libc.so.6"), "{place}: the list is read wrongly: {needed:?}");
    let others: Vec<&String> = needed.iter().filter(|name| !ALLOWED.contains(&name.as_str())).collect();
    assert!(others.is_empty(), "{place} does not start where these are missing: {others:?}");
}

#[test]
fn the_program_needs_the_c_library_and_nothing_of_cuda() {
    check(Path::new(env!("CARGO_BIN_EXE_lantern")));
}

/// These tests are a program that depends on the library; an example is another, where one is built.
#[test]
fn programs_that_depend_on_the_library_need_no_more() {
    let tests = std::env::current_exe().expect("this program");
    check(&tests);
    let folder = tests.ancestors().nth(2).expect("it lies in the folder `deps` of a profile's");
    let example = folder.join("examples/quickstart");
    if example.is_file() {
        check(&example);
    }
}
