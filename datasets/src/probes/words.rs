//! The words of the probes' documents, and how they are drawn.

use rand_mt::Mt;

// Words are separated by one blank.

/// Things.
const THINGS: &str = "\
    anchor apple apron archway bakery balcony barrel basket beacon blanket blossom bonfire bottle \
    bracelet bridge bucket butterfly button cabin cactus candle canoe carpet carriage castle cathedral \
    cellar chapel cherry chimney cinnamon clarinet cottage cradle cupboard curtain dagger diamond \
    doorway dragonfly drawer drum eagle engine envelope falcon farmhouse feather fence ferry fiddle \
    fireplace flagpole flute fountain furnace gallery garden gateway glacier granary grapevine hammer \
    hammock harbour harvest hatchet haystack hedgehog helmet horseshoe island ivory jacket jewel kettle \
    kitchen ladder lagoon lantern leather ledger lemon library lighthouse locket magnet mailbox mantle \
    market meadow mirror monument mountain museum needlework nightingale notebook oak orchard oven \
    paddle palace parcel parlour pasture pebble pepper pillow piano pitcher plough pocket pottery prison \
    puddle quarry quilt railway ribbon rooster saddle satchel scarecrow schoolhouse shovel silver \
    sparrow spindle staircase stocking sundial tavern teapot thimble tunnel turnip umbrella valley \
    velvet village waggon walnut windmill";

/// What things can be.
const QUALITIES: &str = "\
    ancient bitter bright broken careful clever cloudy crooked dusty empty faded fearless fragile gentle \
    golden heavy hidden hollow humble lonely narrow noisy patient pleasant polished quiet rusty scarlet \
    shallow shining silent slender steady stubborn sudden tender velvety weary wooden yellow";

/// Who does something in a sentence.
const PEOPLE: &str = "\
    baker blacksmith captain carpenter children doctor farmer fisherman gardener grandmother hunter \
    merchant miller neighbours painter pilgrim sailor schoolmaster shepherd soldier stranger tailor \
    traveller widow";

/// What they do.
const DEEDS: &str = "\
    admired borrowed carried cleaned covered described discovered examined followed forgot guarded \
    mended noticed painted praised remembered repaired returned sketched sold touched visited wanted \
    watched";

/// When they do it.
const TIMES: [&str; 16] = [
    "after dinner",
    "all afternoon",
    "at dawn",
    "at midnight",
    "before breakfast",
    "every Sunday",
    "in early spring",
    "in the evening",
    "in the rain",
    "last winter",
    "on market day",
    "once again",
    "one morning",
    "that same week",
    "when the snow had gone",
    "without a word",
];

/// Python's `random.random()`: 53 bits from two draws.
pub fn random(generator: &mut Mt) -> f64 {
    let (high, low) = (generator.next_u32() >> 5, generator.next_u32() >> 6);
    (f64::from(high) * f64::from(1 << 26) + f64::from(low)) / (1_u64 << 53) as f64
}

/// Draws from lists, the same for the same key on every machine.
pub struct Draw(Mt);

impl Draw {
    /// A sequence of draws of its own for each key.
    pub fn new<const N: usize>(key: [u32; N]) -> Self {
        Self(Mt::new_with_key(key))
    }

    /// A number from 0 to 1, without 1.
    pub fn share(&mut self) -> f64 {
        random(&mut self.0)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.share() * n as f64) as usize
    }

    /// One of the words of these lists.
    fn one(&mut self, lists: &[&'static str]) -> &'static str {
        let words = lists.iter().flat_map(|list| list.split(' '));
        let place = self.below(words.clone().count());
        words.clone().nth(place).unwrap_or_default()
    }

    /// A thing.
    pub fn thing(&mut self) -> &'static str {
        self.one(&[THINGS])
    }

    /// A quality of a thing.
    pub fn quality(&mut self) -> &'static str {
        self.one(&[QUALITIES])
    }

    /// How many things there are that differ in their name or in their quality.
    pub fn things_with_a_quality() -> usize {
        let count = |list: &str| list.split(' ').count();
        count(QUALITIES) * count(THINGS)
    }

    /// A word of any list.
    pub fn word(&mut self) -> &'static str {
        self.one(&[THINGS, QUALITIES, PEOPLE, DEEDS])
    }

    /// A sentence, such as `The old miller carried the rusty lantern at dawn.`
    pub fn sentence(&mut self) -> String {
        let (person, deed) = (self.one(&[PEOPLE]), self.one(&[DEEDS]));
        let (quality, thing) = (self.quality(), self.thing());
        let time = TIMES[self.below(TIMES.len())];
        format!("The {person} {deed} the {quality} {thing} {time}.")
    }
}
