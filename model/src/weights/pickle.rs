//! Reads a Python pickle without executing anything from it: Python's stack machine, with all protocols. All values are
//! kept in one list, and refer to each other by their indices in this list.
//!
//! So the memory is proportional to the length of the pickle, and nested values cause no recursion. A value may even
//! contain itself, so code that follows references must limit its number of steps.

mod machine;

/// A value on the machine's stack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// A number of another kind.
    Number,
    /// An object, by its place in [`Pickle::objects`].
    Object(u32),
}

/// What values hold or share.
#[derive(Debug)]
pub(super) enum Object {
    Text(String),
    Bytes,
    /// A class or a function.
    Global(Global),
    Tuple(Vec<Value>),
    /// A list or a set.
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    /// What is kept outside, by what it is called.
    Persistent(Value),
    Call(Box<Call>),
}

/// A class or a function, by the places of the texts of its module and its name in [`Pickle::objects`]: a few
/// bytes can name long texts again and again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Global {
    module: u32,
    name: u32,
}

/// A call of a global, and what was put into its result afterwards.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) function: Value,
    pub(super) arguments: Value,
    pub(super) items: Vec<(Value, Value)>,
}

/// The whole of a pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    objects: Vec<Object>,
    pub(super) root: Value,
}

impl Pickle {
    pub(super) fn object(&self, value: Value) -> Option<&Object> {
        object(&self.objects, value)
    }

    pub(super) fn text(&self, value: Value) -> Option<&str> {
        match self.object(value)? {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The module and the name of a class or a function.
    pub(super) fn global(&self, value: Value) -> Option<(&str, &str)> {
        let Object::Global(global) = self.object(value)? else {
            return None;
        };
        let [module, name] = [global.module, global.name].map(Value::Object);
        Some((self.text(module)?, self.text(name)?))
    }

    /// The values of a tuple or a list.
    pub(super) fn values(&self, value: Value) -> Option<&[Value]> {
        match self.object(value)? {
            Object::Tuple(values) | Object::List(values) => Some(values),
            _ => None,
        }
    }

    pub(super) fn call(&self, value: Value) -> Option<&Call> {
        match self.object(value)? {
            Object::Call(call) => Some(call),
            _ => None,
        }
    }
}

fn object(objects: &[Object], value: Value) -> Option<&Object> {
    match value {
        Value::Object(place) => objects.get(place as usize),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Few bytes name long texts again and again, which are kept once.
    #[test]
    fn names_of_classes_are_shared() {
        let long = "x".repeat(5000);
        let text = [b"X", &5000_u32.to_le_bytes()[..], long.as_bytes(), b"q\0"].concat();
        let classes = b"h\0h\0\x93".repeat(1000);
        let bytes = [b"(", &text[..], &classes, b"t."].concat();
        let pickle = Pickle::read(&bytes).unwrap();
        let classes = &pickle.values(pickle.root).unwrap()[1..];
        assert_eq!(classes.len(), 1000);
        for class in classes {
            let (module, name) = pickle.global(*class).unwrap();
            assert_eq!(module, long);
            assert!(std::ptr::eq(module, name));
        }
        let kept = pickle.objects.iter().map(|object| match object {
            Object::Text(text) => text.len(),
            _ => 0,
        });
        assert!(kept.sum::<usize>() <= bytes.len());
    }
}
