//! A model of random bytes: safetensors shards, their index, a configuration.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::bytes;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    directory: PathBuf,
    #[arg(long, default_value_t = 4)]
    shards: u64,
    /// Bytes of each
    #[arg(long, default_value_t = 1 << 30)]
    shard_bytes: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Value> {
    let directory = &arguments.directory;
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let model = Model { shards: arguments.shards, shard_bytes: arguments.shard_bytes, seed: arguments.seed };
    let mut piece = vec![0; 1 << 20];
    for (name, body) in model.files() {
        let path = directory.join(&name);
        let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let mut at = 0;
        while at < body.size() {
            let length = piece.len().min(usize::try_from(body.size() - at)?);
            body.read(at, &mut piece[..length]);
            file.write_all(&piece[..length]).with_context(|| format!("write {}", path.display()))?;
            at += length as u64;
        }
    }
    let files = model.files();
    Ok(json!({"files": files.len(), "bytes": files.values().map(Body::size).sum::<u64>()}))
}

/// A model that exists as soon as it is described.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model {
    pub(crate) shards: u64,
    pub(crate) shard_bytes: u64,
    pub(crate) seed: u64,
}

/// What is in a file.
pub(crate) enum Body {
    /// These bytes.
    Text(Vec<u8>),
    /// A header, then bytes made of a seed; so many in all.
    Shard { header: Vec<u8>, seed: u64, size: u64 },
}

// === impl Model ===

impl Model {
    /// All its files, by name.
    pub(crate) fn files(&self) -> BTreeMap<String, Body> {
        let (mut files, mut weights) = (BTreeMap::new(), BTreeMap::new());
        for number in 0..self.shards {
            let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, self.shards);
            for tensor in tensors(number, self.shard_bytes).keys() {
                weights.insert(tensor.clone(), name.clone());
            }
            let seed = self.seed.wrapping_add(number << 32);
            files.insert(name, Body::Shard { header: header(number, self.shard_bytes), seed, size: self.shard_bytes });
        }
        let index = json!({"metadata": {"total_size": self.shards * self.shard_bytes}, "weight_map": weights});
        let config = json!({"architectures": ["BenchForCausalLM"], "hidden_size": 1024, "seed": self.seed});
        files.insert("model.safetensors.index.json".to_owned(), Body::Text(index.to_string().into_bytes()));
        files.insert("config.json".to_owned(), Body::Text(config.to_string().into_bytes()));
        files
    }
}

// === impl Body ===

impl Body {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Shard { size, .. } => *size,
        }
    }

    /// The bytes at `at`, which are all there.
    pub(crate) fn read(&self, at: u64, into: &mut [u8]) {
        let first = match self {
            Self::Text(first) | Self::Shard { header: first, .. } => first,
        };
        let begin = usize::try_from(at).unwrap_or(usize::MAX).min(first.len());
        let length = into.len().min(first.len() - begin);
        into[..length].copy_from_slice(&first[begin..begin + length]);
        if let Self::Shard { seed, .. } = self {
            bytes::fill(*seed, at + length as u64, &mut into[length..]);
        }
    }
}

/// Tensors of 64 MiB each, as far as they go.
fn tensors(shard: u64, size: u64) -> BTreeMap<String, u64> {
    let count = (size >> 26).max(1);
    (0..count).map(|number| (format!("model.layers.{shard}.{number}.weight"), number)).collect()
}

/// The length and the header of a shard that is `size` bytes in all.
fn header(shard: u64, size: u64) -> Vec<u8> {
    let tensors = tensors(shard, size);
    // The header's own length is part of the size: it is made of fixed width, so that one pass knows it.
    let length = 256 * tensors.len() as u64 + 64;
    let room = size.saturating_sub(8 + length);
    let count = tensors.len() as u64;
    let entries: serde_json::Map<_, _> = tensors
        .into_iter()
        .map(|(name, number)| {
            let (begin, end) = (
                room * number / count / 2 * 2,
                if number + 1 == count { room / 2 * 2 } else { room * (number + 1) / count / 2 * 2 },
            );
            (name, json!({"dtype": "F16", "shape": [(end - begin) / 2], "data_offsets": [begin, end]}))
        })
        .collect();
    let mut text = Value::Object(entries).to_string().into_bytes();
    // An odd byte would be a hole behind the last tensor: it becomes part of the header.
    text.resize(usize::try_from(length + room % 2).unwrap_or(usize::MAX), b' ');
    let mut whole = (text.len() as u64).to_le_bytes().to_vec();
    whole.append(&mut text);
    whole
}
