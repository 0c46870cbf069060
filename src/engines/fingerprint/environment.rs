//! The environment: which variables change what is compiled. By prefix, since the lists of the engines grow with every release;
//! minus what says only where a process is (hosts, ports), where its caches are (those are paths), how loud it is, and what lets
//! somebody in (credentials, which are in nobody's key in any form: they change, and nothing is compiled for them). What is merely
//! called a key or a token counts: engines have limits of tokens by the dozen.

use super::facts::{Facts, hidden};
use super::scene::Scene;
use crate::engines::secrets::names_credential;

/// Beginnings of the names that count.
const PREFIXES: [&str; 16] = [
    "VLLM_",
    "TORCH",
    "TRITON_",
    "PYTORCH_",
    "FLASHINFER_",
    "DG_",
    "SGLANG_",
    "SGL_",
    "TLLM_",
    "TRTLLM_",
    "CUDA_",
    "NVCC_",
    "NCCL_",
    "TILELANG_",
    "CUTE_DSL_",
    "TVM_",
];

/// Whole names that count.
const NAMES: [&str; 6] = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "CC", "CXX", "CFLAGS", "CXXFLAGS"];

/// Names that count by their prefix and do not.
const NONE: [&str; 9] = [
    // Ordinals are normalised: what is visible is a field of its own.
    "CUDA_VISIBLE_DEVICES",
    // Paths with fields of their own.
    "CUDA_HOME",
    "CUDA_PATH",
    // Of one process or pod.
    "VLLM_RAY_BUNDLE_INDICES",
    "VLLM_RAY_DP_PLACEMENT_NODE_IPS",
    "VLLM_PROCESS_NAME_PREFIX",
    "VLLM_INSTANCE_ID",
    "VLLM_NO_USAGE_STATS",
    "VLLM_DO_NOT_TRACK",
];

/// A part of a name, between underscores, that says where or how loud.
const PLACES: [&str; 17] = [
    "HOST", "HOSTS", "HOSTNAME", "PORT", "PORTS", "IP", "IPS", "ADDR", "ADDRESS", "ENDPOINT", "URL", "URI", "LOG",
    "LOGS", "LOGGING", "LOGGER", "PID",
];

/// Adds each variable that counts, as the digest of its value.
pub(super) fn detect(scene: &Scene, facts: &mut Facts) {
    for (name, value) in &scene.environment {
        if counts(name) {
            facts.know(format!("env.{name}"), hidden(value), "environment");
        }
    }
}

/// Whether a variable is a field of the key.
fn counts(name: &str) -> bool {
    let named = NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    named && !NONE.contains(&name) && !has_part(name, &PLACES) && !names_credential(name) && !is_cache(name)
}

/// Whether a variable says where a cache is.
fn is_cache(name: &str) -> bool {
    let place = ["DIR", "ROOT", "PATH", "HOME", "BASE", "LOCATION"];
    let known = ["TRITON_HOME", "FLASHINFER_WORKSPACE_BASE", "TRITON_DUMP_DIR"];
    known.contains(&name) || has_part(name, &["CACHE"]) && has_part(name, &place)
}

fn has_part(name: &str, parts: &[&str]) -> bool {
    let upper = name.to_ascii_uppercase();
    upper.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| parts.contains(&part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_and_what_does_not() {
        for name in [
            "VLLM_USE_AOT_COMPILE",
            "TORCHINDUCTOR_FREEZING",
            "TRITON_PTXAS_PATH",
            "PYTORCH_CUDA_ALLOC_CONF",
            "FLASHINFER_DISABLE_JIT",
            "SGLANG_JIT_DEEPGEMM_FAST_WARMUP",
            "CUDA_LAUNCH_BLOCKING",
            "NCCL_DEBUG",
            "OMP_NUM_THREADS",
            "TORCH_CUDA_ARCH_LIST",
            "DG_JIT_USE_NVRTC",
            "VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE",
            "SGLANG_FLASHINFER_NVFP4_PER_TOKEN_ACTIVATION",
            "SGLANG_TRTLLM_MOE_PDL_MAX_TOKENS",
        ] {
            assert!(counts(name), "{name}");
        }
        for name in [
            "HOME",
            "VLLM_HOST_IP",
            "VLLM_PORT",
            "VLLM_PORT_8000_TCP_PROTO",
            "VLLM_NIXL_SIDE_CHANNEL_PORT",
            "VLLM_LOOPBACK_IP",
            "VLLM_API_KEY",
            "VLLM_CACHE_ROOT",
            "TRITON_CACHE_DIR",
            "TORCH_LOGS",
            "VLLM_LOGGING_LEVEL",
            "CUDA_VISIBLE_DEVICES",
            "CUDA_CACHE_PATH",
            "SGLANG_SECRET_THING",
            "CUDA_HOME",
        ] {
            assert!(!counts(name), "{name}");
        }
    }

    #[test]
    fn values_are_hidden_and_secrets_are_absent() {
        let environment = [("VLLM_X", "plain-value"), ("VLLM_API_KEY", "hunter2hunter2"), ("HF_TOKEN", "hf_abcdefgh")];
        let scene = Scene {
            root: "/".into(),
            environment: environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            argv: Vec::new(),
            directory: "/".into(),
        };
        let mut facts = Facts::default();
        detect(&scene, &mut facts);
        let text = format!("{facts:?}");
        assert!(text.contains("env.VLLM_X") && !text.contains("plain-value") && !text.contains("hunter2"), "{text}");
    }
}
