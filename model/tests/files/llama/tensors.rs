//! The tensors of a folder: heads that are tied, and what does not fit.

use model::WeightsError;
use model::weights::TensorFault;
use safetensors::Dtype;
use tests::networks::Fast;

use crate::{Contents, contents, copy_of, parameters, write};

/// A head that is tied to the embedding may be stored too, if it is the embedding.
#[test]
fn tied_heads_that_are_stored() {
    let head = "lm_head.weight";
    let folder = copy_of("llama-tied");
    let path = folder.path().join("model.safetensors");
    let load = || model::load_any::<Fast>(folder.path(), &Default::default());
    let (_, alone) = load().expect("a teacher");
    let described = model::describe(folder.path()).expect("a teacher").1;
    let mut all = contents(&path);
    let embedding = all
        .iter()
        .find(|tensor| tensor.0 == "model.embed_tokens.weight");
    let (_, dtype, shape, bytes) = embedding.expect("an embedding").clone();
    all.push((head.into(), dtype, shape, bytes));
    write(&path, &all);
    let (_, same) = load().expect("the same teacher");
    assert_eq!(parameters(&same), parameters(&alone));
    assert_eq!(
        model::describe(folder.path()).expect("a teacher").1,
        described
    );

    all.last_mut().expect("the head").3[2] ^= 1;
    write(&path, &all);
    let Err(WeightsError::Tensors { faults, .. }) = load() else {
        panic!("another head was accepted")
    };
    let fault = TensorFault::Untied {
        name: head.into(),
        other: "model.embed_tokens.weight".into(),
    };
    assert_eq!(faults, [fault]);
}

/// Every tensor is accounted for.
#[test]
fn tensors_that_do_not_fit() {
    let folder = copy_of("qwen2-tiny");
    let path = folder.path().join("model.safetensors");
    let whole = contents(&path);
    for name in [
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.0.post_attention_layernorm.weight",
        "lm_head.weight",
    ] {
        let less: Contents = whole
            .iter()
            .filter(|tensor| tensor.0 != name)
            .cloned()
            .collect();
        assert_eq!(less.len() + 1, whole.len(), "{name}");
        write(&path, &less);
        let error = model::load_any::<Fast>(folder.path(), &Default::default()).expect_err(name);
        assert!(
            error.to_string().contains(&format!("`{name}` is missing")),
            "{error}"
        );
    }
    let mut more = whole.clone();
    let name = "model.layers.0.self_attn.o_proj.bias";
    more.push((name.into(), Dtype::F32, vec![48], vec![0; 4 * 48]));
    write(&path, &more);
    let error = model::load_any::<Fast>(folder.path(), &Default::default()).expect_err(name);
    assert!(error.to_string().contains(name), "{error}");
}
