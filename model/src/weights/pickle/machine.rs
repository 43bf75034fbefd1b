//! The stack machine that a pickle is a program of.

use std::collections::HashMap;

use super::{Call, Global, Object, Pickle, Value, object};

impl Pickle {
    /// Reads a pickle; what follows its end is ignored.
    ///
    /// # Errors
    /// What is wrong with it, and at which byte.
    pub(in crate::weights) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut machine = Machine {
            input: bytes,
            objects: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        loop {
            let at = bytes.len() - machine.input.len();
            let step = machine.step();
            let step = step.map_err(|error| format!("the pickle in it, byte {at}: {error}"))?;
            if let Some(root) = step {
                let objects = machine.objects;
                return Ok(Self { objects, root });
            }
        }
    }
}

struct Machine<'a> {
    input: &'a [u8],
    objects: Vec<Object>,
    stack: Vec<Value>,
    /// Heights of the stack at which groups of values begin.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
}

type Step<T> = Result<T, &'static str>;

const CUT: &str = "it is cut";

impl<'a> Machine<'a> {
    /// Carries out one instruction, and returns the whole's value after the last.
    fn step(&mut self) -> Step<Option<Value>> {
        match self.take(1)?[0] {
            // Of the format.
            0x80 => {
                self.take(1)?;
            }
            0x95 => {
                self.take(8)?;
            }
            b'.' => return self.pop().map(Some),
            // Of the stack.
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                // It takes a mark too, if that is the last.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => {
                self.group()?;
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            // Of simple values.
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'J' => {
                let number = self.number(4)? as u32 as i32;
                self.stack.push(Value::Int(number.into()));
            }
            b'K' => self.int(1)?,
            b'M' => self.int(2)?,
            b'I' | b'L' => {
                let line = self.line()?;
                self.stack.push(match line {
                    "00" => Value::Bool(false),
                    "01" => Value::Bool(true),
                    digits => match digits.trim_end_matches('L').parse() {
                        Ok(number) => Value::Int(number),
                        Err(_) => Value::Number,
                    },
                });
            }
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            b'F' => {
                self.line()?;
                self.stack.push(Value::Number);
            }
            b'G' => {
                self.take(8)?;
                self.stack.push(Value::Number);
            }
            // Of texts and bytes.
            b'S' => {
                let line = self.line()?;
                let quoted = line.trim_matches(['"', '\'']).to_owned();
                self.push(Object::Text(quoted));
            }
            b'V' => {
                let line = self.line()?.to_owned();
                self.push(Object::Text(line));
            }
            b'U' | 0x8c => self.text(1)?,
            b'T' | b'X' => self.text(4)?,
            0x8d => self.text(8)?,
            b'C' => self.bytes(1)?,
            b'B' => self.bytes(4)?,
            0x8e | 0x96 => self.bytes(8)?,
            // Of collections.
            b']' | 0x8f => self.push(Object::List(Vec::new())),
            b'}' => self.push(Object::Dict(Vec::new())),
            b')' => self.push(Object::Tuple(Vec::new())),
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => {
                let values = self.group()?;
                self.push(Object::Tuple(values));
            }
            b'l' | 0x91 => {
                let values = self.group()?;
                self.push(Object::List(values));
            }
            b'd' => {
                let items = pairs(&self.group()?)?;
                self.push(Object::Dict(items));
            }
            b'a' => {
                let value = self.pop()?;
                self.append(&[value])?;
            }
            b'e' | 0x90 => {
                let values = self.group()?;
                self.append(&values)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.put(vec![(key, value)])?;
            }
            b'u' => {
                let items = pairs(&self.group()?)?;
                self.put(items)?;
            }
            // Of what is used again.
            b'p' => {
                let place = self.line()?.parse().map_err(|_| "no place in the memo")?;
                self.memo.insert(place, self.top()?);
            }
            b'q' => self.keep(1)?,
            b'r' => self.keep(4)?,
            0x94 => {
                let place = self.memo.len() as u64;
                self.memo.insert(place, self.top()?);
            }
            b'g' => {
                let place = self.line()?.parse().map_err(|_| "no place in the memo")?;
                self.recall(place)?;
            }
            b'h' => {
                let place = self.number(1)?;
                self.recall(place)?;
            }
            b'j' => {
                let place = self.number(4)?;
                self.recall(place)?;
            }
            // Of classes, functions and their calls.
            b'c' => self.global()?,
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (module, name) = (self.text_at(module)?, self.text_at(name)?);
                self.push(Object::Global(Global { module, name }));
            }
            b'R' | 0x81 => {
                let arguments = self.pop()?;
                let function = self.pop()?;
                self.call(function, arguments);
            }
            0x92 => {
                let _keywords = self.pop()?;
                let arguments = self.pop()?;
                let function = self.pop()?;
                self.call(function, arguments);
            }
            b'i' => {
                let values = self.group()?;
                self.global()?;
                self.push(Object::Tuple(values));
                let (arguments, class) = (self.pop()?, self.pop()?);
                self.call(class, arguments);
            }
            b'o' => {
                let values = self.group()?;
                let (class, values) = values.split_first().ok_or("no class")?;
                self.push(Object::Tuple(values.to_vec()));
                let arguments = self.pop()?;
                self.call(*class, arguments);
            }
            // An object's attributes, of which none is of interest here.
            b'b' => {
                self.pop()?;
                self.top()?;
            }
            b'P' => {
                let line = self.line()?.to_owned();
                self.push(Object::Text(line));
                let id = self.pop()?;
                self.push(Object::Persistent(id));
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Object::Persistent(id));
            }
            _ => return Err("an instruction that no model's file has"),
        }
        Ok(None)
    }

    fn take(&mut self, n: usize) -> Step<&'a [u8]> {
        let (taken, rest) = self.input.split_at_checked(n).ok_or(CUT)?;
        self.input = rest;
        Ok(taken)
    }

    /// The rest of a line, and its end.
    fn line(&mut self) -> Step<&'a str> {
        let end = self.input.iter().position(|byte| *byte == b'\n');
        let line = self.take(end.ok_or(CUT)? + 1)?;
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        str::from_utf8(line).map_err(|_| "a line that is no UTF-8")
    }

    /// A number of up to eight bytes without a sign.
    fn number(&mut self, bytes: usize) -> Step<u64> {
        let bytes = self.take(bytes)?.iter().rev();
        Ok(bytes.fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }

    fn int(&mut self, bytes: usize) -> Step<()> {
        let number = self.number(bytes)?;
        self.stack.push(Value::Int(number as i64));
        Ok(())
    }

    /// A number whose bytes follow their number.
    fn long(&mut self, size: usize) -> Step<()> {
        let bytes = self.counted(size)?;
        self.stack.push(if bytes.len() > 8 {
            Value::Number
        } else {
            let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
            let mut all = [if negative { 0xff } else { 0 }; 8];
            all[..bytes.len()].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(all))
        });
        Ok(())
    }

    /// Bytes that follow their number, a number of `size` bytes.
    fn counted(&mut self, size: usize) -> Step<&'a [u8]> {
        let n = self.number(size)?;
        self.take(usize::try_from(n).map_err(|_| CUT)?)
    }

    fn text(&mut self, size: usize) -> Step<()> {
        let text = String::from_utf8_lossy(self.counted(size)?).into_owned();
        self.push(Object::Text(text));
        Ok(())
    }

    fn bytes(&mut self, size: usize) -> Step<()> {
        self.counted(size)?;
        self.push(Object::Bytes);
        Ok(())
    }

    fn global(&mut self) -> Step<()> {
        let lines = [self.line()?, self.line()?];
        let [module, name] = lines.map(|line| self.add(Object::Text(line.to_owned())));
        self.push(Object::Global(Global { module, name }));
        Ok(())
    }

    /// The place of the text that a value is.
    fn text_at(&self, value: Value) -> Step<u32> {
        match (value, object(&self.objects, value)) {
            (Value::Object(place), Some(Object::Text(_))) => Ok(place),
            _ => Err("a class without a name"),
        }
    }

    /// Keeps an object, and returns its place.
    fn add(&mut self, object: Object) -> u32 {
        // No instruction has more objects than twice its bytes, and a pickle is far shorter than 2^31.
        let place = self.objects.len() as u32;
        self.objects.push(object);
        place
    }

    fn push(&mut self, object: Object) {
        let place = self.add(object);
        self.stack.push(Value::Object(place));
    }

    fn call(&mut self, function: Value, arguments: Value) {
        self.push(Object::Call(Box::new(Call {
            function,
            arguments,
            items: Vec::new(),
        })));
    }

    fn pop(&mut self) -> Step<Value> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// The last value of the current group.
    fn top(&self) -> Step<Value> {
        let group = self.marks.last().copied().unwrap_or_default();
        let values = self.stack.get(group..).unwrap_or_default();
        values.last().copied().ok_or("nothing is on the stack")
    }

    /// All values of the current group, which ends.
    fn group(&mut self) -> Step<Vec<Value>> {
        let mark = self.marks.pop().ok_or("no group was begun")?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, n: usize) -> Step<()> {
        let mut values = Vec::with_capacity(n);
        for _ in 0..n {
            values.push(self.pop()?);
        }
        values.reverse();
        self.push(Object::Tuple(values));
        Ok(())
    }

    fn keep(&mut self, size: usize) -> Step<()> {
        let place = self.number(size)?;
        self.memo.insert(place, self.top()?);
        Ok(())
    }

    fn recall(&mut self, place: u64) -> Step<()> {
        let value = self
            .memo
            .get(&place)
            .ok_or("nothing is at this place of the memo")?;
        self.stack.push(*value);
        Ok(())
    }

    /// The object on top of the stack, to be changed.
    fn changed(&mut self) -> Step<&mut Object> {
        match self.top()? {
            Value::Object(place) => Ok(&mut self.objects[place as usize]),
            _ => Err("a value is put into what holds none"),
        }
    }

    fn append(&mut self, values: &[Value]) -> Step<()> {
        match self.changed()? {
            Object::List(list) => list.extend(values),
            // A class of its own that is a list; it is no tensor.
            Object::Call(_) => {}
            _ => return Err("a value is put into what is no list"),
        }
        Ok(())
    }

    fn put(&mut self, new: Vec<(Value, Value)>) -> Step<()> {
        match self.changed()? {
            Object::Dict(items) => items.extend(new),
            Object::Call(call) => call.items.extend(new),
            _ => return Err("a value is put into what is no dictionary"),
        }
        Ok(())
    }
}

/// Keys and values that follow each other.
fn pairs(values: &[Value]) -> Step<Vec<(Value, Value)>> {
    match values.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect()),
        _ => Err("a key without a value"),
    }
}
