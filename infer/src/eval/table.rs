//! Results as lm-evaluation-harness prints them.

use comfy_table::CellAlignment::{Left, Right};

use super::metrics::Metric;
use super::task::Task;
use crate::table::{Column, markdown};

const COLUMNS: [Column; 9] = [
    ("Tasks", Left),
    ("Version", Right),
    ("Filter", Left),
    ("n-shot", Right),
    ("Metric", Left),
    ("", Left),
    ("Value", Right),
    ("", Left),
    ("Stderr", Right),
];

/// The metrics of tasks as a table in Markdown. A task's name and version stand in the row of its first
/// metric only.
pub fn table(results: &[(Task, Vec<Metric>)]) -> String {
    let rows = results.iter().flat_map(|(task, metrics)| {
        let row = |(i, metric)| row(*task, i == 0, metric);
        metrics.iter().enumerate().map(row)
    });
    markdown(&COLUMNS, 0, rows)
}

fn row(task: Task, is_first: bool, metric: &Metric) -> [String; 9] {
    let of_task = |text: String| if is_first { text } else { String::new() };
    let direction = if metric.higher_is_better {
        "↑"
    } else {
        "↓"
    };
    let stderr = metric.stderr.map(|stderr| format!("{stderr:.4}"));
    [
        of_task(task.to_string()),
        of_task(task.version().to_string()),
        "none".into(),
        "0".into(),
        metric.name.clone(),
        direction.into(),
        format!("{:.4}", metric.value),
        "±".into(),
        stderr.unwrap_or("N/A".into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let metric = |name: &str, value, stderr, higher_is_better| Metric {
            name: name.to_owned(),
            value,
            stderr,
            higher_is_better,
        };
        let results = [
            (
                Task::LambadaOpenai,
                vec![
                    metric("acc", 0.25, Some(0.01234), true),
                    metric("perplexity", 1234.5, Some(20.0), false),
                ],
            ),
            (Task::Piqa, vec![metric("acc", 1.0, None, true)]),
        ];
        let expected = "\
|    Tasks     |Version|Filter|n-shot|  Metric  |   |  Value  |   |Stderr |
|--------------|------:|------|-----:|----------|---|--------:|---|------:|
|lambada_openai|      1|none  |     0|acc       |↑  |   0.2500|±  | 0.0123|
|              |       |none  |     0|perplexity|↓  |1234.5000|±  |20.0000|
|piqa          |      1|none  |     0|acc       |↑  |   1.0000|±  |    N/A|
";
        assert_eq!(table(&results), expected);
    }
}
