//! What `train bench --profile` writes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// The rounding of microseconds in f64.
const ROUNDING: f64 = 1e-3;

/// An event's beginning and end.
fn times(event: &Value) -> (f64, f64) {
    let number = |key: &str| event[key].as_f64().expect("a number");
    (number("ts"), number("ts") + number("dur"))
}

/// Checks the trace at `path`, of these rows: that spans lie one in the other or one after the other, that ops and gaps
/// add up to no more than their step, and that both passes of an op are there.
pub fn check(path: &Path, rows: &[&str]) {
    let trace: Value = serde_json::from_slice(&fs::read(path).unwrap()).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("events");
    let mut names = vec![];
    let mut threads = BTreeMap::<_, Vec<&Value>>::new();
    for event in events {
        let number = |key: &str| event[key].as_u64().expect("a number");
        match event["ph"].as_str() {
            Some("M") => names.push(event["args"]["name"].as_str().expect("a name")),
            Some("X") => threads
                .entry((number("pid"), number("tid")))
                .or_default()
                .push(event),
            other => panic!("{other:?}: {event}"),
        }
    }
    assert_eq!(names.len(), rows.len());
    assert!(
        names
            .iter()
            .zip(rows)
            .all(|(name, row)| name.starts_with(row))
    );

    for ((process, thread), events) in &threads {
        let row = rows[*process as usize];
        let mut around: Vec<(f64, f64)> = vec![];
        for event in events {
            let (begin, end) = times(event);
            around.retain(|outer| outer.1 > begin + ROUNDING);
            let is_inside = around.iter().all(|outer| end <= outer.1 + ROUNDING);
            assert!(begin >= 0.0 && begin < end && is_inside, "{row}: {event}");
            around.push((begin, end));
        }
        let first = times(events[0]).0;
        let last = events
            .iter()
            .map(|event| times(event).1)
            .fold(0.0, f64::max);
        let is_outermost = |event: &&&Value| event["cat"] != "part" && event["cat"] != "region";
        let durations = events.iter().filter(is_outermost).map(|event| {
            let (begin, end) = times(event);
            end - begin
        });
        let sum: f64 = durations.sum();
        let rounding = events.len() as f64 * ROUNDING;
        assert!(sum <= last - first + rounding, "{row}, thread {thread}");
    }

    for (process, row) in rows.iter().enumerate() {
        let has = |name: &str| {
            let of_row = threads
                .iter()
                .filter(|((pid, _), _)| *pid == process as u64);
            let mut events = of_row.flat_map(|(_, events)| events);
            events.any(|event| event["name"] == name)
        };
        assert!(has("linear") && has("attention"), "{row}");
        assert_eq!(has("linear backward"), *row != "teacher", "{row}");
        assert_eq!(has("passes") && has("update"), *row != "teacher", "{row}");
    }
}
