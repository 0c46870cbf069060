//! Which files of an origin an engine needs: one pure decision for every kind of origin, so that a bucket, a web server and a
//! directory with the same files give the same model.
//!
//! The default takes what vLLM and SGLang read at load: weights in one format, their index, configuration, tokenizer, code,
//! chat template. It leaves out what would only cost: a second copy of the weights in another format, training state,
//! pictures and prose. Formats exclude each other because engines choose by what they find: a `consolidated*.safetensors`
//! beside Hugging Face shards makes vLLM take the Mistral loader, and a `*.bin` beside safetensors doubles the transfer.

use std::collections::{BTreeMap, HashMap};

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use serde::Deserialize;

use super::{FilePath, Manifest, Selection};

/// The outcome of a selection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Indices into the given paths, in path order.
    pub taken: Vec<usize>,
    /// For people: names that differ in case only.
    pub warnings: Vec<String>,
}

/// Why nothing sensible could be selected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// Nothing is left.
    #[error("nothing to fetch among {listed} files: {hint}")]
    Nothing {
        /// How many there were.
        listed: usize,
        /// What to write.
        hint: String,
    },
    /// Several GGUF files and none named.
    #[error("there are {count} GGUF models ({names}): name one with ?include={example}")]
    Ambiguous {
        /// How many.
        count: usize,
        /// The first few.
        names: String,
        /// One of them.
        example: String,
    },
    /// A glob that cannot be read.
    #[error("glob `{glob}`: {detail}")]
    Glob {
        /// As typed.
        glob: String,
        /// The parser's word.
        detail: String,
    },
}

/// The index document names no shards, or breaks a limit.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Not JSON of the known shape.
    #[error("model.safetensors.index.json is not readable: {0}")]
    Shape(#[from] serde_json::Error),
    /// A shard outside its own directory, or over the limits.
    #[error("model.safetensors.index.json: {0}")]
    Content(String),
}

/// Never part of a model: version control, caches, our own files, half-finished downloads.
const NEVER: [&str; 5] = [".git/**", ".cache/**", "**/.*", "preheat-outboards/**", "**/*.incomplete"];

/// Small files beside the weights, in any directory.
const BESIDE: [&str; 6] = ["*.json", "*.txt", "*.model", "*.py", "*.jinja", "*.tiktoken"];

/// Training state, and indexes of formats that are only taken with their weights.
const NOT_FOR_SERVING: [&str; 12] = [
    "optimizer*",
    "scheduler*",
    "rng_state*",
    "trainer_state.json",
    "training_args*",
    "checkpoint-*/**",
    "global_step*/**",
    "runs/**",
    "*.bin.index.json",
    "*.msgpack.index.json",
    "README*",
    "LICENSE*",
];

/// Decides which of `paths` are taken. Paths are those of the origin; see [`Selection::strip`] for those in the tree.
///
/// # Errors
/// [`SelectError`]
pub fn select(paths: &[FilePath], selection: &Selection) -> Result<Selected, SelectError> {
    let include = globs(&selection.include)?;
    let exclude = globs(&selection.exclude)?;
    let never = fixed(&NEVER);
    let mut candidates: Vec<(usize, FilePath)> = paths
        .iter()
        .enumerate()
        .filter_map(|(index, path)| Some((index, selection.strip(path)?)))
        .filter(|(_, path)| path.file_name() != Manifest::FILE_NAME && !never.is_match(path.as_str()))
        .collect();
    if selection.include.is_empty() {
        candidates = by_default(candidates)?;
    } else {
        candidates.retain(|(_, path)| include.is_match(path.as_str()));
    }
    candidates.retain(|(_, path)| !exclude.is_match(path.as_str()));
    if candidates.is_empty() {
        let hint = if paths.is_empty() {
            "the place is empty"
        } else if !selection.include.is_empty() || !selection.exclude.is_empty() {
            "the globs leave none; a glob without / matches file names at any depth, * stays within one directory"
        } else if selection.subfolder.is_some() {
            "the subfolder has no files that an engine reads"
        } else {
            "none has a known weights or configuration format; name files with ?include=GLOB"
        };
        return Err(SelectError::Nothing { listed: paths.len(), hint: hint.to_owned() });
    }
    candidates.sort_by(|one, other| one.1.cmp(&other.1));
    let warnings = same_but_for_case(&candidates);
    Ok(Selected { taken: candidates.into_iter().map(|(index, _)| index).collect(), warnings })
}

/// Checks the globs of a selection without any paths, so that a bad one is refused before an origin is asked.
///
/// # Errors
/// [`SelectError::Glob`]
pub fn check_globs(selection: &Selection) -> Result<(), SelectError> {
    globs(&selection.include)?;
    globs(&selection.exclude).map(|_| ())
}

fn by_default(candidates: Vec<(usize, FilePath)>) -> Result<Vec<(usize, FilePath)>, SelectError> {
    let not_for_serving = fixed(&NOT_FOR_SERVING);
    let beside = fixed(&BESIDE);
    let candidates: Vec<_> =
        candidates.into_iter().filter(|(_, path)| !not_for_serving.is_match(path.as_str())).collect();
    let has = |test: &dyn Fn(&FilePath) -> bool| candidates.iter().any(|(_, path)| test(path));
    let hugging_face = has(&|path| is_safetensors(path) && !is_consolidated(path));
    let safetensors = has(&is_safetensors);
    let gguf = if safetensors { None } else { one_gguf(&candidates)? };
    let torch = !safetensors && gguf.is_none();
    Ok(candidates
        .into_iter()
        .filter(|(_, path)| {
            if is_safetensors(path) {
                // A repository that has both means the consolidated ones for its own vendor's loader.
                return !(hugging_face && is_consolidated(path));
            }
            if let Some(set) = gguf_set(path) {
                return gguf.as_ref() == Some(&set);
            }
            if torch && has_extension(path, &["bin", "pt", "pth"]) {
                return true;
            }
            beside.is_match(path.as_str())
        })
        .collect())
}

fn has_extension(path: &FilePath, extensions: &[&str]) -> bool {
    path.file_name().rsplit_once('.').is_some_and(|(_, extension)| extensions.contains(&extension))
}

fn is_safetensors(path: &FilePath) -> bool {
    has_extension(path, &["safetensors"])
}

fn is_consolidated(path: &FilePath) -> bool {
    path.file_name().starts_with("consolidated")
}

/// The name of the GGUF model that a file belongs to: the parts of a split one (`-00001-of-00003`) share theirs.
fn gguf_set(path: &FilePath) -> Option<String> {
    let stem = path.as_str().strip_suffix(".gguf")?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let cut = stem.rsplit_once("-of-").and_then(|(before, total)| {
        let (name, part) = before.rsplit_once('-')?;
        (is_number(part) && is_number(total)).then(|| name.to_owned())
    });
    Some(cut.unwrap_or_else(|| stem.to_owned()))
}

fn one_gguf(candidates: &[(usize, FilePath)]) -> Result<Option<String>, SelectError> {
    let mut sets: BTreeMap<String, &FilePath> = BTreeMap::new();
    for (_, path) in candidates {
        if let Some(set) = gguf_set(path) {
            sets.entry(set).or_insert(path);
        }
    }
    if sets.len() > 1 {
        let names: Vec<&str> = sets.values().map(|path| path.as_str()).collect();
        let more = if names.len() > 5 { ", ..." } else { "" };
        return Err(SelectError::Ambiguous {
            count: names.len(),
            names: format!("{}{more}", names[..names.len().min(5)].join(", ")),
            example: names[0].to_owned(),
        });
    }
    Ok(sets.into_keys().next())
}

fn same_but_for_case(candidates: &[(usize, FilePath)]) -> Vec<String> {
    let mut seen: HashMap<String, &FilePath> = HashMap::new();
    let mut warnings = Vec::new();
    for (_, path) in candidates {
        if let Some(other) = seen.insert(path.as_str().to_lowercase(), path) {
            warnings.push(format!("`{other}` and `{path}` differ in case only: some file systems cannot hold both"));
        }
    }
    warnings
}

/// A glob without `/` matches file names at any depth; `*` does not cross `/`.
fn compile(text: &str) -> Result<Glob, globset::Error> {
    let anywhere = if text.contains('/') { text.to_owned() } else { format!("**/{text}") };
    GlobBuilder::new(&anywhere).literal_separator(true).build()
}

fn globs(texts: &[String]) -> Result<GlobSet, SelectError> {
    let mut set = GlobSetBuilder::new();
    for text in texts {
        let wrong = |error: globset::Error| SelectError::Glob { glob: text.clone(), detail: error.kind().to_string() };
        set.add(compile(text).map_err(wrong)?);
    }
    set.build().map_err(|error| SelectError::Glob { glob: texts.join(" "), detail: error.kind().to_string() })
}

/// The constants above: a test compiles each.
fn fixed(texts: &[&str]) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for glob in texts.iter().filter_map(|text| compile(text).ok()) {
        set.add(glob);
    }
    set.build().unwrap_or_else(|_| GlobSet::empty())
}

// === the shard index ===

/// Most bytes of an index document: DeepSeek-V3's, with 90,000 tensors, has 9 MB.
pub const INDEX_LIMIT: usize = 64 << 20;

/// Most tensors in one index.
const INDEX_TENSORS: usize = 2_000_000;

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// The shard files that an index document names, beside itself in `directory`, sorted.
///
/// # Errors
/// [`IndexError`]
pub fn index_shards(json: &[u8], directory: Option<&str>) -> Result<Vec<FilePath>, IndexError> {
    if json.len() > INDEX_LIMIT {
        return Err(IndexError::Content("is larger than 64 MiB".to_owned()));
    }
    let index: Index = serde_json::from_slice(json)?;
    if index.weight_map.len() > INDEX_TENSORS {
        return Err(IndexError::Content("names more than 2,000,000 tensors".to_owned()));
    }
    let names: std::collections::BTreeSet<String> = index.weight_map.into_values().collect();
    names
        .into_iter()
        .map(|name| {
            let path = directory.map_or_else(|| name.clone(), |directory| format!("{directory}/{name}"));
            FilePath::new(path).map_err(|error| IndexError::Content(error.to_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn paths(names: &[&str]) -> Vec<FilePath> {
        names.iter().map(|name| FilePath::new(*name).unwrap()).collect()
    }

    fn taken(names: &[&str], query: &str) -> Result<Vec<String>, SelectError> {
        let reference: super::super::Reference = format!("s3://bucket/x{query}").parse().unwrap();
        let paths = paths(names);
        let selected = select(&paths, &reference.selection)?;
        Ok(selected.taken.into_iter().map(|index| paths[index].to_string()).collect())
    }

    #[test]
    fn the_fixed_globs_compile() {
        for text in NEVER.iter().chain(&BESIDE).chain(&NOT_FOR_SERVING) {
            assert!(compile(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_hugging_face_repository_loses_what_engines_do_not_read() {
        let names = [
            ".gitattributes",
            "LICENSE",
            "README.md",
            "chat_template.jinja",
            "config.json",
            "consolidated.safetensors",
            "figures/loss.png",
            "generation_config.json",
            "merges.txt",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "modeling_x.py",
            "onnx/model.onnx",
            "optimizer.pt",
            "original/consolidated.00.pth",
            "preheat-manifest.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "tokenizer.json",
            "tokenizer.model",
            "training_args.bin",
            "vocab.json",
        ];
        assert_eq!(
            taken(&names, "").unwrap(),
            [
                "chat_template.jinja",
                "config.json",
                "generation_config.json",
                "merges.txt",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "modeling_x.py",
                "tokenizer.json",
                "tokenizer.model",
                "vocab.json",
            ]
        );
    }

    #[test]
    fn sentence_transformers_keep_their_folders() {
        let names = ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "x/.cache/y.json"];
        assert_eq!(
            taken(&names, "").unwrap(),
            ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "x/.cache/y.json"]
        );
    }

    #[test]
    fn other_formats_are_taken_when_they_are_all_there_is() {
        assert_eq!(taken(&["config.json", "consolidated.safetensors"], "").unwrap().len(), 2);
        assert_eq!(taken(&["config.json", "pytorch_model.bin"], "").unwrap().len(), 2);
        assert_eq!(taken(&["m.gguf", "m.safetensors"], "").unwrap(), ["m.safetensors"]);
        let split = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "README.md"];
        assert_eq!(taken(&split, "").unwrap().len(), 2);
    }

    #[test]
    fn one_gguf_of_many_must_be_named() {
        let names = ["m-Q4_K.gguf", "m-Q8_0.gguf", "config.json"];
        let error = taken(&names, "").unwrap_err().to_string();
        assert!(error.contains("?include=m-Q4_K.gguf"), "{error}");
        assert_eq!(taken(&names, "?include=*Q8_0.gguf&include=config.json").unwrap(), ["config.json", "m-Q8_0.gguf"]);
    }

    #[test]
    fn globs_name_files_anywhere_or_paths_exactly() {
        let names = ["a.json", "d/a.json", "d/e/a.json"];
        assert_eq!(taken(&names, "?include=a.json").unwrap().len(), 3);
        assert_eq!(taken(&names, "?include=d/*.json").unwrap(), ["d/a.json"]);
        assert_eq!(taken(&names, "?include=d/**&exclude=e/**").unwrap().len(), 2);
        assert!(taken(&names, "?include=[").is_err());
        assert!(taken(&names, "?include=none.*").unwrap_err().to_string().contains("globs leave none"));
    }

    #[test]
    fn a_subfolder_is_all_there_is() {
        let reference: super::super::Reference = "s3://bucket/x@/v2".parse().unwrap();
        let paths = paths(&["config.json", "v2/config.json", "v2/model.safetensors", "v22/config.json"]);
        let selected = select(&paths, &reference.selection).unwrap();
        assert_eq!(selected.taken, [1, 2]);
        assert_eq!(reference.selection.strip(&paths[1]).unwrap().as_str(), "config.json");
    }

    #[test]
    fn names_that_differ_in_case_are_told() {
        let paths = paths(&["Config.json", "config.json"]);
        let selected = select(&paths, &Selection::default()).unwrap();
        assert_eq!((selected.taken.len(), selected.warnings.len()), (2, 1));
    }

    #[test]
    fn shards_are_read_from_the_index() {
        let json = br#"{"metadata":{"total_size":1},"weight_map":{"a":"m-2.safetensors","b":"m-1.safetensors","c":"m-2.safetensors"}}"#;
        let shards = index_shards(json, Some("sub")).unwrap();
        assert_eq!(shards, super::tests::paths(&["sub/m-1.safetensors", "sub/m-2.safetensors"]));
        for bad in [&b"{}"[..], b"[]", br#"{"weight_map":{"a":"../../x"}}"#, br#"{"weight_map":{"a":7}}"#] {
            assert!(index_shards(bad, None).is_err());
        }
    }

    proptest! {
        #[test]
        fn choosing_again_from_the_chosen_changes_nothing(
            names in prop::collection::btree_set("([a-z]{1,3}/)?(model|config|consolidated|x)\\.(safetensors|json|bin|gguf|py)", 1..12)
        ) {
            let all: Vec<FilePath> = names.iter().map(|name| FilePath::new(name.as_str()).unwrap()).collect();
            if let Ok(first) = select(&all, &Selection::default()) {
                let chosen: Vec<FilePath> = first.taken.iter().map(|&index| all[index].clone()).collect();
                let again = select(&chosen, &Selection::default()).unwrap();
                prop_assert_eq!(again.taken.len(), chosen.len());
            }
        }
    }
}
