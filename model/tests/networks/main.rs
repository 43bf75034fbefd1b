//! The networks against recorded vectors, and against themselves.

/// A test of each function on both CPU backends, with what it takes there.
macro_rules! on_both {
    ($($function:ident($($exact:expr, $flex:expr)?);)*) => {
        $(mod $function {
            use super::*;

            #[test]
            fn exact() {
                super::$function::<Exact>($($exact)?);
            }

            #[test]
            fn flex() {
                super::$function::<Fast>($($flex)?);
            }
        })*
    };
}

mod block_orders;
mod comparison;
mod controls;
mod documents;
mod feature_maps;
mod heads;
mod initialisation;
mod larger_states;
mod literal;
mod mohawk;
mod starts;
mod student;
mod teacher;
