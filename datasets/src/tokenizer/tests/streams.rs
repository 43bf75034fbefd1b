//! Text from ids that come one by one.

use super::*;

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

pub(super) fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let mut text = String::new();
    for &id in ids {
        text.extend(stream.push(id).unwrap());
    }
    text + &stream.finish().unwrap()
}

/// For tokenizers that are not byte-level: what is text comes out as the reference writes it, in whole
/// characters, and from any place on.
#[test]
fn text_of_every_kind_of_tokenizer_is_streamed() {
    let wordlevel = tokenizer_of(json!({
        "model": { "type": "WordLevel", "vocab": { "the": 0, "word": 1 }, "unk_token": "the" },
        "pre_tokenizer": { "type": "Whitespace" },
    }));
    let suffix = tokenizer_of(json!({
        "model": { "type": "BPE", "vocab": { "a": 0, "b</w>": 1, "a</w>": 2 }, "merges": [],
            "end_of_word_suffix": "</w>" },
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "decoder": { "type": "BPEDecoder", "suffix": "</w>" },
    }));
    let pieces = "the naïve  word 漢字 🦀\n é the";
    for (tokenizer, text) in [
        (like_llama(), pieces),
        (like_llama(), " two blanks"),
        (like_llama(), "\n🦀"),
        (like_sentencepiece(), pieces),
        (like_bert(), "the words. the word"),
        (wordlevel, "the word the"),
        (suffix, "ab aa b"),
    ] {
        let ids = tokenizer.encode(text).unwrap();
        let reference = tokenizer.inner.decode(&ids, false).unwrap();
        assert_eq!(streamed(&tokenizer, &ids), reference);
        assert_eq!(tokenizer.decode(&ids).unwrap(), reference);
        for cut in 0..=ids.len() {
            let (before, after) = ids.split_at(cut);
            let mut text = String::new();
            let mut first = tokenizer.stream();
            for &id in before {
                text.extend(first.push(id).unwrap());
            }
            assert!(reference.starts_with(&text), "{text:?} of {reference:?}");
            let mut second = tokenizer.stream_after(before);
            for &id in after {
                text.extend(second.push(id).unwrap());
            }
            assert_eq!(text + &second.finish().unwrap(), reference, "at {cut}");
        }
    }
}
