//! Columns of one tensor as tensors of their own.

use burn::backend::Autodiff;
use burn::tensor::{Distribution, Tensor};
use kernels::runtime::Flex;
use kernels::{extend_columns, split_columns};

type Graph = Autodiff<Flex>;

const SHAPE: [usize; 3] = [2, 3, 10];

fn random(shape: [usize; 3]) -> Tensor<Flex, 3> {
    Tensor::random(shape, Distribution::Default, &Default::default())
}

/// The gradient to the whole of the sum of each part times a number of its own, by `split`; parts whose number is 0
/// are not used at all.
fn gradient(
    x: &Tensor<Flex, 3>,
    numbers: [f64; 3],
    split: impl Fn(Tensor<Graph, 3>) -> [Tensor<Graph, 3>; 3],
) -> Vec<f32> {
    let x = Tensor::<Graph, 3>::from_inner(x.clone()).require_grad();
    let used = split(x.clone() * 2.0).into_iter().zip(numbers);
    let used = used.filter(|(_, number)| *number != 0.0);
    let sums = used.map(|(part, number)| (part.clone() * part * number).sum());
    let loss = sums.reduce(|loss, sum| loss + sum).expect("a part");
    let gradient = x.grad(&loss.backward()).expect("a gradient");
    gradient.into_data().to_vec().expect("f32")
}

#[test]
fn columns_are_those_of_the_whole() {
    let x = random(SHAPE);
    let parts = split_columns(x.clone(), [4, 1, 3]);
    for (part, [start, width]) in parts.into_iter().zip([[0, 4], [4, 1], [5, 3]]) {
        let expected = x.clone().narrow(2, start, width);
        assert_eq!(part.into_data(), expected.into_data());
    }
}

#[test]
fn gradients_are_those_of_slices() {
    let x = random(SHAPE);
    let slices = |x: Tensor<Graph, 3>| {
        [[0, 4], [4, 1], [5, 3]].map(|[start, width]| x.clone().narrow(2, start, width))
    };
    // All parts; some; one, twice.
    for numbers in [[1.0, 0.5, 3.0], [0.0, 2.0, 1.0], [0.0, 0.0, 1.0]] {
        let found = gradient(&x, numbers, |x| split_columns(x, [4, 1, 3]));
        assert_eq!(found, gradient(&x, numbers, slices), "{numbers:?}");
        assert!(found.iter().any(|value| *value != 0.0));
    }
    let twice = |x: Tensor<Graph, 3>| {
        let [a, b, c] = split_columns(x, [4, 1, 3]);
        [a.clone() + a, b, c]
    };
    let doubled = |x: Tensor<Graph, 3>| {
        let [a, b, c] = slices(x);
        [a * 2.0, b, c]
    };
    let numbers = [1.0, 0.5, 3.0];
    assert_eq!(gradient(&x, numbers, twice), gradient(&x, numbers, doubled));
}

#[test]
fn columns_get_zeros_behind() {
    let x = random(SHAPE);
    let graph = Tensor::<Graph, 3>::from_inner(x.clone()).require_grad();
    let y = extend_columns(graph.clone(), 13);
    let zeros = Tensor::zeros([2, 3, 3], &x.device());
    let expected = Tensor::cat(vec![x.clone(), zeros], 2).into_data();
    assert_eq!(y.clone().inner().into_data(), expected);
    let gradient = graph.grad(&(y.clone() * y).sum().backward());
    let gradient = gradient.expect("a gradient").into_data();
    assert_eq!(gradient, (x * 2.0).into_data());
}

#[test]
#[should_panic(expected = "split_columns: 11 columns of 10")]
fn no_more_columns_than_there_are() {
    split_columns(random(SHAPE), [4, 4, 3]);
}
