//! Writes the student and the hybrid that evaluations are compared on with other programs, for those
//! programs to read: `cargo run --release -p infer --example known_students -- FOLDER`.

use std::path::Path;

#[path = "../tests/support/known_students.rs"]
mod known_students;
#[path = "../tests/support/mod.rs"]
mod support;

fn main() {
    let folder = std::env::args_os().nth(1);
    let folder = folder.expect("a folder to write to");
    for (name, attention_layers) in [("student", &[][..]), ("hybrid", &[1])] {
        let folder = Path::new(&folder).join(name);
        known_students::write(&folder, attention_layers);
        println!("{}", folder.display());
    }
}
