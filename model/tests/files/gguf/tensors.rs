//! The tensors of a file: what is not read, and what does not fit.

use model::WeightsError;
use tests::gguf::{Gguf, tiny};

use super::{file_of, load, refused};

#[test]
fn tensors_that_are_not_read() {
    for (kind, name) in [(20, "IQ4_NL"), (39, "MXFP4"), (999, "type 999")] {
        let mut file = tiny();
        file.tensors[2].kind = kind;
        let said = refused(&file.bytes());
        assert!(
            said.contains("`blk.0.attn_q.weight` is stored as "),
            "{said}"
        );
        assert!(said.contains(name) && said.contains("Q4_K"), "{said}");
    }
    let changed = |change: &dyn Fn(&mut Gguf)| {
        let mut file = tiny();
        change(&mut file);
        refused(&file.bytes())
    };
    let said = changed(&|file| file.tensors[3].sizes = vec![33, 16]);
    assert!(said.contains("rows of 33 numbers in Q8_0"), "{said}");
    let said = changed(&|file| file.tensors[3].sizes = vec![1 << 40, 1 << 40]);
    assert!(said.contains("would have the shape"), "{said}");
    let said = changed(&|file| file.tensors[3].sizes = vec![32; 5]);
    assert!(said.contains("5 dimensions"), "{said}");
    let said = changed(&|file| file.tensors[3].name = "output_norm.weight".into());
    assert!(said.contains("twice"), "{said}");
    let said = changed(&|file| file.keys.push(file.keys[1].clone()));
    assert!(said.contains("`llama.block_count` twice"), "{said}");
}

/// One error names all tensors that do not fit, as for other files.
#[test]
fn every_tensor_is_accounted_for() {
    let mut file = tiny().tensor("blk.0.attn_sinks.weight", &[2], 0, vec![0; 8]);
    file.tensors.remove(1);
    let (_folder, path) = file_of(&file.bytes());
    let error = load(&path).unwrap_err();
    let WeightsError::Tensors { faults, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(faults.len(), 2, "{error}");
    let said = error.to_string();
    assert!(
        said.contains("`model.layers.0.input_layernorm.weight` is missing"),
        "{said}"
    );
    assert!(said.contains("`blk.0.attn_sinks.weight`"), "{said}");
}

/// A tensor without rows is no network's, however long they would be.
#[test]
fn a_tensor_without_rows() {
    let mut file = tiny();
    let query = "blk.0.attn_q.weight";
    let tensor = file.tensors.iter_mut().find(|tensor| tensor.name == query);
    let tensor = tensor.expect("a tensor");
    tensor.sizes = vec![1 << 40, 1 << 40, 0];
    tensor.bytes.clear();
    let (_folder, path) = file_of(&file.bytes());
    let said = load(&path).expect_err("refused").to_string();
    assert!(said.contains("m.gguf") && said.contains("q_proj"), "{said}");
}
