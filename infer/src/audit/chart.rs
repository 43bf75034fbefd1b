//! Curves of several models over the same places, as SVG.

use maud::{Markup, html};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
/// The margins around the curves: left, right, top and bottom.
const MARGINS: [f64; 4] = [64.0, 24.0, 16.0, 56.0];

/// The values of one model with their standard errors; `None` where a value is missing.
pub struct Curve {
    /// The name that is shown when the pointer is on the curve.
    pub name: String,
    /// A class of the page's style.
    pub class: String,
    /// One for each place.
    pub points: Vec<Option<(f64, f64)>>,
}

/// Draws `curves` over `places`, whose values lie between `low` and `high`.
pub fn chart(
    places: &[String],
    [low, high]: [f64; 2],
    axes: [&str; 2],
    curves: &[Curve],
) -> Markup {
    let [left, right, top, bottom] = MARGINS;
    let (width, height) = (WIDTH - left - right, HEIGHT - top - bottom);
    let steps = places.len().saturating_sub(1).max(1) as f64;
    let x = |i: usize| left + width * i as f64 / steps;
    let span = if high > low { high - low } else { 1.0 };
    let y = |value: f64| top + height * (1.0 - ((value - low) / span).clamp(0.0, 1.0));
    let ticks = ticks(low, high);
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(format!("{} by {}", axes[1], axes[0])) {
            @for tick in &ticks {
                line.grid x1=(left) x2=(WIDTH - right) y1=(px(y(*tick))) y2=(px(y(*tick))) {}
                text.end x=(left - 8.0) y=(px(y(*tick) + 4.0)) { (short(*tick)) }
            }
            @for (i, place) in places.iter().enumerate() {
                text.middle x=(px(x(i))) y=(HEIGHT - bottom + 20.0) { (place) }
            }
            text.middle x=(left + width / 2.0) y=(HEIGHT - 10.0) { (axes[0]) }
            @for curve in curves {
                g class=(curve.class) {
                    title { (curve.name) }
                    polyline points=(line(curve, x, y)) {}
                    @for (i, (value, error)) in curve.points.iter().enumerate().filter_map(|(i, p)| Some((i, (*p)?))) {
                        line x1=(px(x(i))) x2=(px(x(i))) y1=(px(y(value - error))) y2=(px(y(value + error))) {}
                        circle cx=(px(x(i))) cy=(px(y(value))) r="4" {
                            title { (curve.name) ", " (places[i]) ": " (format!("{value:.3} ± {error:.3}")) }
                        }
                    }
                }
            }
        }
    }
}

fn line(curve: &Curve, x: impl Fn(usize) -> f64, y: impl Fn(f64) -> f64) -> String {
    let points = curve.points.iter().enumerate();
    let points =
        points.filter_map(|(i, point)| Some(format!("{},{}", px(x(i)), px(y((*point)?.0)))));
    points.collect::<Vec<_>>().join(" ")
}

/// A coordinate to a tenth.
fn px(x: f64) -> String {
    format!("{x:.1}")
}

/// Round numbers from `low` to `high`, about five.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let span = high - low;
    if span.is_nan() || span <= 0.0 {
        return vec![low];
    }
    let decade = 10f64.powf((span / 5.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
    let step = steps.into_iter().find(|step| span / step <= 5.0);
    let step = step.unwrap_or(span);
    let first = (low / step).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// The text of a tick, without trailing zeros.
fn short(tick: f64) -> String {
    let text = format!("{tick:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let shown = |low, high| {
            let ticks = ticks(low, high);
            ticks.into_iter().map(short).collect::<Vec<_>>()
        };
        assert_eq!(shown(0.0, 1.0), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(shown(23.0, 61.0), ["30", "40", "50", "60"]);
        assert_eq!(shown(2.0, 2.0), ["2"]);
        assert!(ticks(f64::NAN, 1.0).len() == 1);
    }

    #[test]
    fn every_element_is_closed() {
        let curve = Curve {
            name: "a < b".into(),
            class: "teacher".into(),
            points: vec![Some((0.5, 0.1)), None, Some((1.5, 0.1))],
        };
        let places = ["256", "512", "1024"].map(str::to_owned);
        let svg = chart(&places, [0.0, 1.0], ["tokens", "share"], &[curve]).into_string();
        for element in ["line", "polyline", "circle", "text", "g", "title", "svg"] {
            let opened = svg.matches(&format!("<{element} ")).count()
                + svg.matches(&format!("<{element}>")).count();
            assert_eq!(
                opened,
                svg.matches(&format!("</{element}>")).count(),
                "{element}"
            );
        }
        assert_eq!(svg.matches("<circle ").count(), 2);
        assert!(svg.contains("a &lt; b") && !svg.contains("NaN"));
        // A value beyond the axis is drawn at its end.
        assert!(svg.contains("616.0,16.0"), "{svg}");
    }
}
