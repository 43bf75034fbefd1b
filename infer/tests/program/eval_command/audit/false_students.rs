//! The verdicts of `infer audit` on models that only look like students.

use std::fs;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use datasets::{Documents, Tokenizer, source_files};
use kernels::runtime::Flex;
use model::{
    CausalLm, DiscreteMamba2Config, Family, Initialisation, LlamaConfig, LlamaFamily, Mixer,
    MixerConfig,
};
use tempfile::TempDir;

use super::{HIDDEN, json, of_text, row, stderr, stdout, with_outputs_of, words};
use crate::support::{copy_tokenizer, teacher_folder};

/// A teacher of one layer whose attention is the mean of all that it sees, so that words which it has read become
/// likelier: it needs a long context, as far as a teacher can without training.
fn averaging(window: Option<usize>) -> TempDir {
    let mut config = LlamaConfig {
        vocab_size: 4096,
        hidden_size: HIDDEN,
        intermediate_size: 16,
        num_hidden_layers: 1,
        max_position_embeddings: 512,
        tie_word_embeddings: true,
        sliding_window: window,
        ..LlamaConfig::default_of(LlamaFamily::Mistral)
    };
    config.attention.n_heads = 1;
    config.attention.n_kv_heads = 1;
    config.attention.head_dim = Some(HIDDEN);
    let device = Device::<Flex>::default();
    let mut model = CausalLm::<Flex>::init(&config, 3, &device);
    let embedding = &mut model.backbone.embedding.weight;
    *embedding = embedding.clone().map(|weight| weight * 2.5);
    let layer = &mut model.backbone.layers[0];
    let Mixer::Attention(attention) = &mut layer.mixer else {
        panic!("a teacher's layer has attention")
    };
    let identity = || Param::from_tensor(Tensor::<Flex, 2>::eye(HIDDEN, &device));
    (attention.v_proj.weight, attention.dense.weight) = (identity(), identity());
    let zeros = |weight: &Param<Tensor<Flex, 2>>| weight.clone().map(|weight| weight.zeros_like());
    attention.q_proj.weight = zeros(&attention.q_proj.weight);
    layer.mlp.down.weight = zeros(&layer.mlp.down.weight);
    let folder = tempfile::tempdir().unwrap();
    model::save(&config, &model, folder.path()).unwrap();
    copy_tokenizer(folder.path());
    folder
}

/// A model whose attention has a sliding window has nothing beyond the window control by the audit; the same weights
/// without the window do.
#[test]
fn a_windowed_teacher_passed_off_as_a_student() {
    let (teacher, fake) = (averaging(None), averaging(Some(64)));
    let honest = averaging(None);
    let out = tempfile::tempdir().unwrap();
    let students = [fake.path(), honest.path()];
    let output = of_text(teacher.path(), &students, out.path());
    assert!(output.status.success(), "{}", stderr(&output));
    let report = json(&out.path().join("audit.json"));
    let [fake, honest] = students.map(|path| path.to_str().unwrap());

    let said = report["verdicts"][fake].as_str().unwrap();
    assert!(
        said.starts_with("nothing beyond the window control in any of "),
        "{said}"
    );
    let said = words(&report, "perplexity at 512", fake);
    assert!(
        said.contains("the window control") && !said.starts_with("beyond"),
        "{said}"
    );
    assert!(
        said.contains("below the teacher; needs its attention"),
        "{said}"
    );
    let said = report["verdicts"][honest].as_str().unwrap();
    assert!(said.starts_with("beyond the window control in "), "{said}");
    assert!(said.contains("perplexity at 512"), "{said}");
    let said = words(&report, "perplexity at 512", honest);
    assert!(
        said.starts_with("beyond the window control; level with the teacher"),
        "{said}"
    );
    let said = words(&report, "perplexity, positions 0 to 31", honest);
    assert!(
        said.ends_with("the teacher itself has no more than the window control here"),
        "{said}"
    );
    let said = words(&report, "needle at 256", fake);
    assert_eq!(said, "the teacher passes none of 12");

    let table = stdout(&output);
    assert!(table.contains("|perplexity at 512"), "{table}");
    assert!(
        table.contains(&format!("{fake}: nothing beyond the window control")),
        "{table}"
    );
    let left_out = format!("{fake}: no-ssm is left out: no layer has a state-space mixer");
    assert!(
        table.contains(&left_out) && stderr(&output).contains(&left_out),
        "{table}"
    );
    let page = fs::read_to_string(out.path().join("audit.html")).unwrap();
    assert!(page.contains("<polyline") && page.contains("nothing beyond the window control"));
    for reference in ["http", "url(", "<script", "<link", "NaN"] {
        assert!(!page.contains(reference), "{reference}");
    }
}

/// A student of the bundled teacher that was calibrated on its text, and whose convolutions join four tokens of x. If
/// `has_states` is false, the convolutions of C and their inputs are zero: then no output depends on a state, and only
/// D times x is left.
fn calibrated(has_states: bool) -> TempDir {
    let device = Device::<Flex>::default();
    let (config, teacher) = model::load_any::<Flex>(teacher_folder(), &device).unwrap();
    let network = config.network();
    let MixerConfig::Attention(attention) = &network.mixers[0] else {
        panic!("a teacher has attention")
    };
    let options = DiscreteMamba2Config {
        d_state: attention.head_dim(network.d_model),
        bias: attention.dense_bias,
        z_bias: !attention.dense_bias,
        ..DiscreteMamba2Config::with_heads(attention.n_heads)
    };
    let start = Initialisation::Calibrated;
    let mixer = start.options_of(options.into(), &network.mixers[0], network.d_model);
    let config = config.student(&mixer, &[]).unwrap();
    let mut student = CausalLm::<Flex>::init(&config, 5, &device);
    model::transfer_weights(&mut student, &teacher).unwrap();
    let tokenizer = Tokenizer::from_folder(teacher_folder()).unwrap();
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/text/pd-validation.json.gz");
    let last = Documents::new(source_files(&[text]).unwrap()).last();
    let ids = tokenizer.encode(&last.unwrap().unwrap()).unwrap();
    let ids: Vec<i32> = ids
        .iter()
        .cycle()
        .take(8 * 256)
        .map(|id| *id as i32)
        .collect();
    let ids = Tensor::from_data(TensorData::new(ids, [8, 256]), &device);
    start
        .apply(&mut student, &teacher, &[ids], &|| false)
        .unwrap();

    for layer in &mut student.backbone.layers {
        let mamba = layer.mixer.mamba_mut().unwrap();
        let (d_inner, d_bc) = (
            mamba.config().d_inner(network.d_model),
            mamba.config().d_bc(),
        );
        let of_c = d_inner + d_bc..d_inner + 2 * d_bc;
        let is_kept = |row: usize| has_states || !of_c.contains(&row);
        let keep = |n: usize| {
            let kept = (0..n).map(|row| f32::from(u8::from(is_kept(row))));
            Tensor::<Flex, 1>::from_data(TensorData::new(kept.collect(), [n]), &device)
        };
        let weight = mamba.in_proj.weight.clone();
        let n = weight.dims()[0];
        mamba.in_proj.weight = weight.map(|weight| weight * keep(n).reshape([n, 1]));
        let bias = mamba.in_proj.bias.take();
        mamba.in_proj.bias = bias.map(|bias| bias.map(|bias| bias * keep(n)));
        let taps = mamba.conv1d.weight.clone();
        let n = taps.dims()[0];
        let of_x = [0.1f32, 0.1, 0.2, 0.6];
        mamba.conv1d.weight = taps.map(|taps| {
            let joined = Tensor::<Flex, 1>::from_floats(of_x, &device).reshape([1, 1, 4]);
            let x = joined.repeat_dim(0, d_inner);
            let rest = taps.narrow(0, d_inner, n - d_inner);
            Tensor::cat(vec![x, rest], 0) * keep(n).reshape([n, 1, 1])
        });
        let bias = mamba.conv1d.bias.take();
        mamba.conv1d.bias = bias.map(|bias| bias.map(|bias| bias * keep(n)));
    }
    let folder = tempfile::tempdir().unwrap();
    model::save(&config, &student, folder.path()).unwrap();
    copy_tokenizer(folder.path());
    folder
}

/// A student whose states are zero, but is otherwise like a student that needs its states: by the audit it has nothing
/// beyond the window control, and is no worse when its states are emptied.
#[test]
fn a_student_whose_states_are_zero() {
    let (fake, honest) = (calibrated(false), calibrated(true));
    let out = tempfile::tempdir().unwrap();
    let students = [fake.path(), honest.path()];
    let output = of_text(&teacher_folder(), &students, out.path());
    assert!(output.status.success(), "{}", stderr(&output));
    let report = json(&out.path().join("audit.json"));
    let [fake, honest] = students.map(|path| path.to_str().unwrap());
    let said = report["verdicts"][fake].as_str().unwrap();
    assert!(said.starts_with("nothing beyond "), "{said}");
    let said = words(&report, "perplexity at 512", fake);
    assert!(!said.starts_with("beyond the window control"), "{said}");
    assert!(said.contains("below the teacher; needs its SSM;"), "{said}");
    let idle = "no worse without what its state carries from 64 tokens to the next 64";
    assert!(said.contains(idle), "{said}");
    let said = words(&report, "perplexity at 512", honest);
    let needs = "needs its SSM and what its state carries from 64 tokens to the next 64";
    assert!(said.contains(needs), "{said}");
}

/// A student whose state-space mixers' output is multiplied by 0, which makes it the teacher without attention.
#[test]
fn a_student_whose_mixers_add_nothing() {
    let silent = with_outputs_of(0.0);
    let out = tempfile::tempdir().unwrap();
    let output = of_text(&teacher_folder(), &[silent.path()], out.path());
    assert!(output.status.success(), "{}", stderr(&output));
    let report = json(&out.path().join("audit.json"));
    let name = silent.path().to_str().unwrap();
    let said = report["verdicts"][name].as_str().unwrap();
    assert!(
        said.starts_with("nothing beyond no attention in any of "),
        "{said}"
    );
    let perplexity = row(&report, "perplexity at 512");
    let of = |model: &str, key: &str| perplexity["models"][model][key]["value"].as_f64().unwrap();
    let teacher = teacher_folder();
    let teacher = teacher.to_str().unwrap();
    let without = format!("{teacher}, no-attention");
    assert!((of(name, "value") / of(&without, "value") - 1.0).abs() < 1e-5);
    assert!(of(name, "to_teacher") > 5.0);
    assert!((of(teacher, "to_teacher") - 1.0).abs() < 1e-12);
    let said = words(&report, "perplexity at 512", name);
    assert!(
        said.starts_with("no more than no attention; below the teacher"),
        "{said}"
    );
    let idle = "no worse without its SSM or what its state carries from 64 tokens to the next 64";
    assert!(said.contains(idle), "{said}");
}
