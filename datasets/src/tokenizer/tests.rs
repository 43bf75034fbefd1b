use serde_json::json;
use tempfile::TempDir;

use super::fixtures::{added_token, changed_tokenizer, like_codegen, phi_tiny};
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

#[test]
fn pieces_have_the_ids_of_the_whole() {
    let files = source_files(&[asset("text/pd-validation.json.gz")]).unwrap();
    let documents = Documents::new(files);
    let mut text: String = documents.take(2).map(|text| text.unwrap() + ODD).collect();
    text.truncate(text.floor_char_boundary(50_000));
    for tokenizer in [phi_tiny(), like_codegen()] {
        assert!(tokenizer.splits_at_blanks);
        for text in [ODD, &text] {
            let whole = tokenizer.encode_piece(text).unwrap();
            for piece_bytes in [0, 1, 2, 3, 10, 1000] {
                let ids: Vec<u32> = pieces(text, piece_bytes)
                    .flat_map(|piece| tokenizer.encode_piece(piece).unwrap())
                    .collect();
                assert!(ids == whole, "pieces of {piece_bytes} bytes");
            }
        }
    }
}

#[test]
fn pieces_are_the_text_and_not_too_long() {
    for piece_bytes in 1..40 {
        assert_eq!(pieces(ODD, piece_bytes).collect::<String>(), ODD);
    }
    let text = "word ".repeat(10_000);
    for piece in pieces(&text, 100) {
        assert!(piece.len() <= 105, "{}", piece.len());
    }
}

#[test]
fn a_tokenizer_whose_tokens_may_reach_over_blanks_is_not_given_pieces() {
    let prefix_space =
        changed_tokenizer(|json| json["pre_tokenizer"]["add_prefix_space"] = true.into());
    let no_pattern = changed_tokenizer(|json| json["pre_tokenizer"]["use_regex"] = false.into());
    let normalizer = changed_tokenizer(|json| json["normalizer"] = json!({ "type": "NFC" }));
    let phrase =
        changed_tokenizer(|json| json["added_tokens"] = json!([added_token(4096, "of times")]));
    for tokenizer in [prefix_space, no_pattern, normalizer] {
        assert!(!tokenizer.splits_at_blanks);
    }
    assert!(!phrase.splits_at_blanks);
    let long = "of times".repeat(PIECE_BYTES / 4);
    let ids = phrase.encode(&long).unwrap();
    assert!(ids.iter().all(|&id| id == 4096), "{ids:?}");
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

#[test]
fn a_stream_gives_whole_characters_and_the_whole_text() {
    let text = format!("{ODD} naïve 🦀 \u{fffd} 𝕏");
    for tokenizer in [phi_tiny(), like_codegen()] {
        let ids = tokenizer.encode(&text).unwrap();
        let mut stream = tokenizer.stream();
        let mut streamed = String::new();
        for &id in &ids {
            streamed.extend(stream.push(id).unwrap());
            assert!(text.starts_with(&streamed), "{streamed:?}");
        }
        assert_eq!(streamed + &stream.finish().unwrap(), text);
    }
}

#[test]
fn a_stream_waits_for_the_last_byte_of_a_character() {
    let tokenizer = phi_tiny();
    let ids = tokenizer.encode("🦀").unwrap();
    assert!(ids.len() > 1, "an emoji is one token here: {ids:?}");
    let (last, first) = ids.split_last().unwrap();
    let mut stream = tokenizer.stream();
    for &id in first {
        assert_eq!(stream.push(id).unwrap(), None);
    }
    assert_eq!(stream.push(*last).unwrap().as_deref(), Some("🦀"));
    assert_eq!(stream.finish().unwrap(), "");

    let mut broken_off = tokenizer.stream();
    broken_off.push(1931).unwrap();
    for &id in first {
        assert_eq!(broken_off.push(id).unwrap(), None);
    }
    assert_eq!(
        broken_off.finish().unwrap(),
        tokenizer.decode(first).unwrap()
    );
}

/// A stream continues where another one stopped, at any cut.
#[test]
fn two_streams_are_the_whole_text() {
    let tokenizer = phi_tiny();
    let padding = 4100;
    for text in ["a 🦀é", "𝕏"] {
        let mut ids = tokenizer.encode(text).unwrap();
        ids.insert(ids.len() - 1, padding);
        for cut in 0..=ids.len() {
            let (before, after) = ids.split_at(cut);
            let mut streamed = String::new();
            let mut first = tokenizer.stream();
            for &id in before {
                streamed.extend(first.push(id).unwrap());
            }
            assert!(text.starts_with(&streamed), "{streamed:?}");
            let mut second = tokenizer.stream_after(before);
            for &id in after {
                streamed.extend(second.push(id).unwrap());
            }
            assert_eq!(streamed + &second.finish().unwrap(), text, "at {cut}");
        }
    }
}

/// Bytes that cannot become a character are returned at once, so that the time of a step does not
/// grow with the length of the stream.
#[test]
fn what_is_no_character_is_given_out_at_once() {
    let tokenizer = phi_tiny();
    let is_part = |&id: &u32| tokenizer.token_bytes(id).as_deref() == Some(&[0x80][..]);
    let part = (0..4096).find(is_part).unwrap();
    let mut stream = tokenizer.stream();
    for _ in 0..10 {
        assert_eq!(stream.push(part).unwrap().as_deref(), Some("\u{fffd}"));
    }
    let mut after = tokenizer.stream_after(&[part; 5]);
    assert_eq!(after.push(1931).unwrap().as_deref(), Some("It"));
}

/// An untrained model generates any ids: parts of characters in any order, and ids of the padding
/// after the vocabulary.
#[test]
fn a_stream_of_arbitrary_ids_is_their_text() {
    let tokenizer = phi_tiny();
    for seed in 0..20_u32 {
        let ids: Vec<u32> = (0..200_u32)
            .map(|i| (i + 1).wrapping_mul(2_654_435_761).wrapping_add(seed * 977) >> 8)
            // Of the first 257 entries most are single bytes.
            .map(|x| if x % 3 == 0 { x % 257 } else { x % 4200 })
            .collect();
        let mut stream = tokenizer.stream();
        let mut streamed = String::new();
        for &id in &ids {
            streamed.extend(stream.push(id).unwrap());
        }
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, tokenizer.decode(&ids).unwrap());
    }
}
