//! Small models of real form: safetensors shards, an index that names them, a configuration, a nested folder, an empty file.

use std::collections::BTreeMap;
use std::path::Path;

use preheat::model::{Kind, Manifest, ManifestEntry};
use serde_json::json;

pub(crate) const MIB: usize = 1 << 20;

/// Path and bytes of each file.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Bytes that no two seeds share.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A safetensors file with one tensor of `data` bytes.
pub(crate) fn shard(tensor: &str, seed: u64, data: usize) -> Vec<u8> {
    let header = json!({tensor: {"dtype": "U8", "shape": [data], "data_offsets": [0, data]}}).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    bytes.extend(noise(seed, data));
    bytes
}

/// A model of `shards` shards of about `size` bytes.
pub(crate) fn model(seed: u64, shards: usize, size: usize) -> Files {
    let mut files = Files::new();
    let mut weights = serde_json::Map::new();
    for number in 1..=shards {
        let (name, tensor) = (format!("model-{number:05}-of-{shards:05}.safetensors"), format!("layers.{number}"));
        files.insert(name.clone(), shard(&tensor, seed * 1000 + number as u64, size));
        weights.insert(tensor, name.into());
    }
    files.insert(
        "model.safetensors.index.json".to_owned(),
        json!({"metadata": {}, "weight_map": weights}).to_string().into_bytes(),
    );
    files.insert("config.json".to_owned(), json!({"seed": seed}).to_string().into_bytes());
    files.insert("tokenizer.json".to_owned(), noise(seed + 7, 3000));
    files
}

/// Adds what only a listing or a manifest can tell of.
pub(crate) fn with_more(mut files: Files) -> Files {
    files.insert("1_Pooling/config.json".to_owned(), b"{}".to_vec());
    files.insert("vocab.txt".to_owned(), Vec::new());
    files
}

/// The manifest of the files, as a publisher writes it.
pub(crate) fn manifest(files: &Files) -> Manifest {
    let entry = |(path, bytes): (&String, &Vec<u8>)| {
        ManifestEntry::new(
            preheat::model::FilePath::new(path.clone()).unwrap(),
            bytes.len() as u64,
            preheat::digest::Hash::of(bytes),
        )
    };
    Manifest::new(Kind::Model, files.iter().map(entry).collect()).unwrap()
}

pub(crate) fn total(files: &Files) -> u64 {
    files.values().map(|bytes| bytes.len() as u64).sum()
}

pub(crate) fn write(files: &Files, directory: &Path) {
    for (path, bytes) in files {
        let path = directory.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// Every file below a directory.
pub(crate) fn read(directory: &Path) -> Files {
    let mut files = Files::new();
    let mut left = vec![directory.to_owned()];
    while let Some(place) = left.pop() {
        for entry in std::fs::read_dir(&place).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                let name = path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    files
}
