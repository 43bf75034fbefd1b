//! Matrices as images.
//!
//! The entries of attention span orders of magnitude: one key may have nearly all of a row, or all keys may have a
//! hundredth each. So the colour follows `log(1 + |v| / 0.001)`, which is linear near 0 and logarithmic above, over the
//! fixed range from -1 to 1. A softmax is within that range, and with a fixed range all heads of both models share one
//! scale. Attention has no negative entries, but a transfer matrix may have some, so negative values have their own
//! colours.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::{MatrixPair, ReportError};

/// The most positions that are drawn, from the beginning of a sequence.
pub(super) const SHOWN: usize = 128;

/// Values the legend marks, left to right.
pub(super) const MARKS: [f32; 7] = [-1.0, -0.1, -0.01, 0.0, 0.01, 0.1, 1.0];

/// Where colour turns from linear to logarithmic.
const KNEE: f32 = 1e-3;

/// The palette's index of 0; it has 127 colours on either side. Index 0 is transparent.
const ZERO: u8 = 128;

/// From 0 to 1, dark to bright.
const WARM: [[u8; 3]; 6] = [
    [0x06, 0x05, 0x0d],
    [0x45, 0x12, 0x6e],
    [0x97, 0x28, 0x66],
    [0xde, 0x50, 0x38],
    [0xfa, 0xa0, 0x1a],
    [0xfc, 0xfb, 0xa8],
];

/// From 0 to -1, dark to bright.
const COLD: [[u8; 3]; 4] = [
    [0x06, 0x05, 0x0d],
    [0x0e, 0x46, 0x70],
    [0x2a, 0x98, 0xa8],
    [0xc4, 0xf5, 0xea],
];

/// The two images of a pair as data URIs: the student's transfer matrix and the teacher's attention. The part above the
/// diagonal, which is always zero in a causal mixer, is transparent.
pub(super) fn images(pair: &MatrixPair) -> Result<[String; 2], ReportError> {
    let shown = pair.size.min(SHOWN);
    let image = |matrix: &[f32]| {
        if matrix.len() != pair.size * pair.size {
            return Err(ReportError::Matrix {
                layer: pair.layer,
                head: pair.head,
                size: pair.size,
                found: matrix.len(),
            });
        }
        picture(shown, pair.size, matrix)
    };
    Ok([image(&pair.student)?, image(&pair.teacher)?])
}

/// The first `shown` rows and columns of a causal `matrix [size, size]` as a data URI.
pub(crate) fn picture(shown: usize, size: usize, matrix: &[f32]) -> Result<String, ReportError> {
    let mut pixels = Vec::with_capacity(shown * shown);
    for query in 0..shown {
        let row = &matrix[query * size..][..shown];
        let row = row.iter().enumerate();
        pixels.extend(row.map(|(key, &value)| if key <= query { colour(value) } else { 0 }));
    }
    data_uri(shown, &pixels)
}

/// The colour scale from -1 to 1 as a data URI, one pixel high.
pub(super) fn legend() -> Result<String, ReportError> {
    data_uri(255, &(1..=255).collect::<Vec<u8>>())
}

/// Where on the legend `value` lies, from 0 to 1.
pub(super) fn place(value: f32) -> f32 {
    let size = (1.0 + value.abs().min(1.0) / KNEE).ln() / (1.0 + 1.0 / KNEE).ln();
    0.5 + 0.5 * size.copysign(value)
}

/// The Frobenius norm of the pair's difference over that of the attention.
pub(super) fn relative_distance(pair: &MatrixPair) -> f64 {
    let square = |value: f32| f64::from(value).powi(2);
    let pairs = pair.student.iter().zip(&pair.teacher);
    let distance: f64 = pairs
        .map(|(student, teacher)| square(student - teacher))
        .sum();
    let norm: f64 = pair.teacher.iter().map(|&teacher| square(teacher)).sum();
    (distance / norm).sqrt()
}

/// The palette index of `value`; not-a-number is transparent.
fn colour(value: f32) -> u8 {
    if value.is_nan() {
        return 0;
    }
    (1.0 + place(value) * 254.0).round() as u8
}

/// Pixels, `width` a row, as an indexed PNG in a data URI.
fn data_uri(width: usize, pixels: &[u8]) -> Result<String, ReportError> {
    let mut bytes = Vec::new();
    let height = pixels.len() / width.max(1);
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(palette());
    encoder.set_trns(vec![0]);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(format!("data:image/png;base64,{}", BASE64.encode(bytes)))
}

fn palette() -> Vec<u8> {
    let mut palette = vec![0; 3];
    for index in 1..=255u8 {
        let along = f32::from(index) - f32::from(ZERO);
        let stops: &[[u8; 3]] = if along < 0.0 { &COLD } else { &WARM };
        palette.extend(between(stops, along.abs() / 127.0));
    }
    palette
}

/// The colour `along` the way, from 0 to 1, through evenly spaced stops.
fn between(stops: &[[u8; 3]], along: f32) -> [u8; 3] {
    let at = along * (stops.len() - 1) as f32;
    let from = (at as usize).min(stops.len() - 2);
    let share = at - from as f32;
    std::array::from_fn(|channel| {
        let [from, to] = [from, from + 1].map(|stop| f32::from(stops[stop][channel]));
        (from + share * (to - from)).round() as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(size: usize) -> MatrixPair {
        let matrix = |scale: f32| {
            (0..size * size)
                .map(|index| scale / (1 + index / size) as f32)
                .collect()
        };
        MatrixPair {
            layer: 3,
            head: 1,
            size,
            student: matrix(0.5),
            teacher: matrix(1.0),
        }
    }

    #[test]
    fn colour_is_odd_monotonic_and_clipped() {
        assert_eq!([colour(-1.0), colour(0.0), colour(1.0)], [1, ZERO, 255]);
        assert_eq!([colour(-7.0), colour(7.0)], [1, 255]);
        assert_eq!(colour(f32::NAN), 0);
        assert_eq!(colour(f32::INFINITY), 255);
        let values = [1e-3f32, 1e-2, 1e-1, 0.5, 1.0];
        let colours = values.map(colour);
        assert!(colours.is_sorted() && colours[0] > ZERO + 10, "{colours:?}");
        for value in values {
            assert_eq!(u16::from(colour(value)) + u16::from(colour(-value)), 256);
        }
    }

    #[test]
    fn images_hold_one_pixel_per_entry_below_the_diagonal() {
        for (size, shown) in [(1, 1), (5, 5), (300, SHOWN)] {
            let [student, teacher] = images(&pair(size)).unwrap();
            let [student, teacher] = [decode(&student), decode(&teacher)];
            assert_eq!(student.len(), shown * shown);
            for query in 0..shown {
                for key in 0..shown {
                    let row = (1 + query) as f32;
                    let seen = key <= query;
                    let expected = |value| if seen { colour(value) } else { 0 };
                    assert_eq!(student[query * shown + key], expected(0.5 / row));
                    assert_eq!(teacher[query * shown + key], expected(1.0 / row));
                }
            }
        }
    }

    fn decode(uri: &str) -> Vec<u8> {
        let bytes = BASE64.decode(uri.split(',').next_back().unwrap()).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes))
            .read_info()
            .unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        pixels
    }

    #[test]
    fn distance_is_relative_to_the_attention() {
        assert!((relative_distance(&pair(7)) - 0.5).abs() < 1e-7);
    }

    #[test]
    fn a_matrix_of_another_size_is_an_error() {
        let mut pair = pair(4);
        pair.teacher.pop();
        let message = images(&pair).unwrap_err().to_string();
        assert_eq!(message, "layer 3 head 1: 15 matrix entries, not 4 x 4");
    }
}
