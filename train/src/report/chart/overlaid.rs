//! Curves of several runs over each other, each run in its own colour.

use plotters::prelude::*;

use super::{Axis, draw, smoothed, token_unit};
use crate::report::ReportError;

/// The colours of runs that are drawn over each other, on a light and on a dark page.
const RUNS: [RGBColor; 8] = [
    RGBColor(0xD5, 0x52, 0x1D),
    RGBColor(0x2F, 0x85, 0xD6),
    RGBColor(0x2C, 0x9C, 0x5A),
    RGBColor(0xA3, 0x55, 0xC7),
    RGBColor(0xB8, 0x8A, 0x12),
    RGBColor(0xD0, 0x3F, 0x7E),
    RGBColor(0x1E, 0x9A, 0xA0),
    RGBColor(0x8A, 0x8F, 0x98),
];

/// The colour of run number `place` of a list; longer lists repeat the colours.
fn colour(place: usize) -> RGBColor {
    RUNS[place % RUNS.len()]
}

/// The same as CSS writes it.
pub(in crate::report) fn colour_of(place: usize) -> String {
    let RGBColor(red, green, blue) = colour(place);
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// Curves of several runs over each other, against the tokens of each run, in the order of the runs. A run may have no
/// points. With `dots`, each point is marked.
///
/// `None` if there is no point.
pub(in crate::report) fn overlaid(
    curves: &[Vec<(u64, f64)>],
    y_label: &str,
    dots: bool,
) -> Result<Option<String>, ReportError> {
    let all = || curves.iter().flatten().filter(|point| point.1.is_finite());
    let (Some(first), Some(last)) = (
        all().map(|point| point.0).min(),
        all().map(|point| point.0).max(),
    ) else {
        return Ok(None);
    };
    let (unit, unit_name) = token_unit(last);
    let curves: Vec<Vec<_>> = (curves.iter())
        .map(|curve| {
            let finite = curve.iter().filter(|point| point.1.is_finite());
            let points: Vec<_> = finite
                .map(|(tokens, value)| (*tokens as f64 / unit, *value))
                .collect();
            match smoothed(&points) {
                // A single point has no moving average.
                smooth if !dots && !smooth.is_empty() => smooth,
                _ => points,
            }
        })
        .collect();
    let x = Axis::linear(first as f64 / unit, last as f64 / unit);
    let y = Axis::spanning(curves.iter().flatten().map(|point| point.1));
    draw((780, 540), x, y, [unit_name, y_label], |chart, _| {
        for (place, curve) in curves.into_iter().enumerate() {
            let colour = colour(place);
            if dots {
                let marks = curve.iter().map(|&at| Circle::new(at, 7, colour.filled()));
                chart.draw_series(marks)?;
            }
            chart.draw_series(LineSeries::new(curve, colour.stroke_width(4)))?;
        }
        Ok(())
    })
    .map(Some)
}
