//! Tables, as Markdown and as plain columns.

use comfy_table::presets::{ASCII_MARKDOWN, NOTHING};
use comfy_table::{Cell, CellAlignment, ColumnConstraint, Table, Width};

/// A column of a Markdown table: its heading, and how its cells are aligned.
pub(crate) type Column = (&'static str, CellAlignment);

/// A table in Markdown: headings centred, `padding` blanks on both sides of every cell.
pub(crate) fn markdown<const N: usize>(
    columns: &[Column; N],
    padding: u16,
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    let heading = |(name, _): &Column| Cell::new(name).set_alignment(CellAlignment::Center);
    table.load_style(ASCII_MARKDOWN);
    table.set_header(columns.iter().map(heading)).add_rows(rows);
    for (column, (_, alignment)) in table.column_iter_mut().zip(columns) {
        column.set_cell_alignment(*alignment);
        column.set_padding((padding, padding));
        // The shortest rule that Markdown knows, which headings without a name need.
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(3)));
    }
    // A colon at the right of a column's rule is Markdown's mark of numbers.
    let mut lines: Vec<String> = table.lines().collect();
    let rules = lines[1].trim_matches('|').split('|').zip(columns);
    let rules = rules.map(|(rule, (_, alignment))| match alignment {
        CellAlignment::Right => format!("{}:", &rule[1..]),
        _ => rule.to_owned(),
    });
    lines[1] = format!("|{}|", rules.collect::<Vec<_>>().join("|"));
    lines.join("\n") + "\n"
}

/// Names and what they stand for, in two columns.
pub(crate) fn pairs(rows: impl IntoIterator<Item = [String; 2]>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    table.trim_fmt() + "\n"
}
