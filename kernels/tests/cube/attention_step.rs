//! Attention of one new token after another.

use burn::tensor::{DType, Tensor};
use kernels::decode::attention_step::{Cache, NewToken, attention_step_within};
use kernels::{KernelBackend, Window};

use crate::support::*;

struct Case {
    b: usize,
    h: usize,
    g: usize,
    p: usize,
    r: usize,
    /// Tokens before the first step.
    len: usize,
    /// Steps.
    steps: usize,
    window: Option<Window>,
    dtype: DType,
}

impl Case {
    fn check(&self, random: &mut Random) {
        let Self {
            b,
            h,
            g,
            p,
            r,
            len,
            steps: n,
            window,
            dtype,
        } = *self;
        let tokens: Vec<_> = (0..n)
            .map(|_| {
                let wide = DType::F32;
                let angles = random.values([3, r], 1.0, wide);
                [
                    random.values([b, h * p], 2.0, wide),
                    random.values([b, g * p], 2.0, wide),
                    random.values([b, g * p], 2.0, wide),
                    angles.clone(),
                    angles,
                ]
            })
            .collect();
        let cached = (len > 0).then(|| {
            [
                random.values([b, len, g, p], 2.0, dtype),
                random.values([b, len, g, p], 2.0, dtype),
            ]
        });
        let exact = {
            let cache = cached
                .as_ref()
                .map(|[keys, values]| Cache::of(keys.exact(), values.exact()));
            let tokens = tokens
                .iter()
                .map(|values| token(values.each_ref().map(Values::exact)));
            steps(tokens, cache, |token, cache| {
                attention_step_within(token, cache, h, window)
            })
        };
        let run = |held: bool| {
            let cache = cached
                .as_ref()
                .map(|[keys, values]| Cache::of(keys.cube(), values.cube()));
            let copy = held.then(|| cache.clone());
            let tokens = tokens
                .iter()
                .map(|values| token(values.each_ref().map(Values::cube)));
            let outputs = steps(tokens, cache, |token, cache| {
                attention_step_within(token, cache, h, window)
            });
            if let (Some(Some(copy)), Some([keys, _])) = (copy, &cached) {
                let held = distance(&keys.exact().into_data(), &copy.keys.into_data());
                assert!(held < 1e-6, "the step wrote over a cache that was held");
            }
            outputs
        };
        let name =
            format!("attention_step b{b} h{h} g{g} p{p} r{r}, {len} tokens, {window:?}, {dtype:?}");
        // A cache in half precision rounds the keys and values that join it.
        let tolerance = if dtype == DType::F32 { 1e-5 } else { 2e-2 };
        check(&name, tolerance, exact.clone(), || run(false));
        check(&name, tolerance, exact, || run(true));
    }
}

fn token<B: KernelBackend>([q, k, v, cos, sin]: [Tensor<B, 2>; 5]) -> NewToken<B> {
    NewToken {
        q,
        k,
        v,
        cos,
        sin,
        angle: 1,
    }
}

fn steps<B: KernelBackend>(
    tokens: impl Iterator<Item = NewToken<B>>,
    mut cache: Option<Cache<B>>,
    step: impl Fn(NewToken<B>, Option<Cache<B>>) -> (Tensor<B, 2>, Cache<B>),
) -> Outputs {
    let mut outputs = vec![];
    for token in tokens {
        let (y, after) = step(token, cache);
        outputs.push(output("y", y));
        cache = Some(after);
    }
    let (keys, values) = cache.expect("tokens").filled();
    outputs.push(output("keys", keys));
    outputs.push(output("values", values));
    outputs
}

#[test]
fn attention_of_a_new_token_is_right() {
    with_device(|| {
        for dtype in dtypes() {
            for (b, h, g, p, r, len) in [
                (1, 4, 4, 64, 16, 0),
                (2, 4, 2, 16, 8, 255),
                (1, 3, 1, 40, 5, 700),
                (1, 2, 1, 160, 16, 300),
                (1, 2, 2, 64, 32, 2600),
            ] {
                let case = Case {
                    b,
                    h,
                    g,
                    p,
                    r,
                    len,
                    steps: 3,
                    window: None,
                    dtype,
                };
                case.check(&mut Random::new(len as u64 + 1));
            }
        }
    });
}

/// With and without sinks, from before a window is full until tokens have moved to a new place more than once.
#[test]
fn attention_within_a_window_is_right() {
    with_device(|| {
        for (window, sinks, len, steps) in [
            (4, 0, 2, 12),
            (3, 2, 0, 8),
            (6, 1, 300, 5),
            (5, 2, 4, 700),
            (1500, 3, 1600, 3),
        ] {
            let case = Case {
                b: 2,
                h: 4,
                g: 2,
                p: 16,
                r: 8,
                len,
                steps,
                window: Some(Window { window, sinks }),
                dtype: DType::F32,
            };
            case.check(&mut Random::new(len as u64 + 1));
        }
    });
}
