//! Writes small GGUF files for tests, right or wrong.
//!
//! Knows no checks: what it is told to write, it writes.

/// A GGUF file in the making.
pub struct GgufBuilder {
    version: u32,
    keys: Vec<Vec<u8>>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl GgufBuilder {
    /// An empty file of this version.
    pub fn new(version: u32) -> Self {
        Self { version, keys: Vec::new(), tensors: Vec::new() }
    }

    /// Adds a key whose value is these bytes, of this type's number.
    pub fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.push([&text(key), &kind.to_le_bytes()[..], value].concat());
        self
    }

    /// Adds a key with a number of 32 bits.
    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    /// Adds a key with a floating number of 32 bits.
    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    /// Adds a key with a truth value.
    pub fn flag(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[value.into()])
    }

    /// Adds a key with a text.
    pub fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &text(value))
    }

    /// Adds a key with texts.
    pub fn texts(self, key: &str, values: &[&str]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|value| text(value)).collect();
        self.raw(key, 9, &array(8, values.len() as u64, &elements))
    }

    /// Adds a key with numbers of 32 bits.
    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.raw(key, 9, &array(5, values.len() as u64, &elements))
    }

    /// Adds a tensor with GGUF's order of dimensions (columns first), of this type's number.
    pub fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, data: &[u8]) -> Self {
        self.tensors.push((name.to_owned(), dimensions.to_vec(), kind, data.to_vec()));
        self
    }

    /// Adds a tensor of f32.
    pub fn f32_tensor(self, name: &str, dimensions: &[u64], values: &[f32]) -> Self {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, dimensions, 0, &data)
    }

    /// The file, its tensors one behind the other at multiples of 32 bytes.
    pub fn build(&self) -> Vec<u8> {
        let offsets = self.tensors.iter().scan(0u64, |end, (_, _, _, data)| {
            let start = end.next_multiple_of(32);
            *end = start + data.len() as u64;
            Some(start)
        });
        self.build_at(&offsets.collect::<Vec<_>>())
    }

    /// The file, its tensors said to be at these offsets.
    pub fn build_at(&self, offsets: &[u64]) -> Vec<u8> {
        let mut file = [b"GGUF".as_slice(), &self.version.to_le_bytes()].concat();
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.keys.len() as u64).to_le_bytes());
        file.extend(self.keys.concat());
        for ((name, dimensions, kind, _), offset) in self.tensors.iter().zip(offsets) {
            file.extend(text(name));
            file.extend((dimensions.len() as u32).to_le_bytes());
            file.extend(dimensions.iter().flat_map(|dimension| dimension.to_le_bytes()));
            file.extend(kind.to_le_bytes());
            file.extend(offset.to_le_bytes());
        }
        for (_, _, _, data) in &self.tensors {
            file.resize(file.len().next_multiple_of(32), 0);
            file.extend(data);
        }
        file
    }
}

/// A text with its length before it.
pub fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// An array's element type, count and elements.
pub fn array(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}
