//! The warpers against tables: most are small enough to check by hand, the probabilities were worked
//! out in 64-bit arithmetic from the definitions in `transformers`.

use std::collections::BTreeSet;

use infer::sampling::{
    Sampler, SamplingError, SamplingSettings, draw, likeliest, min_p, repetition_penalty,
    temperature, top_k, top_p,
};

const GONE: f32 = f32::NEG_INFINITY;

/// Probabilities .0948 .0128 .4248 .0211 .2007 .0004 .2007 .0448; in ascending order the ids are
/// 5 1 3 7 0 4 6 2, the cumulative probabilities .0004 .0132 .0344 .0791 .1739 .3746 .5752 1.
const LOGITS: [f32; 8] = [1.5, -0.5, 3.0, 0.0, 2.25, -4.0, 2.25, 0.75];

const ALL: &[usize] = &[0, 1, 2, 3, 4, 5, 6, 7];

/// The tokens that a warper leaves, which must keep their logits.
fn kept(logits: &[f32], warp: impl FnOnce(&mut [f32])) -> Vec<usize> {
    let mut warped = logits.to_vec();
    warp(&mut warped);
    let kept: Vec<usize> = (0..logits.len()).filter(|&i| warped[i] != GONE).collect();
    assert!(kept.iter().all(|&i| warped[i] == logits[i]));
    kept
}

fn settings() -> SamplingSettings {
    SamplingSettings {
        temperature: 1.0,
        ..SamplingSettings::default()
    }
}

/// The first `n` tokens of a sampler that sees the same logits every time.
fn tokens(settings: SamplingSettings, logits: &[f32], n: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(settings, logits.len(), &[]).unwrap();
    (0..n)
        .map(|_| sampler.choose(&mut logits.to_vec()).unwrap())
        .collect()
}

#[test]
fn repetition_penalty_divides_what_is_positive_and_multiplies_what_is_negative() {
    let mut logits = LOGITS;
    // 99 is outside the vocabulary, as ids of a foreign prompt could be.
    repetition_penalty(&mut logits, &BTreeSet::from([0, 1, 3, 5, 99]), 1.25);
    assert_eq!(logits, [1.2, -0.625, 3.0, 0.0, 2.25, -5.0, 2.25, 0.75]);

    let mut logits = [30.0, GONE, -1.0];
    repetition_penalty(&mut logits, &BTreeSet::from([0, 1, 2]), f32::MIN_POSITIVE);
    assert_eq!(logits[..2], [f32::MAX, GONE]);
}

#[test]
fn repetition_penalty_counts_a_token_once_from_prompt_and_text() {
    let settings = SamplingSettings {
        repetition_penalty: 2.0,
        ..SamplingSettings::default()
    };
    let mut sampler = Sampler::new(settings, 3, &[0, 0, 0]).unwrap();
    // 8 / 2 = 4 < 5: the penalty is applied once. Without it, 0 would win; applied three times, 8 / 8 would lose to
    // 1.5.
    assert_eq!(sampler.choose(&mut [8.0, 5.0, 1.5]), Ok(1));
    assert_eq!(sampler.choose(&mut [8.0, 5.0, 1.5]), Ok(0));
}

#[test]
fn temperature_divides_differences() {
    let mut logits = LOGITS;
    temperature(&mut logits, 0.5);
    assert_eq!(logits, [-3.0, -7.0, 0.0, -6.0, -1.5, -14.0, -1.5, -4.5]);

    let mut logits = [2.0, GONE, 1.0];
    temperature(&mut logits, 4.0);
    assert_eq!(logits, [0.0, GONE, -0.25]);
}

#[test]
fn the_smallest_temperature_is_greedy() {
    let mut logits = LOGITS;
    temperature(&mut logits, f32::from_bits(1));
    let mut expected = [GONE; 8];
    expected[2] = 0.0;
    assert_eq!(logits, expected);
}

#[test]
fn top_k_keeps_ties_with_the_kth() {
    let cases: [(usize, &[usize]); 8] = [
        (0, ALL),
        (1, &[2]),
        (2, &[2, 4, 6]),
        (3, &[2, 4, 6]),
        (4, &[0, 2, 4, 6]),
        (7, &[0, 1, 2, 3, 4, 6, 7]),
        (8, ALL),
        (100, ALL),
    ];
    for (k, expected) in cases {
        assert_eq!(kept(&LOGITS, |l| top_k(l, k)), expected, "k = {k}");
    }
}

#[test]
fn top_p_keeps_what_exceeds_one_minus_p() {
    let cases: [(f64, &[usize]); 10] = [
        (0.0, &[2]),
        (0.4, &[2]),
        (0.5, &[2, 6]),
        (0.62, &[2, 6]),
        (0.63, &[2, 4, 6]),
        (0.8, &[2, 4, 6]),
        (0.9, &[0, 2, 4, 6]),
        (0.95, &[0, 2, 4, 6, 7]),
        (0.99, &[0, 1, 2, 3, 4, 6, 7]),
        (1.0, ALL),
    ];
    for (p, expected) in cases {
        assert_eq!(kept(&LOGITS, |l| top_p(l, p)), expected, "p = {p}");
    }
}

#[test]
fn top_p_removes_the_token_that_just_reaches_the_threshold() {
    // Cumulative: 1/4 1/2 3/4 1. At p = 3/4 the first is at 1 - p and goes.
    assert_eq!(kept(&[0.0; 4], |l| top_p(l, 0.75)), [1, 2, 3]);
    assert_eq!(kept(&[0.0; 4], |l| top_p(l, 0.76)), [0, 1, 2, 3]);
    // 1 - 0.9 is below 0.1 in f64, but rounds to the same f32.
    assert_eq!(
        kept(&[0.0; 10], |l| top_p(l, 0.9)),
        (1..10).collect::<Vec<_>>()
    );
}

/// Tokens that are too unlikely to be sorted are removed as if they had been sorted.
#[test]
fn top_p_is_its_definition_on_a_large_vocabulary() {
    let spread = |i: u32| (f64::from(i * 7919 % 10_007) / 10_007.0).powi(3) * 14.0;
    let logits: Vec<f32> = (0..5000).map(|i| spread(i) as f32).collect();
    let weights: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut ascending: Vec<usize> = (0..logits.len()).collect();
    ascending.sort_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    for p in [0.1, 0.5, 0.9, 0.99, 0.999_9] {
        let mut cumulative = 0.0;
        let mut expected = ascending.clone();
        expected.retain(|&token| {
            cumulative += weights[token] / sum;
            cumulative > 1.0 - p
        });
        expected.sort_unstable();
        assert_eq!(kept(&logits, |l| top_p(l, p)), expected, "p = {p}");
    }
}

#[test]
fn min_p_is_relative_to_the_likeliest() {
    let cases: [(f32, &[usize]); 7] = [
        (0.0, ALL),
        (0.01, &[0, 1, 2, 3, 4, 6, 7]),
        (0.1, &[0, 2, 4, 6, 7]),
        (0.2, &[0, 2, 4, 6]),
        (0.3, &[2, 4, 6]),
        (0.5, &[2]),
        (1.0, &[2]),
    ];
    for (p, expected) in cases {
        assert_eq!(kept(&LOGITS, |l| min_p(l, p)), expected, "p = {p}");
    }
    // Ties with the likeliest survive even a fraction of 1.
    assert_eq!(kept(&[1.0, 2.0, 2.0], |l| min_p(l, 1.0)), [1, 2]);
}

#[test]
fn warpers_leave_nothing_but_the_likeliest_of_a_single_candidate() {
    let logits = [GONE, 7.0, GONE];
    assert_eq!(kept(&logits, |l| top_k(l, 2)), [1]);
    assert_eq!(kept(&logits, |l| top_p(l, 0.5)), [1]);
    assert_eq!(kept(&logits, |l| min_p(l, 1.0)), [1]);
}

#[test]
fn the_chain_has_the_order_of_transformers() {
    // Penalty 1.5 on 2 and 5: 2 and -6. Temperature 0.8, top-k 5: 0 2 4 6 7 are left, at 1.875 2.5
    // 2.8125 2.8125 0.9375. Top-p 0.9 takes 7 with .0468, min-p 0.5 takes 0 with .1254 of .3202.
    let settings = SamplingSettings {
        repetition_penalty: 1.5,
        temperature: 0.8,
        top_k: 5,
        top_p: 0.9,
        min_p: 0.5,
        seed: 0,
    };
    let mut logits = LOGITS;
    let mut sampler = Sampler::new(settings, 8, &[2, 5]).unwrap();
    let token = sampler.choose(&mut logits).unwrap();
    let left: Vec<usize> = (0..8).filter(|&i| logits[i] != GONE).collect();
    assert_eq!(left, [2, 4, 6]);
    assert!(left.contains(&(token as usize)));
    // (2 - 2.25) / 0.8, exact in binary but for the division.
    assert_eq!([logits[2], logits[4], logits[6]], [-0.25 / 0.8, 0.0, 0.0]);
}

#[test]
fn greedy_takes_the_first_of_the_likeliest() {
    assert_eq!(likeliest(&[1.0, 3.0, 3.0]), Ok(1));
    let logits = [0.0, 2.0, 2.0, 1.0];
    assert_eq!(tokens(SamplingSettings::default(), &logits, 3), [1, 1, 1]);
    let top_1 = SamplingSettings {
        top_k: 1,
        ..settings()
    };
    assert_eq!(tokens(top_1, &logits, 3), [1, 1, 1]);
}

#[test]
fn draw_inverts_the_cumulative_distribution() {
    // Weights 1 2 0 5, in eighths.
    let logits = [1.0_f32, 2.0, 0.0, 5.0].map(f32::ln);
    let cases = [
        (0.0, 0),
        (0.12, 0),
        (0.13, 1),
        (0.37, 1),
        (0.38, 3),
        (1.0 - f64::EPSILON, 3),
    ];
    for (point, token) in cases {
        assert_eq!(draw(&logits, point), Ok(token), "at {point}");
    }
    assert_eq!(draw(&[0.0, GONE], 1.0 - f64::EPSILON), Ok(0));
}

#[test]
fn random_numbers_are_those_of_chacha8() {
    // The first 64-bit words of the key stream, over 2^64, times 1000; worked out from the cipher's
    // definition. What a seed gives must not change with a library, a compiler or a machine.
    for (seed, expected) in [(0, [709, 465, 699, 60]), (42, [681, 950, 427, 627])] {
        let settings = SamplingSettings { seed, ..settings() };
        assert_eq!(tokens(settings, &[0.0; 1000], 4), expected, "seed {seed}");
    }
}

#[test]
fn draws_follow_the_probabilities() {
    let n = 20_000;
    let mut counts = [0.0; 8];
    for token in tokens(settings(), &LOGITS, n) {
        counts[token as usize] += 1.0;
    }
    let sum: f64 = LOGITS.iter().map(|&l| f64::from(l).exp()).sum();
    for (count, logit) in counts.into_iter().zip(LOGITS) {
        let p = f64::from(logit).exp() / sum;
        // Five standard deviations of a binomial count.
        let tolerance = 5.0 * (n as f64 * p * (1.0 - p)).sqrt();
        assert!((count - n as f64 * p).abs() < tolerance, "{counts:?}");
    }
}

/// A product that overflows f32 must not look like a removed token.
#[test]
fn no_penalty_removes_a_token() {
    let seen = [0, 1, 2].into();
    let mut logits = [-1e30, 1e30, GONE];
    repetition_penalty(&mut logits, &seen, 1e30);
    assert_eq!(logits, [f32::MIN, 1.0, GONE]);
    let mut logits = [-1e30, 1e30, GONE];
    repetition_penalty(&mut logits, &seen, 1e-30);
    assert_eq!(logits, [-1.0, f32::MAX, GONE]);
}

#[test]
fn padded_entries_are_never_chosen() {
    let mut sampler = Sampler::new(SamplingSettings::default(), 2, &[]).unwrap();
    assert_eq!(sampler.choose(&mut [0.0, 1.0, 9.0, f32::NAN]), Ok(1));
}

#[test]
fn logits_that_are_no_scores_are_errors() {
    let choose = |mut logits: Vec<f32>| {
        Sampler::new(settings(), 9, &[])
            .unwrap()
            .choose(&mut logits)
    };
    let nan = choose(vec![0.0, f32::NAN]).unwrap_err();
    assert!(nan.to_string().contains("token 1 is NaN"), "{nan}");
    assert_eq!(
        choose(vec![f32::INFINITY]),
        Err(SamplingError::NotAScore {
            token: 0,
            logit: f32::INFINITY
        })
    );
    assert_eq!(choose(vec![GONE, GONE]), Err(SamplingError::NoToken));
    assert_eq!(choose(vec![]), Err(SamplingError::NoToken));
    assert_eq!(choose(vec![GONE, 0.0]), Ok(1));
}

#[test]
fn settings_without_meaning_are_errors() {
    type Change = fn(&mut SamplingSettings);
    let bad: [(&str, Change); 9] = [
        ("repetition-penalty", |s| s.repetition_penalty = 0.0),
        ("repetition-penalty", |s| s.repetition_penalty = f32::NAN),
        ("repetition-penalty", |s| {
            s.repetition_penalty = f32::INFINITY
        }),
        ("temperature", |s| s.temperature = -1.0),
        ("temperature", |s| s.temperature = f32::INFINITY),
        ("top-p", |s| s.top_p = 1.01),
        ("top-p", |s| s.top_p = f64::NAN),
        ("min-p", |s| s.min_p = -0.1),
        ("min-p", |s| s.min_p = 2.0),
    ];
    for (name, change) in bad {
        let mut settings = settings();
        change(&mut settings);
        let error = Sampler::new(settings, 8, &[]).err().expect(name);
        assert!(
            error.to_string().starts_with(&format!("{name} is ")),
            "{error}"
        );
    }
}
