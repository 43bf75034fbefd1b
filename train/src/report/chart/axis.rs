//! An axis that is linear or logarithmic, with round ticks.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// An axis with its ticks.
#[derive(Clone)]
pub(super) struct Axis {
    pub(super) range: Range<f64>,
    ticks: Vec<f64>,
    log: bool,
}

impl Axis {
    pub(super) fn linear(low: f64, high: f64) -> Self {
        // A single point still needs some width.
        let high = if high > low {
            high
        } else {
            low + low.abs().max(1.0)
        };
        Self {
            range: low..high,
            ticks: round_ticks(low, high),
            log: false,
        }
    }

    /// An axis with a margin around `values`. It is logarithmic if the values are positive and span at least a factor
    /// of three.
    pub(super) fn spanning(values: impl Iterator<Item = f64> + Clone) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        if low <= 0.0 || high < 3.0 * low {
            let margin = 0.04 * (high - low);
            return Self::linear(low - margin, high + margin);
        }
        let margin = (high / low).powf(0.04);
        let range = low / margin..high * margin;
        let decades = range.start.log10().floor() as i32..=range.end.log10().ceil() as i32;
        let steps: &[f64] = match high / low {
            ..20.0 => &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
            ..1e4 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let ticks = decades
            .flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)))
            .filter(|tick| range.contains(tick))
            .collect();
        Self {
            range,
            ticks,
            log: true,
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let place = |value: f64| if self.log { value.log10() } else { value };
        let [value, start, end] = [*value, self.range.start, self.range.end].map(place);
        from + (f64::from(to - from) * (value - start) / (end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(value: &f64) -> String {
        if *value != 0.0 && !(1e-3..1e5).contains(&value.abs()) {
            return format!("{value:.0e}");
        }
        // Ticks are round, so digits after the sixth decimal are rounding errors.
        let text = format!("{value:.6}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

/// About five round numbers from `low` to `high`.
fn round_ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let decade = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|step| step * decade)
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..)
        .map(|index| index as f64 * step)
        .take_while(|tick| *tick <= high)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_is_logarithmic_when_values_call_for_it() {
        let axis = Axis::spanning([2.0, 50.0].into_iter());
        assert!(axis.log);
        assert_eq!(axis.ticks, [2.0, 5.0, 10.0, 20.0, 50.0]);
        // On a logarithmic axis equal factors are equal distances: 10 is half-way from 1 to 100.
        let axis = Axis {
            range: 1.0..100.0,
            ..axis
        };
        assert_eq!(axis.map(&10.0, (0, 200)), 100);
        let axis = Axis::spanning([3.0, 5.0].into_iter());
        assert!(!axis.log);
        assert_eq!(axis.ticks, [3.0, 3.5, 4.0, 4.5, 5.0]);
        assert!(!Axis::spanning([-1.0, 5.0].into_iter()).log);
    }

    #[test]
    fn ticks_read_well() {
        for (value, text) in [
            (0.0, "0"),
            (0.1 + 0.2, "0.3"),
            (1500.0, "1500"),
            (2e6, "2e6"),
            (1e-5, "1e-5"),
        ] {
            assert_eq!(Axis::format(&value), text);
        }
    }
}
