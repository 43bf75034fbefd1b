//! The findings on one page.

use maud::{Markup, PreEscaped, html};

use super::classes::Class;
use super::table::{HEADER, mean};
use super::{Findings, SHOWN};
use crate::report::{ReportError, chart, document, heatmap};

impl Findings {
    /// The page as HTML.
    pub(super) fn page(&self) -> Result<String, ReportError> {
        let title = "Structured approximations of attention matrices";
        let body = html! {
            h1 { (title) }
            p.lead { (self.lead()) }
            (self.tables())
            (self.curves()?)
            (self.pictures()?)
        };
        Ok(document(title, &body))
    }

    fn tables(&self) -> Markup {
        html! {
            @for section in self.sections() {
                h2 { (section.title) }
                div.wide {
                    table {
                        tr { @for name in HEADER { th { (name) } } }
                        @for row in &section.rows {
                            tr { @for cell in row.cells() { td { (cell) } } }
                        }
                    }
                }
            }
        }
    }

    /// The largest of the states.
    fn most(&self) -> usize {
        self.settings
            .states
            .iter()
            .copied()
            .max()
            .unwrap_or_default()
    }

    /// Distances against steps, of the first seed.
    fn curves(&self) -> Result<Markup, ReportError> {
        let n = self.most();
        let by_steps = Class::ALL.iter().filter(|class| class.is_by_steps());
        let series = by_steps.filter_map(|class| {
            let found = *self.of(*class, n).first()?;
            // A logarithmic axis has no 0.
            let points = found.trace.iter().skip(1);
            let points = points.map(|point| (point.step as f64, mean(&point.distances)));
            Some((class.title().to_owned(), points.collect()))
        });
        let series: Vec<_> = series.collect();
        let Some(svg) = chart::curves(&series, ["steps", "mean distance"])? else {
            return Ok(html! {});
        };
        Ok(html! {
            h2 { "On the way" }
            figure {
                div.wide { (PreEscaped(svg)) }
                figcaption { "The mean distance of the fits with state " (n) ", by the steps that they have taken." }
            }
        })
    }

    /// Some matrices beside their approximations by the largest state.
    fn pictures(&self) -> Result<Markup, ReportError> {
        let n = self.most();
        let size = SHOWN.min(self.settings.context);
        let image = |matrix: &[f32]| heatmap::picture(size, size, matrix);
        let mut figures = vec![];
        for (at, (target, attention)) in self.shown.iter().enumerate() {
            let of = &self.targets[*target];
            let mut images = vec![("attention".to_owned(), image(attention)?)];
            for class in Class::ALL {
                let Some(found) = self.of(*class, n).first().copied() else {
                    continue;
                };
                let (Some(matrix), Some(point)) = (found.shown.get(at), found.trace.last()) else {
                    continue;
                };
                let part = 100.0 * point.distances[*target] / of.norm;
                images.push((format!("{}: {part:.1}%", class.title()), image(matrix)?));
            }
            let place = of.place;
            figures.push(html! {
                figure {
                    h3 { "Layer " (place.layer) ", head " (place.head) ", sequence " (place.sequence) }
                    div.pair {
                        @for (name, image) in &images {
                            div { h4 { (name) } img src=(image) alt=(name); }
                        }
                    }
                }
            });
        }
        Ok(html! {
            h2 { "Matrices" }
            p {
                "The first " (size) " tokens. Beside each approximation, with state " (n) " where it has one, its distance \
                 in percent of the whole matrix' norm."
            }
            div.heads { @for figure in figures { (figure) } }
        })
    }
}
