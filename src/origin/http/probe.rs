//! What a web server that cannot be listed has of the names that engines read.

use std::sync::{Mutex, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Head, HttpOrigin};
use crate::model::source::SourceError;
use crate::model::{FilePath, INDEX_LIMIT, Manifest, Reference, index_shards};

/// Questions under way at once: two rounds of them for most models, over no more connections than its bytes will come by.
const AT_ONCE: usize = 16;

/// Weights that have a fixed name; shards are named by the index.
const WEIGHTS: [&str; 3] = ["model.safetensors", "pytorch_model.bin", "adapter_model.safetensors"];

/// Everything else that vLLM, SGLang and sentence-transformers read at load.
const BESIDE: [&str; 22] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "quantize_config.json",
    "adapter_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "params.json",
];

/// Finds the files that exist, with what their HEAD says.
pub(super) async fn files(
    origin: &HttpOrigin,
    reference: &Reference,
    locate: &(impl Fn(&FilePath) -> String + Sync),
) -> Result<Vec<(FilePath, Head)>, SourceError> {
    let selection = &reference.selection;
    let under = |name: &str| {
        let path = selection.subfolder.as_ref().map_or_else(|| name.to_owned(), |folder| format!("{folder}/{name}"));
        FilePath::new(path).map_err(|error| SourceError::Invalid { detail: error.to_string() })
    };
    let index_path = under("model.safetensors.index.json")?;
    let index = origin.small(&locate(&index_path), INDEX_LIMIT).await.or_else(absent)?;
    let mut names: Vec<FilePath> = Vec::new();
    if let Some(json) = &index {
        let folder = selection.subfolder.as_ref().map(FilePath::as_str);
        let shards = index_shards(json, folder)
            .map_err(|error| SourceError::Invalid { detail: format!("{}: {error}", reference.base()) })?;
        names.push(index_path);
        names.extend(shards.iter().cloned());
    } else {
        for name in WEIGHTS {
            names.push(under(name)?);
        }
    }
    // What is named exactly is asked for too, whatever it is.
    let exact = selection.include.iter().filter(|glob| !glob.contains(['*', '?', '[', '{']));
    for name in BESIDE.into_iter().chain(exact.map(String::as_str)) {
        names.push(under(name)?);
    }
    names.sort();
    names.dedup();
    let denied = Mutex::new(None);
    let found: Vec<(FilePath, Option<Head>)> = stream::iter(names)
        .map(|path| {
            let denied = &denied;
            async move {
                let head = match origin.head(&locate(&path)).await {
                    Err(error @ SourceError::Denied { .. }) => {
                        denied.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        None
                    }
                    outcome => outcome?,
                };
                Ok::<_, SourceError>((path, head))
            }
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    if let Some(json) = &index {
        let folder = selection.subfolder.as_ref().map(FilePath::as_str);
        let shards = index_shards(json, folder).unwrap_or_default();
        if let Some((path, _)) = found.iter().find(|(path, head)| head.is_none() && shards.contains(path)) {
            return Err(SourceError::NotFound { what: format!("{}, which the index names,", locate(path)) });
        }
    }
    let found: Vec<(FilePath, Head)> = found.into_iter().filter_map(|(path, head)| Some((path, head?))).collect();
    if found.is_empty() {
        // A server that refuses everything has something, or hides that it has nothing.
        if let Some(denied) = denied.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(denied);
        }
        let base = reference.base();
        return Err(SourceError::NotFound {
            what: format!(
                "a model at {base}, which cannot be listed (publish {manifest} beside the files, made by `preheat manifest \
                 DIR > DIR/{manifest}`, or name one file),",
                manifest = Manifest::FILE_NAME
            ),
        });
    }
    Ok(found)
}

/// Static sites on object stores answer 403 for what does not exist.
fn absent<T>(error: SourceError) -> Result<Option<T>, SourceError> {
    if matches!(error, SourceError::Denied { .. }) { Ok(None) } else { Err(error) }
}
