//! What is where: files that a table names, files below a directory, and models that are made while they are read.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::model::{Body, Model};

/// One answer.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) content: Content,
}

/// Where its body comes from.
pub(crate) enum Content {
    /// A file and its size.
    File(PathBuf, u64),
    /// Bytes that are not stored anywhere.
    Made(Body),
}

/// A line of the table: `{"/path": {"status": 302, "headers": {...}, "file": "..."}}`.
#[derive(Deserialize)]
struct Line {
    #[serde(default = "ok")]
    status: u16,
    #[serde(default)]
    headers: HashMap<String, String>,
    file: Option<PathBuf>,
}

fn ok() -> u16 {
    200
}

/// Reads a table of paths.
pub(crate) fn table(path: &Path) -> Result<HashMap<String, Route>> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let lines: HashMap<String, Line> =
        serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?;
    lines
        .into_iter()
        .map(|(name, line)| {
            let content = match line.file {
                Some(file) => Content::file(file)?,
                None => Content::Made(Body::Text(Vec::new())),
            };
            Ok((name, Route { status: line.status, headers: line.headers.into_iter().collect(), content }))
        })
        .collect()
}

/// Every regular file below a directory, under its path there.
pub(crate) fn directory(root: &Path, routes: &mut HashMap<String, Route>) -> Result<()> {
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let names: Vec<_> = path.strip_prefix(root)?.components().filter_map(name).collect();
            let name = format!("/{}", names.join("/"));
            let content = Content::file(path)?;
            routes.entry(name).or_insert_with_key(|name| Route {
                status: 200,
                headers: tag(name, content.size()),
                content,
            });
        }
    }
    Ok(())
}

/// A model that is made while it is read, below `/NAME/`: `NAME=SHARDSxBYTES`.
pub(crate) fn made(description: &str, routes: &mut HashMap<String, Route>) -> Result<()> {
    let parsed = description.split_once('=').and_then(|(name, rest)| {
        let (shards, bytes) = rest.split_once('x')?;
        Some((name, shards.parse().ok()?, bytes.parse().ok()?))
    });
    let (name, shards, shard_bytes) = parsed.with_context(|| format!("{description} is not NAME=SHARDSxBYTES"))?;
    // Two models are of different bytes.
    let seed = name.bytes().fold(1, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
    for (file, body) in (Model { shards, shard_bytes, seed }).files() {
        let headers = tag(&file, body.size());
        routes.insert(format!("/{name}/{file}"), Route { status: 200, headers, content: Content::Made(body) });
    }
    Ok(())
}

fn name(component: Component<'_>) -> Option<&str> {
    match component {
        Component::Normal(name) => name.to_str(),
        _ => None,
    }
}

fn tag(name: &str, size: u64) -> Vec<(String, String)> {
    let sum = blake3::hash(name.as_bytes()).to_hex();
    vec![("ETag".to_owned(), format!("\"{}-{size}\"", &sum[..16]))]
}

// === impl Content ===

impl Content {
    fn file(path: PathBuf) -> Result<Self> {
        let size = std::fs::metadata(&path).with_context(|| format!("look at {}", path.display()))?.len();
        Ok(Self::File(path, size))
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::File(_, size) => *size,
            Self::Made(body) => body.size(),
        }
    }
}

impl std::fmt::Debug for Content {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path, size) => write!(formatter, "{} ({size} bytes)", path.display()),
            Self::Made(body) => write!(formatter, "{} bytes that are made", body.size()),
        }
    }
}
