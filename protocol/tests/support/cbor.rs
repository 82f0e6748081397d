//! A second reader and writer of DAG-CBOR, written from the specification alone and able to write
//! wrongly on purpose. It shares no code with the crate under test.

use std::cmp::Ordering;

use data_encoding::HEXLOWER;

/// A map's entries in the order in which they are written.
pub(crate) type Entries = Vec<(String, Item)>;

/// One CBOR item.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Item {
    Unsigned(u64),
    /// The number −1 − n.
    Negative(u64),
    Bytes(Vec<u8>),
    Text(String),
    List(Vec<Item>),
    Map(Entries),
    Bool(bool),
    Null,
    /// Already encoded, however wrongly.
    Raw(Vec<u8>),
}

impl Item {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Item::Unsigned(n) => head(out, 0, *n),
            Item::Negative(n) => head(out, 1, *n),
            Item::Bytes(bytes) => {
                head(out, 2, bytes.len() as u64);
                out.extend_from_slice(bytes);
            }
            Item::Text(text) => {
                head(out, 3, text.len() as u64);
                out.extend_from_slice(text.as_bytes());
            }
            Item::List(items) => {
                head(out, 4, items.len() as u64);
                items.iter().for_each(|item| item.write(out));
            }
            Item::Map(entries) => {
                head(out, 5, entries.len() as u64);
                for (key, value) in entries {
                    Item::Text(key.clone()).write(out);
                    value.write(out);
                }
            }
            Item::Bool(value) => out.push(if *value { 0xf5 } else { 0xf4 }),
            Item::Null => out.push(0xf6),
            Item::Raw(bytes) => out.extend_from_slice(bytes),
        }
    }

    /// Reads one item that must fill `bytes` and be written in the one allowed way.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Item> {
        let mut rest = bytes;
        let item = read(&mut rest, 16)?;
        rest.is_empty().then_some(item)
    }

    /// As the JSON that the crate prints: byte strings as lowercase hexadecimal.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match self {
            Item::Unsigned(n) => (*n).into(),
            Item::Negative(n) => (-1 - i64::try_from(*n).unwrap()).into(),
            Item::Bytes(bytes) => HEXLOWER.encode(bytes).into(),
            Item::Text(text) => text.as_str().into(),
            Item::List(items) => items.iter().map(Item::to_json).collect(),
            Item::Map(entries) => {
                entries.iter().map(|(key, value)| (key.clone(), value.to_json())).collect()
            }
            Item::Bool(value) => (*value).into(),
            Item::Null | Item::Raw(_) => serde_json::Value::Null,
        }
    }

    pub(crate) fn entries(&self) -> &[(String, Item)] {
        match self {
            Item::Map(entries) => entries,
            _ => panic!("not a map: {self:?}"),
        }
    }

    pub(crate) fn field(&self, name: &str) -> &Item {
        &self.entries().iter().find(|(key, _)| key == name).expect(name).1
    }

    /// Puts `value` under `key` where the order of keys wants it.
    pub(crate) fn insert(&mut self, key: &str, value: Item) {
        let Item::Map(entries) = self else { panic!("not a map: {self:?}") };
        let at = entries.partition_point(|(known, _)| key_order(known, key) == Ordering::Less);
        entries.insert(at, (key.to_owned(), value));
    }

    /// The first item for which `wanted` holds, depth first.
    pub(crate) fn find_mut(&mut self, wanted: &dyn Fn(&Item) -> bool) -> Option<&mut Item> {
        if wanted(self) {
            return Some(self);
        }
        match self {
            Item::List(items) => items.iter_mut().find_map(|item| item.find_mut(wanted)),
            Item::Map(entries) => entries.iter_mut().find_map(|(_, item)| item.find_mut(wanted)),
            _ => None,
        }
    }
}

/// DAG-CBOR's order of map keys: shorter first, then bytewise.
pub(crate) fn key_order(a: &str, b: &str) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// Writes the shortest head of a major type and its number.
fn head(out: &mut Vec<u8>, major: u8, number: u64) {
    let major = major << 5;
    match number {
        0..=23 => out.push(major | number as u8),
        24..=0xff => out.extend_from_slice(&[major | 24, number as u8]),
        0x100..=0xffff => {
            out.push(major | 25);
            out.extend_from_slice(&(number as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major | 26);
            out.extend_from_slice(&(number as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

fn read(rest: &mut &[u8], depth: usize) -> Option<Item> {
    let depth = depth.checked_sub(1)?;
    let first = take(rest, 1)?[0];
    let (major, low) = (first >> 5, first & 31);
    let extra = match low {
        0..=23 => 0,
        24 => 1,
        25 => 2,
        26 => 4,
        27 => 8,
        _ => return None,
    };
    let mut number = u64::from(low);
    if extra > 0 {
        let mut padded = [0; 8];
        padded[8 - extra..].copy_from_slice(take(rest, extra)?);
        number = u64::from_be_bytes(padded);
    }
    if major == 7 {
        return match first {
            0xf4 => Some(Item::Bool(false)),
            0xf5 => Some(Item::Bool(true)),
            _ => None,
        };
    }
    let mut shortest = Vec::new();
    head(&mut shortest, major, number);
    if shortest.len() != 1 + extra {
        return None;
    }
    let count = usize::try_from(number);
    match major {
        0 => Some(Item::Unsigned(number)),
        1 => Some(Item::Negative(number)),
        2 => Some(Item::Bytes(take(rest, count.ok()?)?.to_vec())),
        3 => Some(Item::Text(String::from_utf8(take(rest, count.ok()?)?.to_vec()).ok()?)),
        4 => (0..count.ok()?).map(|_| read(rest, depth)).collect::<Option<_>>().map(Item::List),
        5 => {
            let mut entries: Vec<(String, Item)> = Vec::new();
            for _ in 0..count.ok()? {
                let Item::Text(key) = read(rest, depth)? else { return None };
                if entries.last().is_some_and(|(last, _)| key_order(last, &key) != Ordering::Less) {
                    return None;
                }
                entries.push((key, read(rest, depth)?));
            }
            Some(Item::Map(entries))
        }
        _ => None,
    }
}
