//! Results as lm-evaluation-harness prints them.

use super::metrics::Metric;
use super::task::Task;

const HEADERS: [&str; 9] = [
    "Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr",
];
/// Whether a column holds numbers, which end below each other.
const NUMBERS: [bool; 9] = [false, true, false, true, false, false, true, false, true];

/// The metrics of tasks as a table in Markdown, ready to be read as it is.
pub fn table(results: &[(Task, Vec<Metric>)]) -> String {
    let rows: Vec<[String; 9]> = results
        .iter()
        .flat_map(|(task, metrics)| {
            let row = |(i, metric)| row(*task, i == 0, metric);
            metrics.iter().enumerate().map(row)
        })
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([HEADERS[column].len(), 3]).max().unwrap_or(3)
    };
    let widths: [usize; 9] = std::array::from_fn(width);
    let line = |cell: &dyn Fn(usize) -> String| {
        let cells: Vec<String> = (0..HEADERS.len()).map(cell).collect();
        format!("|{}|\n", cells.join("|"))
    };
    let header = line(&|i| format!("{:^width$}", HEADERS[i], width = widths[i]));
    let rule = line(&|i| match NUMBERS[i] {
        true => format!("{:->width$}", ":", width = widths[i]),
        false => "-".repeat(widths[i]),
    });
    let body = rows.iter().map(|row| {
        line(&|i| match NUMBERS[i] {
            true => format!("{:>width$}", row[i], width = widths[i]),
            false => format!("{:<width$}", row[i], width = widths[i]),
        })
    });
    header + &rule + &body.collect::<String>()
}

fn row(task: Task, is_first: bool, metric: &Metric) -> [String; 9] {
    let of_task = |text: String| if is_first { text } else { String::new() };
    let stderr = metric.stderr.map(|it| format!("{it:.4}"));
    [
        of_task(task.to_string()),
        of_task(task.version().to_string()),
        "none".into(),
        "0".into(),
        metric.name.into(),
        if metric.higher_is_better {
            "↑"
        } else {
            "↓"
        }
        .into(),
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
        let metric = |name, value, stderr, higher_is_better| Metric {
            name,
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
