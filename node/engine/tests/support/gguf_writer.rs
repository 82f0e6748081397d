//! Writes small GGUF files, correct ones and (through the raw parts) incorrect ones.

/// Metadata and tensors in the order in which they will be written.
#[derive(Clone, Default)]
pub(crate) struct GgufWriter {
    pub(crate) metadata: Vec<(String, Vec<u8>)>,
    pub(crate) tensors: Vec<RawTensor>,
}

/// A tensor with its shape slowest dimension first, as the rest of the world writes shapes.
#[derive(Clone)]
pub(crate) struct RawTensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) type_id: u32,
    pub(crate) bytes: Vec<u8>,
}

impl GgufWriter {
    pub(crate) fn string(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &sized(value))
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[u8::from(value)])
    }

    pub(crate) fn strings<S: AsRef<str>>(self, key: &str, values: &[S]) -> Self {
        let body: Vec<u8> = values.iter().flat_map(|value| sized(value.as_ref())).collect();
        self.array(key, 8, values.len() as u64, &body)
    }

    pub(crate) fn i32s(self, key: &str, values: &[i32]) -> Self {
        let body: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.array(key, 5, values.len() as u64, &body)
    }

    pub(crate) fn f32s(self, key: &str, values: &[f32]) -> Self {
        let body: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.array(key, 6, values.len() as u64, &body)
    }

    pub(crate) fn array(self, key: &str, kind: u32, len: u64, body: &[u8]) -> Self {
        let value = [&kind.to_le_bytes()[..], &len.to_le_bytes(), body].concat();
        self.raw(key, 9, &value)
    }

    /// Replaces the key if it is there.
    pub(crate) fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.metadata.retain(|(other, _)| other != key);
        self.metadata.push((key.to_owned(), [&kind.to_le_bytes()[..], value].concat()));
        self
    }

    pub(crate) fn without(mut self, key: &str) -> Self {
        self.metadata.retain(|(other, _)| other != key);
        self.tensors.retain(|tensor| tensor.name != key);
        self
    }

    pub(crate) fn tensor(mut self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.push(RawTensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            type_id: 0,
            bytes,
        });
        self
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            out.extend(sized(key));
            out.extend(value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            out.extend(sized(&tensor.name));
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for dimension in tensor.shape.iter().rev() {
                out.extend((*dimension as u64).to_le_bytes());
            }
            out.extend(tensor.type_id.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes.len().next_multiple_of(32);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&tensor.bytes);
        }
        out
    }
}

fn sized(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}
