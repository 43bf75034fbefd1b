//! Tables, as Markdown and as plain columns.

use comfy_table::presets::{ASCII_MARKDOWN, NOTHING};
use comfy_table::{CellAlignment, ColumnConstraint, Table, Width};

/// A column of a Markdown table: its heading, and how its cells are aligned.
pub(crate) type Column = (&'static str, CellAlignment);

/// A table in Markdown: headings centred, `padding` blanks on both sides of every cell.
pub(crate) fn markdown<const N: usize>(
    columns: &[Column; N],
    padding: u16,
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).add_rows(rows);
    table.set_header(columns.map(|(heading, _)| heading));
    for (column, (_, alignment)) in table.column_iter_mut().zip(columns) {
        column.set_cell_alignment(*alignment);
        column.set_padding((padding, padding));
        // The shortest rule in Markdown, for columns without a heading.
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(3)));
    }
    // The rule has the width of each column, but lacks Markdown's mark for right-aligned columns. Headings must be
    // centred as lm-evaluation-harness does it, with the odd blank on the right.
    let mut lines: Vec<String> = table.lines().collect();
    let rules: Vec<String> = lines[1].split('|').map(str::to_owned).collect();
    let cells = rules[1..].iter().zip(columns);
    let headings = cells.clone().map(|(rule, (heading, _))| {
        let width = rule.len();
        format!("{heading:^width$}|")
    });
    lines[0] = format!("|{}", headings.collect::<String>());
    let marked = cells.map(|(rule, (_, alignment))| match alignment {
        CellAlignment::Right => format!("{}:|", &rule[1..]),
        _ => format!("{rule}|"),
    });
    lines[1] = format!("|{}", marked.collect::<String>());
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
