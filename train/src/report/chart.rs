//! Curves as SVG.
//!
//! plotters' SVG backend rounds coordinates to whole units, so charts are drawn about twice as large as they are shown.
//! Its logarithmic axis labels only whole decades, and a loss curve often spans less than one. So the logarithm of a
//! value is placed on a linear axis instead, with ticks that this module chooses.

mod axis;
mod overlaid;

pub(super) use overlaid::{colour_of, overlaid};

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use self::axis::Axis;
use super::ReportError;
use crate::metrics::{Evaluation, StepMetrics};

// Placeholders: page.css gives each of these colours its real value, for light and for dark pages.
const INK: RGBColor = RGBColor(0x11, 0x11, 0x11);
const GRID: RGBColor = RGBColor(0xCC, 0xCC, 0xCC);
const STUDENT: RGBColor = RGBColor(0xDD, 0x55, 0x22);
const TEACHER: RGBColor = RGBColor(0x22, 0x77, 0xCC);

const FONT: f64 = 30.0;

/// The most points that are drawn of a curve: the eye cannot distinguish more.
const RESOLUTION: usize = 600;

/// The loss of one stage against the run's tokens: each step, and a smoothed curve over them.
///
/// `None` if the stage has no finite step.
pub(super) fn losses(steps: &[&StepMetrics], y_label: &str) -> Result<Option<String>, ReportError> {
    let finite = || steps.iter().filter(|step| step.loss.is_finite());
    let (Some(first), Some(last)) = (finite().next(), finite().next_back()) else {
        return Ok(None);
    };
    let (unit, unit_name) = token_unit(last.tokens);
    let points: Vec<_> = finite()
        .map(|step| (step.tokens as f64 / unit, step.loss))
        .collect();
    let x = Axis::linear(first.tokens as f64 / unit, last.tokens as f64 / unit);
    let y = Axis::spanning(points.iter().map(|point| point.1));
    let raw = extremes(&points);
    let smooth = smoothed(&points);
    draw((780, 540), x, y, [unit_name, y_label], |chart, _| {
        chart.draw_series(LineSeries::new(raw, STUDENT.mix(0.35).stroke_width(2)))?;
        chart.draw_series(LineSeries::new(smooth, STUDENT.stroke_width(5)))?;
        Ok(())
    })
    .map(Some)
}

/// Perplexity of student and teacher after each stage against the run's tokens.
///
/// `None` if nothing finite was measured.
pub(super) fn perplexities(evaluations: &[&Evaluation]) -> Result<Option<String>, ReportError> {
    let measured: Vec<_> = evaluations
        .iter()
        .filter(|e| {
            let both = [e.student_perplexity, e.teacher_perplexity];
            both.iter()
                .all(|perplexity| perplexity.is_finite() && *perplexity > 0.0)
        })
        .collect();
    let Some(last) = measured.last() else {
        return Ok(None);
    };
    let teacher = last.teacher_perplexity;
    let (unit, unit_name) = token_unit(last.tokens);
    // Room on the right for the last label.
    let x = Axis::linear(0.0, last.tokens as f64 / unit * 1.3);
    let right = x.range.end;
    // Room above for the first label, below for the teacher's.
    let y = Axis::spanning(measured.iter().flat_map(|e| {
        [
            1.3 * e.student_perplexity,
            e.student_perplexity,
            0.85 * teacher,
        ]
    }));
    let points: Vec<_> = measured
        .iter()
        .map(|e| (e.tokens as f64 / unit, e.student_perplexity))
        .collect();
    let labels = [unit_name, "perplexity, held-out text"];
    draw((1900, 760), x, y, labels, |chart, area| {
        let line = [0.0, right].map(|x| (x, teacher));
        chart.draw_series(DashedLineSeries::new(line, 14, 10, TEACHER.stroke_width(4)))?;
        chart.draw_series(LineSeries::new(points.clone(), STUDENT.stroke_width(4)))?;
        let dots = points
            .iter()
            .map(|&at| Circle::new(at, 9, STUDENT.filled()));
        chart.draw_series(dots)?;

        let mut lowest = i32::MIN;
        // Measurements within a stage are points without labels.
        let labelled = measured.iter().zip(&points);
        for (e, at) in labelled.filter(|(e, _)| e.step.is_none()) {
            let (left, middle) = chart.backend_coord(at);
            // Labels never overlap: each is at least a line below the one before.
            let top = (middle - 26).max(lowest);
            lowest = top + FONT as i32 + 4;
            let when = match &e.stage {
                None => "untrained".to_owned(),
                Some(stage) => format!("after {stage}"),
            };
            let ratio = e.student_perplexity / e.teacher_perplexity;
            let text = format!("{when}: {:.2} ({ratio:.2}×)", e.student_perplexity);
            let style = text_style(FONT, INK, HPos::Left, VPos::Center);
            area.draw(&Text::new(text, (left + 18, top), style))?;
        }
        let (right, line) = chart.backend_coord(&(right, teacher));
        let style = text_style(FONT, TEACHER, HPos::Right, VPos::Center);
        area.draw(&Text::new(
            format!("teacher: {teacher:.2}"),
            (right, line + 26),
            style,
        ))?;
        Ok(())
    })
    .map(Some)
}

/// One line for each of `series`, with its name at its end.
///
/// `None` if there is no finite point.
pub(crate) fn curves(
    series: &[(String, Vec<(f64, f64)>)],
    labels: [&str; 2],
) -> Result<Option<String>, ReportError> {
    let finite = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
        let finite = points.iter().filter(|(_, y)| y.is_finite());
        finite.copied().collect()
    };
    let series: Vec<_> = series.iter().map(|(name, of)| (name, finite(of))).collect();
    let all = || series.iter().flat_map(|(_, points)| points.iter().copied());
    if all().next().is_none() {
        return Ok(None);
    }
    let low = all().map(|(x, _)| x).fold(f64::INFINITY, f64::min);
    let high = all().map(|(x, _)| x).fold(f64::NEG_INFINITY, f64::max);
    // Room on the right for the names.
    let x = Axis::linear(low, high + 0.3 * (high - low).max(f64::MIN_POSITIVE));
    let ys: Vec<f64> = all().map(|(_, y)| y).collect();
    let y = Axis::spanning(ys.into_iter());
    draw((1900, 760), x, y, labels, |chart, area| {
        let colours = [STUDENT, TEACHER, INK];
        let mut taken: Vec<i32> = vec![];
        for ((name, points), colour) in series.iter().zip(colours.iter().cycle()) {
            chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(4)))?;
            let dots = points.iter().map(|&at| Circle::new(at, 7, colour.filled()));
            chart.draw_series(dots)?;
            let Some(end) = points.last() else { continue };
            let (right, mut top) = chart.backend_coord(end);
            // Names never overlap: each has the first free line below its end.
            let line = FONT as i32 + 4;
            while taken.iter().any(|other| (other - top).abs() < line) {
                top += 1;
            }
            taken.push(top);
            let style = text_style(FONT, *colour, HPos::Left, VPos::Center);
            area.draw(&Text::new(name.as_str(), (right + 18, top), style))?;
        }
        Ok(())
    })
    .map(Some)
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;
type Area<'b> = DrawingArea<SVGBackend<'b>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// A chart of `size` with axes and grid, filled in by `curves`.
fn draw(
    size: (u32, u32),
    x: Axis,
    y: Axis,
    [x_label, y_label]: [&str; 2],
    curves: impl for<'a, 'b> FnOnce(&mut Chart<'a, 'b>, &Area<'b>) -> Drawn,
) -> Result<String, ReportError> {
    let mut svg = String::new();
    let drawn = (|| {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .margin_right(28)
            .x_label_area_size(92)
            .y_label_area_size(128)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .axis_style(INK.mix(0.5))
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .label_style(text_style(FONT, INK, HPos::Left, VPos::Top))
            .axis_desc_style(text_style(FONT, INK, HPos::Left, VPos::Top))
            .x_desc(x_label)
            .y_desc(y_label)
            .draw()?;
        curves(&mut chart, &area)?;
        area.present()
    })();
    match drawn {
        Ok(()) => Ok(svg),
        Err(error) => Err(ReportError::Chart(error.to_string())),
    }
}

fn text_style(size: f64, colour: RGBColor, h: HPos, v: VPos) -> TextStyle<'static> {
    ("sans-serif", size)
        .with_color(colour)
        .into_text_style(&(0, 0))
        .pos(Pos::new(h, v))
}

/// The unit for an axis of up to `most` tokens, and the axis' name.
fn token_unit(most: u64) -> (f64, &'static str) {
    if most >= 1_000_000_000 {
        (1e9, "training tokens (billions)")
    } else if most >= 1_000_000 {
        (1e6, "training tokens (millions)")
    } else {
        (1e3, "training tokens (thousands)")
    }
}

/// The curve, with each group of neighbouring points reduced to its lowest and its highest point.
fn extremes(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= 2 * RESOLUTION {
        return points.to_vec();
    }
    let run = points.len().div_ceil(RESOLUTION);
    points
        .chunks(run)
        .flat_map(|run| {
            let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
            let low = run.iter().min_by(by_value);
            let high = run.iter().max_by(by_value);
            let mut both: Vec<_> = low.into_iter().chain(high).copied().collect();
            both.sort_by(|a, b| a.0.total_cmp(&b.0));
            both
        })
        .collect()
}

/// The moving average over a thirtieth of the curve, centred at each point.
///
/// Near the ends the window would have to shrink, so the curve begins and ends half a window from them.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let widest = points.len().div_ceil(60);
    let mut sums = vec![0.0];
    for (_, value) in points {
        sums.push(sums[sums.len() - 1] + value);
    }
    (0..points.len())
        .step_by(points.len().div_ceil(RESOLUTION).max(1))
        .filter_map(|centre| {
            let reach = widest.min(centre).min(points.len() - 1 - centre);
            let (from, to) = (centre - reach, centre + reach + 1);
            let mean = (sums[to] - sums[from]) / (to - from) as f64;
            (2 * reach >= widest).then_some((points[centre].0, mean))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: usize, loss: f64) -> StepMetrics {
        StepMetrics {
            stage: "any".to_owned(),
            step,
            tokens: 1024 * step as u64,
            loss,
            lr: 1e-3,
            grad_norm: 1.0,
            tokens_per_second: 5000.0,
            skipped: !loss.is_finite(),
            seconds: step as f64,
            ..StepMetrics::default()
        }
    }

    fn chart(losses_: impl IntoIterator<Item = f64>) -> Option<String> {
        let steps: Vec<_> = (1..).zip(losses_).map(|(n, loss)| step(n, loss)).collect();
        losses(&steps.iter().collect::<Vec<_>>(), "loss").unwrap()
    }

    #[test]
    fn smoothing_keeps_a_line_and_halves_noise() {
        let line: Vec<_> = (0..600)
            .map(|i| (f64::from(i), 2.0 * f64::from(i)))
            .collect();
        let smooth = smoothed(&line);
        assert_eq!(smooth.first().unwrap().0, 5.0);
        assert_eq!(smooth.last().unwrap().0, 594.0);
        for (x, y) in smooth {
            // Sums of 21 integers up to 1200 are exact.
            assert_eq!(y, 2.0 * x);
        }
        let noise: Vec<_> = (0..600).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        assert!(smoothed(&noise).iter().all(|(_, y)| (y - 0.5).abs() < 0.1));
        assert!(smoothed(&[]).is_empty());
    }

    #[test]
    fn thinning_keeps_the_extremes() {
        let mut points: Vec<_> = (0..100_000).map(|i| (f64::from(i), 1.0)).collect();
        points[54_321].1 = 9.0;
        points[54_322].1 = -9.0;
        let thin = extremes(&points);
        assert!(thin.len() <= 2 * RESOLUTION);
        assert!(thin.contains(&(54_321.0, 9.0)) && thin.contains(&(54_322.0, -9.0)));
        assert!(thin.is_sorted_by(|a, b| a.0 <= b.0));
    }

    #[test]
    fn any_curve_can_be_drawn() {
        assert_eq!(chart([]), None);
        assert_eq!(chart([f64::NAN, f64::INFINITY]), None);
        for curve in [
            vec![1.0],
            vec![0.0, 0.0],
            vec![f64::NAN, 3.0],
            vec![1e-30, 1e30],
            vec![-1.0, 1.0],
            vec![5.0; 5000],
        ] {
            let svg = chart(curve.clone()).unwrap();
            assert!(
                svg.contains("<polyline") && svg.ends_with("</svg>\n"),
                "{curve:?}"
            );
            assert!(!svg.contains("NaN"), "{curve:?}");
        }
    }

    #[test]
    fn perplexities_are_labelled_with_their_ratio() {
        let evaluation = |stage: Option<&str>, thousands: u64, student_perplexity| Evaluation {
            stage: stage.map(str::to_owned),
            step: None,
            tokens: 1000 * thousands,
            teacher_perplexity: 20.0,
            student_perplexity,
            tasks: Default::default(),
        };
        let before = evaluation(None, 0, 800.0);
        let diverged = evaluation(Some("bold"), 2, f64::NAN);
        let after = evaluation(Some("last"), 3, 25.0);
        let svg = perplexities(&[&before, &diverged, &after])
            .unwrap()
            .unwrap();
        assert!(svg.contains("untrained: 800.00 (40.00×)"));
        assert!(svg.contains("after last: 25.00 (1.25×)"));
        assert!(svg.contains("teacher: 20.00"));
        assert!(!svg.contains("after bold"));
        assert!(perplexities(&[&before]).unwrap().is_some());
        assert_eq!(perplexities(&[&diverged]).unwrap(), None);
    }
}
