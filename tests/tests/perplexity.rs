//! The bundled teacher's perplexity on the CPU.

mod support;

use support::perplexity::*;
use tests::networks::Fast;

#[test]
fn perplexity_flex() {
    perplexity_is_exact::<Fast>();
    perplexity_is_the_recorded::<Fast>();
}
