//! The web page, and the paths that describe the server.

use burn::tensor::{Device, Int, Tensor};
use kernels::runtime::Flex;
use serde_json::json;

use crate::http::Server;
use crate::support::student_folder;
use crate::{PROMPT, greedy, teacher};

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let server = teacher();
    let page = server.get("/");
    assert_eq!(page.status, 200);
    assert!(page.headers.contains("content-type: text/html"));
    assert!(page.headers.contains("default-src 'none'"));
    for path in ["/", "/page.css", "/page.js", "/icon.svg"] {
        let file = server.get(path);
        assert_eq!(file.status, 200, "{path}");
        let body = file.body.replace("http://www.w3.org/2000/svg", "");
        assert!(!body.contains("http:") && !body.contains("https:") && !body.contains("//cdn"));
    }
}

#[test]
fn models_health_and_metrics_say_how_it_is() {
    let student = student_folder(&[2]);
    let server = Server::start(student.path(), &["--model-name", "owner/hybrid"]);
    assert_eq!(server.get("/health").json(), json!({"status": "ok"}));
    let list = server.get("/v1/models").json();
    assert_eq!(list["object"], "list");
    let model = &list["data"][0];
    assert_eq!(server.get("/v1/models/owner/hybrid").json(), *model);
    assert_eq!(
        (&model["id"], &model["object"]),
        (&json!("owner/hybrid"), &json!("model"))
    );
    // The sizes of states that it reports are those of real states.
    let memory = &model["infer"]["memory"];
    assert_eq!(memory["architecture"], "hybrid");
    let device = Device::<Flex>::default();
    let (_, hybrid) = model::load_any::<Flex>(student.path(), &device).unwrap();
    let mut state = hybrid.new_state(1, &device);
    assert_eq!(memory["model"]["fixed"], state.bytes());
    let ids = Tensor::<Flex, 2, Int>::from_ints([[5, 6, 7]], &device);
    hybrid.prefill(ids, &mut state);
    let per_token = memory["model"]["per_token"].as_u64().unwrap() as usize;
    let fixed = memory["model"]["fixed"].as_u64().unwrap() as usize;
    assert_eq!(state.bytes(), fixed + 3 * per_token);

    server.complete(greedy(PROMPT));
    server.post("{");
    let page = server.get("/metrics");
    let content_type = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(page.headers.contains(content_type), "{}", page.headers);
    assert!(page.body.ends_with("# EOF\n"), "{}", page.body);
    for described in [
        "# TYPE infer_generated_tokens counter",
        "# TYPE infer_slots gauge",
        "# TYPE infer_first_token_seconds histogram",
        "# TYPE infer_http_responses counter",
    ] {
        assert!(page.body.contains(described), "{described}: {}", page.body);
    }
    assert_eq!(server.metric("infer_slots"), 32.0);
    assert_eq!(server.metric("infer_sequences_waiting"), 0.0);
    assert!(server.metric("infer_first_token_seconds_sum") > 0.0);
    assert_eq!(server.metric("infer_prompt_tokens_total"), 6.0);
    assert_eq!(server.metric("infer_generated_tokens_total"), 8.0);
    assert_eq!(server.metric("infer_first_token_seconds_count"), 1.0);
    let ok = "infer_http_responses_total{path=\"/v1/completions\",code=\"200\"}";
    let wrong = "infer_http_responses_total{path=\"/v1/completions\",code=\"400\"}";
    assert_eq!((server.metric(ok), server.metric(wrong)), (1.0, 1.0));
}
