mod support;
use support::*;
#[test]
fn real() {
    let t = std::time::Instant::now();
    let (c, m) = model::load_any::<Fast>("/work/shared/models/phi-tiny", &Default::default()).unwrap();
    println!("{c:?} {:?}", t.elapsed());
    let ids = burn::tensor::Tensor::<Fast, 2, _>::from_data([[1, 5, 100, 7]], &Default::default());
    println!("{}", m.logits(m.features(ids)).max().into_scalar());
}
