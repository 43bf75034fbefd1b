mod streams;

use serde_json::json;
use tempfile::TempDir;

use self::streams::streamed;
use super::fixtures::{
    added_token, changed_tokenizer, like_bert, like_codegen, like_llama, like_llama3,
    like_sentencepiece, phi_tiny, tokenizer_of,
};
use super::*;
use crate::fixtures::{asset, write};
use crate::source::{Documents, source_files};

/// Blanks, line ends, scripts without blanks, emoji, contractions: all the cases in which a token
/// might reach across a cut.
const ODD: &str = "It's  the   best\t\tof \n\n times, we'll\u{a0}say \u{3000}\u{2003} 12 345  !? x\r\n  \
    y 漢字 かな 🦀🦀  👩\u{200d}👩\u{200d}👧 e\u{301}\u{85}z\u{1c}q \t \n 's 'll ' s\n\n\n\nend   ";

#[test]
fn the_ids_are_those_of_the_reference() {
    let tokenizer = phi_tiny();
    let text = "It was the best of times";
    // By Hugging Face's `PreTrainedTokenizerFast` on the same file.
    let ids = [1931, 355, 260, 1283, 269, 1754];
    assert_eq!(tokenizer.encode(text).unwrap(), ids);
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    assert_eq!(tokenizer.vocab_size(), 4096);
    assert_eq!(tokenizer.end_of_text(), Some(0));
    assert_eq!(
        tokenizer.hash(),
        "03295a6bcb20bf27ff2e32634d663a6dc746ea4e92ba37d46e12db8368288e51"
    );
}

#[test]
fn a_batch_is_its_texts_one_by_one() {
    let tokenizer = phi_tiny();
    let texts = ["", "one", ODD, "", "two  "];
    let batch = tokenizer.encode_batch(&texts).unwrap();
    assert_eq!(batch.len(), texts.len());
    for (text, ids) in texts.iter().zip(batch) {
        assert_eq!(tokenizer.encode(text).unwrap(), ids);
        assert_eq!(tokenizer.decode(&ids).unwrap(), *text);
    }
}

#[test]
fn the_bytes_of_tokens_are_those_of_their_text() {
    for tokenizer in [phi_tiny(), like_codegen()] {
        let ids = tokenizer.encode(ODD).unwrap();
        let bytes = ids.iter().map(|&id| tokenizer.token_bytes(id).unwrap());
        assert_eq!(String::from_utf8(bytes.flatten().collect()).unwrap(), ODD);
        // Some of the tokens are parts of characters.
        let parts = |&id: &u32| String::from_utf8(tokenizer.token_bytes(id).unwrap()).is_err();
        assert!(ids.iter().any(parts));
        let end_of_text = tokenizer.end_of_text().unwrap();
        let bytes = tokenizer.token_bytes(end_of_text).unwrap();
        assert_eq!(bytes, END_OF_TEXT.as_bytes());
        let beyond = tokenizer.vocab_size() as u32;
        assert_eq!(tokenizer.token_bytes(beyond), None);
    }
}

/// Text without blanks of several kinds: minified code, base64, ideographs, digits.
const UNBROKEN: &str = "{\"a1\":[1,22,333],\"it's\":\"don't_stop\"};x=(a<b)?c:d.e('ll');QmFzZTY0L3Rlc3Q+K2Z\
    vbw==漢字、かな。한국어？カタカナ１２３naïveété!!..'s''t9's,e\u{301}\u{302}.z\u{661}\u{662}a";

/// What no pieces are made of.
fn encode_whole(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let encoding = tokenizer.inner.encode_fast(text, false).unwrap();
    encoding.get_ids().to_vec()
}

fn encode_pieces(tokenizer: &Tokenizer, text: &str, piece_bytes: usize) -> Vec<u32> {
    let inside = |text: &str, place| tokenizer.is_inside_added_token(text, place);
    let pieces = pieces(text, piece_bytes, inside);
    let ids = pieces
        .map(|piece| tokenizer.encode_piece(&tokenizer.inner, &text[..piece.start], &text[piece]));
    ids.collect::<Result<Vec<_>>>().unwrap().concat()
}

#[test]
fn pieces_have_the_ids_of_the_whole() {
    let files = source_files(&[asset("text/pd-validation.json.gz")]).unwrap();
    let documents = Documents::new(files);
    let mut text: String = documents.take(2).map(|text| text.unwrap() + ODD).collect();
    text.truncate(text.floor_char_boundary(50_000));
    let unbroken = UNBROKEN.repeat(3);
    let all = [
        phi_tiny(),
        like_codegen(),
        like_llama(),
        like_sentencepiece(),
        like_llama3(),
        changed_tokenizer(|json| json["pre_tokenizer"]["add_prefix_space"] = true.into()),
        changed_tokenizer(|json| json["normalizer"] = json!({ "type": "NFC" })),
    ];
    for (i, tokenizer) in all.iter().enumerate() {
        assert_eq!(tokenizer.independent_pieces, i < 2);
        for text in [ODD, &text, &unbroken] {
            let whole = encode_whole(tokenizer, text);
            for piece_bytes in [0, 1, 2, 3, 10, 1000] {
                if i >= 2 && piece_bytes < 1000 && text.len() > 10_000 {
                    continue; // Each piece is encoded with a kilobyte before it.
                }
                let ids = encode_pieces(tokenizer, text, piece_bytes);
                assert!(ids == whole, "tokenizer {i}, pieces of {piece_bytes} bytes");
            }
        }
    }
}

#[test]
fn pieces_are_the_text_and_not_too_long() {
    let none = |_: &str, _| false;
    for text in [ODD, UNBROKEN] {
        for piece_bytes in 1..40 {
            let pieces: Vec<_> = pieces(text, piece_bytes, none).collect();
            let joined: String = pieces.iter().map(|piece| &text[piece.clone()]).collect();
            assert_eq!(joined, text);
        }
    }
    let longest = |text: &str| pieces(text, 100, none).map(|piece| piece.len()).max();
    assert!(longest(&"word ".repeat(10_000)) <= Some(105));
    // Without a blank, where a word ends; in a run, anywhere.
    let words = "word,12".repeat(100_000);
    let first: Vec<_> = pieces(&words, 100, none).take(5000).collect();
    assert!(first.iter().all(|piece| piece.len() <= 110));
    for run in ["a", "é", "1", "\u{301}", " ", "\n", "🦀"] {
        let run = run.repeat(1 << 20);
        assert!(longest(&run) <= Some(100 + pieces::RUN_BYTES + 4));
    }
}

/// A run that has to be cut anywhere is still the same text, with all kinds of tokenizers.
#[test]
fn a_long_run_is_encoded_without_loss() {
    for tokenizer in [
        phi_tiny(),
        like_llama(),
        like_sentencepiece(),
        like_llama3(),
    ] {
        for unit in ["a", "é", "🦀", "\u{301}"] {
            let run = format!("the {}", unit.repeat(2 * pieces::RUN_BYTES));
            let ids = tokenizer.encode(&run).unwrap();
            assert!(tokenizer.decode(&ids).unwrap() == run, "{unit:?}");
        }
    }
}

#[test]
fn no_piece_ends_inside_an_added_token() {
    let phrase =
        changed_tokenizer(|json| json["added_tokens"] = json!([added_token(4096, "of times")]));
    let long = "of times".repeat(PIECE_BYTES / 4);
    let ids = phrase.encode(&long).unwrap();
    assert!(ids.iter().all(|&id| id == 4096), "{ids:?}");
    // One that takes the blanks beside it.
    let greedy = changed_tokenizer(|json| {
        json["added_tokens"] = json!([added_token(4096, "<x>")]);
        json["added_tokens"][0]["rstrip"] = true.into();
    });
    let text = "word <x>   word<x> a ".repeat(100);
    let whole = encode_whole(&greedy, &text);
    assert_eq!(encode_pieces(&greedy, &text, 1), whole);
}

#[test]
fn encoding_ends_when_it_is_stopped() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let tokenizer = phi_tiny();
    let text = "word ".repeat(4 * PIECE_BYTES);
    let asked = AtomicUsize::new(0);
    let stopped = || asked.fetch_add(1, Ordering::Relaxed) >= 3;
    let error = tokenizer
        .encode_batch_until(&[&text], &stopped)
        .unwrap_err();
    assert!(matches!(error, DataError::Stopped), "{error}");
    assert!(asked.into_inner() < 20);
    let ids = tokenizer.encode_batch_until(&[&text], &|| false).unwrap();
    assert_eq!(ids, [encode_whole(&tokenizer, &text)]);
}

/// Dropout would give a text other ids each time.
#[test]
fn nothing_is_left_to_chance() {
    let random = changed_tokenizer(|json| json["model"]["dropout"] = 0.5.into());
    assert_eq!(random.encode(ODD).unwrap(), phi_tiny().encode(ODD).unwrap());
}

#[test]
fn end_of_text_written_in_a_text_is_only_text() {
    for tokenizer in [phi_tiny(), like_codegen()] {
        let end_of_text = tokenizer.end_of_text();
        assert_eq!(end_of_text, Some(0));
        let text = "one<|endoftext|>two <|endoftext|>";
        let ids = tokenizer.encode(text).unwrap();
        assert!(!ids.contains(&0), "{ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!(tokenizer.decode(&[0]).unwrap(), END_OF_TEXT);
    }
}

#[test]
fn truncation_and_padding_in_the_file_are_not_obeyed() {
    let tokenizer = changed_tokenizer(|json| {
        json["truncation"] = json!({
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
        });
        json["padding"] = json!({
            "strategy": { "Fixed": 100 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
        });
    });
    assert_eq!(
        tokenizer.encode("It was the best of times").unwrap().len(),
        6
    );
}

#[test]
fn what_is_no_tokenizer_is_an_error() {
    let folder = TempDir::new().unwrap();
    let missing = Tokenizer::from_folder(&folder).err().unwrap();
    assert!(matches!(missing, DataError::Io { .. }), "{missing}");
    for json in ["", "{}", "[1, 2", "\u{0}\u{1}"] {
        let path = write(&folder, "tokenizer.json", json);
        let error = Tokenizer::from_file(path).err().unwrap();
        assert!(matches!(error, DataError::Tokenizer { .. }), "{error}");
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
}

/// A model can make any ids: bytes in any order, alone and among pieces.
#[test]
fn bytes_that_are_no_text_become_replacement_characters() {
    let tokenizer = like_llama();
    let id = |token: &str| tokenizer.inner.token_to_id(token).unwrap();
    let [crab, part, the] = [
        ["<0xF0>", "<0x9F>", "<0xA6>", "<0x80>"].map(id).to_vec(),
        vec![id("<0x80>")],
        vec![id("\u{2581}the")],
    ];
    for (ids, text) in [
        ([&crab[..], &the].concat(), "🦀 the"),
        ([&the[..], &crab[..2], &the].concat(), "the\u{fffd} the"),
        (
            [&the[..], &part, &crab, &part].concat(),
            "the\u{fffd}🦀\u{fffd}",
        ),
        ([&the[..], &crab[..3]].concat(), "the\u{fffd}"),
        ([&[9999][..], &the, &[9999], &the].concat(), "the the"),
    ] {
        assert_eq!(streamed(&tokenizer, &ids), text);
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
    for tokenizer in [like_llama(), like_sentencepiece(), like_bert()] {
        for seed in 0..20_u32 {
            let ids: Vec<u32> = (0..200_u32)
                .map(|i| (i + 1).wrapping_mul(2_654_435_761).wrapping_add(seed * 977) >> 8)
                .map(|x| x % 320)
                .collect();
            assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids).unwrap());
        }
    }
}

/// In a chat, and nowhere else, the name of a special token is the token.
#[test]
fn a_chat_has_special_tokens() {
    let tokenizer = phi_tiny();
    let end = tokenizer.end_of_text().unwrap();
    let text = format!("It was{END_OF_TEXT}\nthe best{END_OF_TEXT}");
    let parts = ["It was", "\nthe best"].map(|part| tokenizer.encode(part).unwrap());
    let chat = [&parts[0][..], &[end], &parts[1], &[end]].concat();
    assert_eq!(tokenizer.encode_chat(&text).unwrap(), chat);
    assert_eq!(tokenizer.decode(&chat).unwrap(), text);
    assert!(!tokenizer.encode(&text).unwrap().contains(&end));
    assert_eq!(tokenizer.encode_chat("").unwrap(), [0_u32; 0]);
    // A long one, in pieces, has the same ids.
    let long = tokenizer.encode_chat(&text.repeat(9000)).unwrap();
    assert_eq!(long, chat.repeat(9000));
    let stopped = tokenizer.encode_chat_until(&text, &|| true);
    assert!(matches!(stopped, Err(DataError::Stopped)));
}

#[test]
fn tokens_are_named_by_their_bytes_inside_a_text() {
    let tokenizer = like_llama();
    let bytes = |token: &str| {
        let id = tokenizer.inner.token_to_id(token).unwrap();
        tokenizer.token_bytes(id).unwrap()
    };
    assert_eq!(bytes("\u{2581}the"), b" the");
    assert_eq!(bytes("he"), b"he");
    assert_eq!(bytes("\u{2581}"), b" ");
    assert_eq!(bytes("\u{2581}\u{2581}"), b"  ");
    assert_eq!(bytes("<0x0A>"), b"\n");
    assert_eq!(bytes("<0xF0>"), [0xf0]);
    assert_eq!(bytes("é"), "é".as_bytes());
    // The bytes of ASCII letters are those of the letters, whose ids are larger.
    let id = |token: &str| tokenizer.inner.token_to_id(token).unwrap();
    assert!(tokenizer.repeats_bytes(id("a")) && !tokenizer.repeats_bytes(id("<0x61>")));
    assert!(!tokenizer.repeats_bytes(id("\u{2581}the")));
    let bert = like_bert();
    let all: Vec<_> = (0..8).map(|id| bert.token_bytes(id).unwrap()).collect();
    assert_eq!(all[1..5], [&b" the"[..], b" w", b"or", b"d"]);
    let byte_level = phi_tiny();
    assert!((0..4096).all(|id| !byte_level.repeats_bytes(id)));
}

/// Files on which the crate `tokenizers` panics, when it loads them or later.
#[test]
fn a_tokenizer_that_contradicts_itself_is_an_error() {
    let damage = |change: &dyn Fn(&mut serde_json::Value)| {
        let json = std::fs::read(asset("phi-tiny/tokenizer.json")).unwrap();
        let mut json = serde_json::from_slice(&json).unwrap();
        change(&mut json);
        json.to_string()
    };
    let prefix = damage(&|json| {
        json["model"]["continuing_subword_prefix"] = "a long prefix of pieces".into();
    });
    let precompiled = damage(&|json| {
        json["normalizer"] = json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" });
    });
    // The syntax breaks inside the decoder.
    let text = std::fs::read_to_string(asset("phi-tiny/tokenizer.json")).unwrap();
    let decoder = text.find("\"decoder\"").unwrap();
    let decoder = decoder + text[decoder..].find('{').unwrap() + 5;
    let cut = format!("{}!{}", &text[..decoder], &text[decoder..]);
    let folder = TempDir::new().unwrap();
    for json in [prefix, precompiled, cut] {
        let path = write(&folder, "tokenizer.json", json);
        let error = Tokenizer::from_file(path).err().unwrap().to_string();
        assert!(
            error.contains("tokenizer.json") && !error.contains('\n'),
            "{error}"
        );
    }
}
