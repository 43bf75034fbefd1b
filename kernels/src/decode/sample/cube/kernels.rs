//! The kernel and its launch.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::cube::launch_cache::{ARRAY, Described, Launcher, array, launch, optional, settings};
use crate::cube::output_pool::output;
use crate::cube::reduce::{FOLDERS, Fold, in_two_steps, of_cube};
use crate::decode::sample::{Choice, Warp};

/// Where no token is a score.
const NONE: i64 = -1;

/// Units of the cube, at most.
const UNITS: usize = 1024;

/// Rows of a launch, at most: each has its numbers among the arguments, so that none have to be copied to
/// the device first.
const ROWS: usize = 8;

/// A row's numbers, in this order.
#[derive(Clone, Copy)]
enum Number {
    Penalty,
    Temperature,
    TopK,
    LeftOut,
    MinP,
    Point,
}

const NUMBERS: usize = 6;

/// Where the likeliest token is taken, in place of a point.
const GREEDY: f32 = -1.0;

/// In the order of [`Number`]. What a row does without, another may ask the kernel for: then its number
/// leaves everything in.
fn numbers(choice: &Choice) -> [f32; NUMBERS] {
    let warp = choice.warp;
    let greedy = warp.is_greedy();
    [
        warp.repetition_penalty,
        if greedy { 1.0 } else { warp.temperature },
        if warp.top_k > 0 {
            warp.top_k as f32
        } else {
            f32::MAX
        },
        (1.0 - warp.top_p) as f32,
        warp.min_p,
        if greedy { GREEDY } else { choice.point as f32 },
    ]
}

/// A number of this cube's row.
#[cube]
fn number(of_rows: &Sequence<f32>, #[comptime] number: usize, #[comptime] rows: usize) -> f32 {
    let mut own = *of_rows.index(number);
    #[unroll]
    for row in 1..rows {
        if CUBE_POS == row {
            own = *of_rows.index(comptime!(row * NUMBERS + number));
        }
    }
    own
}

/// The fold of a number of every unit; `units` is a power of two.
#[cube]
fn folded<N: Numeric>(
    value: N,
    shared: &mut SharedMemory<N>,
    #[comptime] fold: Fold,
    #[comptime] units: usize,
) -> N {
    if comptime!(units >= FOLDERS) {
        in_two_steps(value, shared, fold, units)
    } else {
        of_cube(value, shared, fold, units)
    }
}

/// The compile-time parameters of the kernel: the operations that at least one row needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    units: usize,
    /// Tokens of a unit.
    tokens: usize,
    vocab_size: usize,
    rows: usize,
    greedy: bool,
    top_k: bool,
    top_p: bool,
    min_p: bool,
}

#[cube(launch_unchecked)]
fn choose_kernel(
    logits_bv: &Array<f32>,
    seen_bv: &mut ComptimeOption<Array<i32>>,
    chosen_b: &mut Array<i32>,
    numbers: &Sequence<f32>,
    v: usize,
    seen_row: usize,
    first_row: usize,
    #[comptime] plan: Plan,
) {
    let rows = comptime!(plan.rows);
    let penalty = number(numbers, comptime!(Number::Penalty as usize), rows);
    let temperature = number(numbers, comptime!(Number::Temperature as usize), rows);
    let top_k = number(numbers, comptime!(Number::TopK as usize), rows);
    let left_out = number(numbers, comptime!(Number::LeftOut as usize), rows);
    let min_p = number(numbers, comptime!(Number::MinP as usize), rows);
    let point = number(numbers, comptime!(Number::Point as usize), rows);
    let row = first_row + CUBE_POS;
    let unit = UNIT_POS as usize;
    let (units, tokens) = comptime!((plan.units, plan.tokens));
    let mut shared = SharedMemory::<f32>::new(units);
    let mut shared_ids = SharedMemory::<u32>::new(units);
    // A running sum goes over a unit's neighbouring tokens. Without one, units next to each other read tokens next to each
    // other.
    let next = comptime!(if plan.greedy { plan.units } else { 1 });
    let first = if comptime!(plan.greedy) {
        unit
    } else {
        unit * tokens
    };
    let none = 0xffff_ffffu32;

    // What no comparison can be trusted to find, NaN and infinities, by their bits. The first of them, as `Fault::of` counts.
    let mut broken = none.runtime();
    let mut most = f32::MIN.runtime();
    let mut scores = Array::<f32>::new(tokens);
    // Not negative infinity, which is below every score; such tokens are never chosen.
    let mut there = Array::<u32>::new(tokens);
    #[unroll(comptime!(tokens <= 64))]
    for i in 0..tokens {
        let token = first + i * next;
        scores[i] = f32::MIN.runtime();
        there[i] = 0u32;
        if token < comptime!(plan.vocab_size) {
            let mut logit = logits_bv[row * v + token];
            let bits = u32::reinterpret(logit);
            if (bits & 0x7fff_ffffu32) > 0x7f80_0000u32 || bits == 0x7f80_0000u32 {
                let mut fault = token as u32 * 2 + 1;
                if bits == 0x7f80_0000u32 {
                    fault += 1;
                }
                broken = min(broken, fault);
            } else if bits != 0xff80_0000u32 {
                #[comptime]
                match seen_bv {
                    ComptimeOption::Some(seen) => {
                        if seen[row * seen_row + token] != 0 {
                            if logit < 0.0 {
                                logit = max(logit * penalty, f32::MIN);
                            } else {
                                logit = min(logit / penalty, f32::MAX);
                            }
                        }
                    }
                    ComptimeOption::None => {}
                }
                scores[i] = logit;
                there[i] = 1u32;
                most = max(most, logit);
            }
        }
    }
    let broken = folded(broken, &mut shared_ids, Fold::Smallest, units);
    let most = folded(most, &mut shared, Fold::Largest, units);

    // The first of the likeliest.
    let mut candidate = none.runtime();
    #[unroll(comptime!(tokens <= 64))]
    for i in 0..tokens {
        if there[i] == 1 && scores[i] == most && candidate == none {
            candidate = (first + i * next) as u32;
        }
    }
    let likeliest = folded(candidate, &mut shared_ids, Fold::Smallest, units);
    let mut token = likeliest;

    if !comptime!(plan.greedy) {
        // How far each is below the likeliest, over the temperature: as bits, in order.
        let mut weights = Array::<f32>::new(tokens);
        let mut keys = Array::<u32>::new(tokens);
        #[unroll(comptime!(tokens <= 64))]
        for i in 0..tokens {
            let below = (most - scores[i]) / temperature;
            keys[i] = u32::reinterpret(below);
            weights[i] = 0.0;
            if there[i] == 1 {
                weights[i] = (-below).exp();
            }
        }

        if comptime!(plan.top_k) {
            // The smallest key that as many tokens do not exceed.
            let mut low = 0u32;
            let mut bit = 0x4000_0000u32;
            while bit > 0 {
                let trial = low + bit - 1;
                let mut count = 0.0f32;
                #[unroll(comptime!(tokens <= 64))]
                for i in 0..tokens {
                    if there[i] == 1 && keys[i] <= trial {
                        count += 1.0;
                    }
                }
                if of_cube(count, &mut shared, Fold::Sum, units) < top_k {
                    low += bit;
                }
                bit /= 2;
            }
            #[unroll(comptime!(tokens <= 64))]
            for i in 0..tokens {
                if keys[i] > low {
                    weights[i] = 0.0;
                }
            }
        }

        if comptime!(plan.top_p) {
            let mut own = 0.0f32;
            #[unroll(comptime!(tokens <= 64))]
            for i in 0..tokens {
                own += weights[i];
            }
            let threshold = left_out * of_cube(own, &mut shared, Fold::Sum, units);
            // The largest key such that it and those beyond it are more than may be left out.
            let mut low = 0u32;
            let mut bit = 0x4000_0000u32;
            while bit > 0 {
                let trial = low + bit;
                let mut beyond = 0.0f32;
                #[unroll(comptime!(tokens <= 64))]
                for i in 0..tokens {
                    if keys[i] >= trial {
                        beyond += weights[i];
                    }
                }
                if of_cube(beyond, &mut shared, Fold::Sum, units) > threshold {
                    low = trial;
                }
                bit /= 2;
            }
            #[unroll(comptime!(tokens <= 64))]
            for i in 0..tokens {
                if keys[i] > low {
                    weights[i] = 0.0;
                }
            }
        }

        if comptime!(plan.min_p) {
            #[unroll(comptime!(tokens <= 64))]
            for i in 0..tokens {
                if weights[i] < min_p {
                    weights[i] = 0.0;
                }
            }
        }

        // The running sum of the units' weights.
        let mut own = 0.0f32;
        #[unroll(comptime!(tokens <= 64))]
        for i in 0..tokens {
            own += weights[i];
        }
        shared[unit] = own;
        sync_cube();
        let mut distance = 1usize.runtime();
        while distance < units {
            let mut before = 0.0f32;
            if unit >= distance {
                before = shared[unit - distance];
            }
            sync_cube();
            shared[unit] += before;
            sync_cube();
            distance *= 2;
        }
        let target = point * shared[units - 1];
        let up_to = shared[unit];
        sync_cube();
        // Should rounding leave something behind the last unit, the last that has a token takes it.
        let mut mine = none.runtime();
        if own > 0.0 && up_to > target {
            mine = unit as u32;
        }
        let mut owner = of_cube(mine, &mut shared_ids, Fold::Smallest, units);
        if owner == none {
            let mut last = none.runtime();
            if own > 0.0 {
                last = comptime!(units as u32 - 1) - unit as u32;
            }
            owner =
                comptime!(units as u32 - 1) - of_cube(last, &mut shared_ids, Fold::Smallest, units);
        }
        let mut drawn = none.runtime();
        if owner == unit as u32 {
            let mut left = target - (up_to - own);
            let mut found = false.runtime();
            #[unroll(comptime!(tokens <= 64))]
            for i in 0..tokens {
                if weights[i] > 0.0 && !found {
                    drawn = (first + i) as u32;
                    found = left < weights[i];
                    left -= weights[i];
                }
            }
        }
        let drawn = of_cube(drawn, &mut shared_ids, Fold::Smallest, units);
        if point >= 0.0 {
            token = drawn;
        }
    }

    if unit == 0 {
        let mut id = i32::new(NONE);
        if broken != none {
            id -= broken as i32;
        } else if likeliest != none {
            id = token as i32;
            #[comptime]
            match seen_bv {
                ComptimeOption::Some(seen) => {
                    if token < comptime!(plan.vocab_size as u32) {
                        seen[row * seen_row + token as usize] = 1;
                    }
                }
                ComptimeOption::None => {}
            }
        }
        chosen_b[row] = id;
    }
}

thread_local! {
    /// By the plan, and whether there are tokens that were seen.
    static CHOOSE: Described<(Plan, bool)> = Described::default();
}

/// See [`sample`](crate::decode::sample::sample()); `seen`, which nothing else holds, is written to. Its rows may be padded, as
/// CUDA's are when they come from the host.
pub(super) fn choose<R: CubeRuntime>(
    logits: CubeTensor<R>,
    seen: Option<CubeTensor<R>>,
    vocab_size: usize,
    choices: &[Choice],
) -> CubeTensor<R> {
    let [b, v]: [usize; 2] = logits.meta.shape().dims();
    let client = logits.client.clone();
    let most = client.properties().hardware.max_units_per_cube as usize;
    let units = most.min(UNITS);
    // Sums halve them.
    let units = 1 << units.ilog2();
    let logits = into_contiguous(logits);
    let chosen = output(&logits, [b], DType::I32);
    let seen_row = seen.as_ref().map_or(0, |seen| seen.meta.strides()[0]);
    for (i, choices) in choices.chunks(ROWS).enumerate() {
        let any = |asks: fn(&Warp) -> bool| choices.iter().any(|choice| asks(&choice.warp));
        let plan = Plan {
            units,
            tokens: vocab_size.div_ceil(units),
            vocab_size,
            rows: if choices.len() == 1 { 1 } else { ROWS },
            greedy: !any(|warp| !warp.is_greedy()),
            top_k: any(|warp| warp.top_k > 0),
            top_p: any(|warp| warp.top_p < 1.0),
            min_p: any(|warp| warp.min_p > 0.0),
        };
        // Zeros stand for the numbers of absent rows, so that one kernel serves any number of rows.
        let mut numbers: Vec<f32> = choices.iter().flat_map(numbers).collect();
        numbers.resize(plan.rows * NUMBERS, 0.0);
        let settings = settings(units, AddressType::default());
        let mut launcher = Launcher::<R>::new(settings.clone());
        launcher.array(array(&logits), Type::new(DType::F32.into()));
        if let Some(seen) = &seen {
            launcher.array(array(seen), Type::new(DType::I32.into()));
        }
        launcher.array(array(&chosen), Type::new(DType::I32.into()));
        for number in &numbers {
            launcher.scalar(*number);
        }
        launcher.size(v);
        launcher.size(seen_row);
        launcher.size(i * ROWS);
        let describe = |(plan, given)| {
            let numbers = numbers.iter().map(|_| ()).collect();
            choose_kernel::ChooseKernel::<R>::new(
                settings,
                client.clone(),
                ARRAY,
                optional(given),
                ARRAY,
                numbers,
                (),
                (),
                (),
                plan,
            )
        };
        let kernel = CHOOSE.with(|known| known.get(&chosen, (plan, seen.is_some()), describe));
        let count = CubeCount::Static(choices.len() as u32, 1, 1);
        // SAFETY: units read and write tokens below `vocab_size`, which is at most `v`, in rows below `b`.
        unsafe { launch(launcher, count, kernel, &chosen) };
    }
    chosen
}
