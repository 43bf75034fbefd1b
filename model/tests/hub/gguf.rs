//! Repositories of GGUF files.

use super::*;

/// A repository of one GGUF file is a model, and of several each has its name.
#[test]
fn gguf_files() {
    let cache = TempDir::new().expect("a folder");
    let hub = open(files(&["one.gguf"]));
    let online = with_cache(&hub, cache.path());
    let offline = |hub: &Hub| Hub {
        offline: true,
        ..hub.clone()
    };
    let nothing = offline(&online).locate(MODEL).expect_err("nothing cached");
    assert!(matches!(nothing, WeightsError::Offline { .. }));
    let file = online.locate(MODEL).expect("a model");
    assert!(file.ends_with(format!("snapshots/{REVISION}/one.gguf")));
    assert_eq!(fs::read(&file).unwrap(), files(&["one.gguf"])["one.gguf"]);
    let asked = hub.requests().len();
    let named = format!("{MODEL}:one.gguf");
    for hub in [&online, &offline(&online)] {
        assert_eq!(hub.locate(&named).expect("the same"), file);
    }
    assert_eq!(
        hub.requests().len(),
        asked,
        "what has a name is the cache's"
    );
    assert_eq!(online.locate(MODEL).expect("the same"), file);
    assert_eq!(
        hub.requests().len(),
        asked + 1,
        "only the list is asked for again"
    );
    assert_eq!(offline(&online).locate(MODEL).expect("the same"), file);
    let gone = Hub {
        endpoint: "http://127.0.0.1:1".into(),
        ..online
    };
    assert_eq!(gone.locate(MODEL).expect("the same"), file);

    let cache = TempDir::new().expect("a folder");
    let hub = open(files(&["a-Q4.gguf", "deep/a-Q8.gguf"]));
    let online = with_cache(&hub, cache.path());
    let message = |name: &str| {
        let error = online.locate(name).expect_err("no model");
        assert!(matches!(error, WeightsError::Fetch { .. }), "{error}");
        error.to_string()
    };
    for name in [MODEL.to_owned(), format!("{MODEL}:b.gguf")] {
        let said = message(&name);
        assert!(
            said.contains("a-Q4.gguf") && said.contains("deep/a-Q8.gguf"),
            "{said}"
        );
        assert!(said.contains("OWNER/NAME:"), "{said}");
    }
    let named = format!("{MODEL}:deep/a-Q8.gguf");
    let missing = offline(&online).locate(&named).expect_err("nothing cached");
    assert!(missing.to_string().contains(&named), "{missing}");
    for name in ["a-Q4.gguf", "deep/a-Q8.gguf"] {
        let file = online.locate(format!("{MODEL}:{name}")).expect("a file");
        assert!(file.ends_with(format!("snapshots/{REVISION}/{name}")));
        // Whichever is in the cache, the hub has several.
        assert!(message(MODEL).contains("several"));
    }

    // A model of the usual form stays one, and one without its weights says what there is.
    let names = ["config.json", "model.safetensors", "a.gguf"];
    for (names, is_whole) in [
        (&names[..], true),
        (&names[1..], true),
        (&[names[0], names[2]][..], false),
    ] {
        let cache = TempDir::new().expect("a folder");
        let hub = open(files(names));
        let found = with_cache(&hub, cache.path()).locate(MODEL);
        match found {
            Ok(place) => assert!(is_whole && place.is_file() != names.contains(&"config.json")),
            Err(error) => assert!(
                !is_whole && error.to_string().contains(":a.gguf"),
                "{error}"
            ),
        }
    }
}

/// The tags of llama.cpp and ollama, which are the ends of the files' names.
#[test]
fn gguf_tags() {
    let cache = TempDir::new().expect("a folder");
    let hub = open(files(&[
        "config.json",
        "m-Q4_K_M.gguf",
        "m-IQ4_XS.gguf",
        "m-F16.gguf",
        "deep/m-f16.gguf",
        "m-Q8_0-00001-of-00002.gguf",
        "m-Q8_0-00002-of-00002.gguf",
    ]));
    let online = with_cache(&hub, cache.path());
    let offline = Hub {
        offline: true,
        ..online.clone()
    };
    let named = |tag: &str| format!("{MODEL}:{tag}");
    let missing = offline.locate(named("Q4_K_M")).expect_err("nothing cached");
    assert!(matches!(missing, WeightsError::Offline { .. }));
    let file = online.locate(named("q4_k_m")).expect("a file");
    assert!(file.ends_with(format!("snapshots/{REVISION}/m-Q4_K_M.gguf")));
    let gone = Hub {
        endpoint: "http://127.0.0.1:1".into(),
        ..online.clone()
    };
    for hub in [&online, &offline, &gone] {
        assert_eq!(hub.locate(named("Q4_K_M")).expect("the same"), file);
    }

    for (tag, words) in [
        ("Q4_XS", ["ends in Q4_XS", "m-IQ4_XS.gguf"]),
        ("f16", ["m-F16.gguf", "deep/m-f16.gguf"]),
        ("Q8_0", ["m-Q8_0 is split into 2", "--merge"]),
        (
            "m-Q8_0-00001-of-00002.gguf",
            ["m-Q8_0 is split into 2", "--merge"],
        ),
    ] {
        let error = online.locate(named(tag)).expect_err("no model");
        assert!(matches!(error, WeightsError::Fetch { .. }), "{error}");
        let said = error.to_string();
        for word in words {
            assert!(said.contains(word), "{tag}: {said}");
        }
    }
    let asked = hub.requests();
    assert!(asked.iter().all(|path| !path.contains("m-Q8_0")));

    // The only model of a repository, in parts.
    let hub = open(files(&["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]));
    let cache = TempDir::new().expect("a folder");
    let error = with_cache(&hub, cache.path()).locate(MODEL);
    let said = error.expect_err("no model").to_string();
    assert!(said.contains("m is split into 2"), "{said}");
}
