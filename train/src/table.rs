//! Tables as text.

use comfy_table::{CellAlignment, Table, TableStyle};

/// A table in `style` whose first column is text and whose other columns are numbers, without a line's end.
pub(crate) fn table<const N: usize>(
    style: TableStyle,
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(style).set_header(header).add_rows(rows);
    finish(table)
}

/// As [`table`], in Markdown, with as many columns as `header` has.
pub(crate) fn markdown(header: Vec<String>, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(header).add_rows(rows);
    finish(table)
}

fn finish(mut table: Table) -> String {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}
