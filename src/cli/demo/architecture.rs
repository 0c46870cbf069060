//! The generated model: tensor names, shapes and shard counts of published Llama-family models, with as many of their layers
//! as the wanted size allows. The content is noise; what loads it sees the real structure.

use serde_json::{Map, Value, json};

use super::content::Content;
use crate::base::units::MIB;

/// One published model. Figures from its `config.json`; shards as in its `model.safetensors.index.json`.
#[derive(Debug)]
struct Architecture {
    name: &'static str,
    hidden: u64,
    intermediate: u64,
    layers: u64,
    heads: u64,
    key_value_heads: u64,
    vocabulary: u64,
    tied_embeddings: bool,
    shards: usize,
}

static ARCHITECTURES: [Architecture; 5] = [
    Architecture {
        name: "SmolLM-135M",
        hidden: 576,
        intermediate: 1536,
        layers: 30,
        heads: 9,
        key_value_heads: 3,
        vocabulary: 49_152,
        tied_embeddings: true,
        shards: 1,
    },
    Architecture {
        name: "SmolLM2-360M",
        hidden: 960,
        intermediate: 2560,
        layers: 32,
        heads: 15,
        key_value_heads: 5,
        vocabulary: 49_152,
        tied_embeddings: true,
        shards: 1,
    },
    Architecture {
        name: "Llama-3.2-3B",
        hidden: 3072,
        intermediate: 8192,
        layers: 28,
        heads: 24,
        key_value_heads: 8,
        vocabulary: 128_256,
        tied_embeddings: true,
        shards: 2,
    },
    Architecture {
        name: "Llama-3.1-8B",
        hidden: 4096,
        intermediate: 14_336,
        layers: 32,
        heads: 32,
        key_value_heads: 8,
        vocabulary: 128_256,
        tied_embeddings: false,
        shards: 4,
    },
    Architecture {
        name: "Llama-3.1-70B",
        hidden: 8192,
        intermediate: 28_672,
        layers: 80,
        heads: 64,
        key_value_heads: 8,
        vocabulary: 128_256,
        tied_embeddings: false,
        shards: 30,
    },
];

/// Below this not even the smallest model's embedding and one layer fit.
pub(super) const SMALLEST: u64 = 64 * MIB;

/// One tensor: name and shape, BF16.
type Tensor = (String, Vec<u64>);

/// A generated model: its files, none of which exists anywhere before it is asked for.
#[derive(Debug)]
pub(super) struct GeneratedModel {
    /// Which model it is shaped like, and how much of it.
    pub(super) description: String,
    /// Name and content of each file.
    pub(super) files: Vec<(String, Content)>,
}

// === impl Architecture ===

impl Architecture {
    fn layer(&self, index: u64) -> Vec<Tensor> {
        let (hidden, intermediate) = (self.hidden, self.intermediate);
        let key_value = hidden / self.heads * self.key_value_heads;
        [
            ("input_layernorm.weight", vec![hidden]),
            ("mlp.down_proj.weight", vec![hidden, intermediate]),
            ("mlp.gate_proj.weight", vec![intermediate, hidden]),
            ("mlp.up_proj.weight", vec![intermediate, hidden]),
            ("post_attention_layernorm.weight", vec![hidden]),
            ("self_attn.k_proj.weight", vec![key_value, hidden]),
            ("self_attn.o_proj.weight", vec![hidden, hidden]),
            ("self_attn.q_proj.weight", vec![hidden, hidden]),
            ("self_attn.v_proj.weight", vec![key_value, hidden]),
        ]
        .into_iter()
        .map(|(name, shape)| (format!("model.layers.{index}.{name}"), shape))
        .collect()
    }

    fn head(&self) -> Vec<Tensor> {
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocabulary, self.hidden])];
        if !self.tied_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocabulary, self.hidden]));
        }
        tensors.push(("model.norm.weight".to_owned(), vec![self.hidden]));
        tensors
    }

    /// How many layers bring the model nearest to `size` from below; `None` if not even one fits.
    fn layers_for(&self, size: u64) -> Option<u64> {
        let fixed: u64 = self.head().iter().map(bytes_of).sum();
        let each: u64 = self.layer(0).iter().map(bytes_of).sum();
        let layers = size.checked_sub(fixed)? / each;
        (layers > 0).then(|| layers.min(self.layers))
    }

    fn config(&self, layers: u64) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": self.key_value_heads,
            "tie_word_embeddings": self.tied_embeddings,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocabulary,
        })
    }
}

// === impl GeneratedModel ===

impl GeneratedModel {
    /// The model nearest to `size` bytes from below; the largest known one if `size` is beyond it.
    pub(super) fn of_size(size: u64) -> Option<Self> {
        // The smallest architecture that can fill the size looks most like itself.
        let fill = |architecture: &Architecture| {
            let layers = architecture.layers_for(size)?;
            (layers < architecture.layers || std::ptr::eq(architecture, &ARCHITECTURES[ARCHITECTURES.len() - 1]))
                .then_some(layers)
        };
        let (architecture, layers) =
            ARCHITECTURES.iter().find_map(|known| fill(known).map(|layers| (known, layers))).or_else(|| {
                ARCHITECTURES.iter().rev().find_map(|known| known.layers_for(size).map(|layers| (known, layers)))
            })?;
        let mut tensors = architecture.head();
        tensors.extend((0..layers).flat_map(|index| architecture.layer(index)));
        let shards = split(tensors, architecture.shards);
        let mut files = Vec::new();
        let mut weight_map = Map::new();
        let count = shards.len();
        let mut total = 0;
        for (number, shard) in shards.into_iter().enumerate() {
            let name = if count == 1 {
                "model.safetensors".to_owned()
            } else {
                format!("model-{:05}-of-{count:05}.safetensors", number + 1)
            };
            total += shard.iter().map(bytes_of).sum::<u64>();
            for (tensor, _) in &shard {
                weight_map.insert(tensor.clone(), Value::String(name.clone()));
            }
            let (header, data_bytes) = header(&shard);
            files.push((name, Content::noise(header, data_bytes, number as u64 + 1)));
        }
        let text = |value: &Value| Content::fixed(format!("{value:#}\n").into_bytes());
        if count > 1 {
            let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
            files.push(("model.safetensors.index.json".to_owned(), text(&index)));
        }
        files.push(("config.json".to_owned(), text(&architecture.config(layers))));
        files.push(("generation_config.json".to_owned(), text(&json!({"bos_token_id": 1, "eos_token_id": 2}))));
        let all = architecture.layers;
        Some(Self {
            description: format!(
                "{}, {layers} of {all} layers, {count} shard{}",
                architecture.name,
                if count == 1 { "" } else { "s" }
            ),
            files,
        })
    }
}

fn bytes_of(tensor: &Tensor) -> u64 {
    2 * tensor.1.iter().product::<u64>()
}

/// Cuts the tensors, in order, into shards of about equal size, as the published ones are.
fn split(tensors: Vec<Tensor>, shards: usize) -> Vec<Vec<Tensor>> {
    let total: u64 = tensors.iter().map(bytes_of).sum();
    let each = total.div_ceil(shards as u64);
    let mut cut: Vec<Vec<Tensor>> = vec![Vec::new()];
    let mut before = 0;
    for tensor in tensors {
        let open = cut.len();
        if before >= each * open as u64 && open < shards {
            cut.push(Vec::new());
        }
        before += bytes_of(&tensor);
        if let Some(last) = cut.last_mut() {
            last.push(tensor);
        }
    }
    cut
}

/// A safetensors header with its length prefix, and the number of data bytes it describes.
fn header(tensors: &[Tensor]) -> (Vec<u8>, u64) {
    let mut map = Map::new();
    map.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + bytes_of(tensor);
        map.insert(tensor.0.clone(), json!({"dtype": "BF16", "shape": tensor.1, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut json = Value::Object(map).to_string().into_bytes();
    // The format asks for data that starts on a multiple of eight; blanks are its padding.
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    (header, offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::GIB;

    #[test]
    fn sizes_are_met_from_below() {
        for size in [SMALLEST, 200 * MIB, GIB, 2 * GIB, 5 * GIB, 16 * GIB, 60 * GIB] {
            let model = GeneratedModel::of_size(size).expect("a model of this size");
            let bytes: u64 = model.files.iter().map(|(_, content)| content.len()).sum();
            assert!(bytes <= size + MIB && bytes > size / 2, "{size}: {bytes} in {}", model.description);
        }
        assert!(GeneratedModel::of_size(MIB).is_none());
    }

    #[test]
    fn every_shard_is_valid_safetensors() {
        let model = GeneratedModel::of_size(SMALLEST).expect("a model");
        let (_, content) = &model.files[0];
        let mut bytes = vec![0; content.len() as usize];
        content.read(0, &mut bytes).expect("read");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        assert_eq!(tensors.tensor("model.norm.weight").expect("norm").shape(), [576]);
    }
}
