//! Which field decides for which kind of bundle: the one table that detectors, documentation and tests go by.

use super::{BundleKind, Role};

/// What makes a soft field hard in some runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// There is no GPU: the CPU is what is compiled for.
    pub on_cpu: bool,
    /// The driver must be the same: asked for, or its own cache is captured.
    pub strict_driver: bool,
    /// The amount of GPU memory is compiled in: a startup plan, a TensorRT engine.
    pub memory_compiled_in: bool,
    /// The weights are compiled in: a TensorRT engine.
    pub weights_compiled_in: bool,
}

/// The variable of the CUDA driver's own cache: whoever sets it wants it kept, and it is good for one driver only.
pub const CUDA_CACHE: &str = "CUDA_CACHE_PATH";

/// When a field is in a key, and as what.
#[derive(Clone, Copy)]
enum Rule {
    Hard,
    Soft,
    /// Hard where it is known, soft where it is not.
    HardIfKnown,
    /// Not in keys of this kind.
    Leave,
    HardOnCpu,
    HardIfStrictDriver,
    HardIfMemory,
    HardIfWeights,
    /// Variables that code generators read are hard, others are left out.
    JitOnly,
}

use Rule::{Hard, HardIfKnown, HardIfMemory, HardIfStrictDriver, HardIfWeights, HardOnCpu, JitOnly, Leave, Soft};

/// Name (or prefix with `*`), then the rule for graph and for kernel. The first that matches counts.
const RULES: &[(&str, Rule, Rule)] = &[
    ("gpu.vendor", Hard, Hard),
    ("gpu.name", Hard, Hard),
    ("gpu.mig", Hard, Hard),
    ("gpu.capability", Hard, Hard),
    ("gpu.sm_count", HardIfKnown, Soft),
    ("gpu.count", Hard, Leave),
    ("gpu.others", Hard, Leave),
    ("gpu.ordinals", Hard, Leave),
    ("gpu.memory", HardIfMemory, Soft),
    ("gpu.driver", HardIfStrictDriver, Soft),
    ("gpu.*", Soft, Soft),
    ("cuda.runtime", Hard, Hard),
    ("tensorrt.version", Hard, Hard),
    ("toolchain.*", Soft, Hard),
    ("image.digest", HardIfKnown, HardIfKnown),
    ("python.*", Hard, Hard),
    ("package.*", Hard, Hard),
    ("dependencies", Hard, Hard),
    ("source.*", Hard, Hard),
    ("cpu.arch", Hard, Hard),
    ("cpu.isa", HardOnCpu, HardOnCpu),
    ("cpu.threads", HardOnCpu, HardOnCpu),
    ("cpu.*", Soft, Soft),
    ("model.weights", HardIfWeights, Leave),
    ("model.*", Hard, Leave),
    ("parallel.node_rank", Hard, Hard),
    ("parallel.*", Hard, Leave),
    ("argv.*", Hard, Leave),
    ("file.*", Hard, Leave),
    ("env.NCCL_*", Soft, Leave),
    ("env.*", Hard, JitOnly),
    ("path.*", Hard, Hard),
    ("salt", Hard, Hard),
];

/// Beginnings of the variables that compilers of single kernels read.
const JIT: &[&str] = &[
    "TRITON_",
    "FLASHINFER_",
    "DG_",
    "SGLANG_DG_",
    "SGL_DG_",
    "TILELANG_",
    "CUTE_DSL_",
    "TVM_",
    "TORCH_CUDA_ARCH_LIST",
    "CUDA_",
    "NVCC_",
    "CC",
    "CXX",
    "CFLAGS",
    "CXXFLAGS",
    "MAX_JOBS",
];

/// The role of a field in keys of a kind; `None` where such keys do not have it. `known`: whether it has a value.
#[must_use]
pub fn rule(name: &str, kind: BundleKind, known: bool, circumstances: Circumstances) -> Option<Role> {
    let matching = RULES.iter().find(|(pattern, ..)| matches(pattern, name));
    // What no rule knows decides: to be too careful costs a compilation, to be careless a crash.
    let rule = matching.map_or(Hard, |(_, graph, kernel)| match kind {
        BundleKind::Graph => *graph,
        BundleKind::Kernel => *kernel,
    });
    let hard_if = |hard: bool| Some(if hard { Role::Hard } else { Role::Soft });
    match rule {
        Hard => Some(Role::Hard),
        Soft => Some(Role::Soft),
        Leave => None,
        HardIfKnown => hard_if(known),
        HardOnCpu => hard_if(circumstances.on_cpu),
        HardIfStrictDriver => hard_if(circumstances.strict_driver),
        HardIfMemory => hard_if(circumstances.memory_compiled_in),
        HardIfWeights => hard_if(circumstances.weights_compiled_in),
        JitOnly => {
            let variable = name.strip_prefix("env.").unwrap_or(name);
            // Whole words stand for themselves, beginnings end with an underscore.
            let jit = |word: &str| if word.ends_with('_') { variable.starts_with(word) } else { variable == word };
            JIT.iter().any(|word| jit(word)).then_some(Role::Hard)
        }
    }
}

/// Whether `name` is `pattern`, or begins with what stands before its `*`.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(name: &str, known: bool, circumstances: Circumstances) -> [Option<Role>; 2] {
        BundleKind::ALL.map(|kind| rule(name, kind, known, circumstances))
    }

    #[test]
    fn roles_are_those_of_the_table() {
        let plain = Circumstances::default();
        let (hard, soft) = (Some(Role::Hard), Some(Role::Soft));
        for (name, expected) in [
            ("gpu.name", [hard, hard]),
            ("gpu.sm_count", [hard, soft]),
            ("gpu.count", [hard, None]),
            ("gpu.memory", [soft, soft]),
            ("gpu.driver", [soft, soft]),
            ("gpu.vbios", [soft, soft]),
            ("toolchain.nvcc", [soft, hard]),
            ("dependencies", [hard, hard]),
            ("source./app", [hard, hard]),
            ("cpu.threads", [soft, soft]),
            ("model.config", [hard, None]),
            ("model.weights", [soft, None]),
            ("parallel.tp", [hard, None]),
            ("argv.--max-model-len", [hard, None]),
            ("env.VLLM_X", [hard, None]),
            ("env.TRITON_X", [hard, hard]),
            ("env.NCCL_X", [soft, None]),
            ("env.CCACHE_DIR", [hard, None]),
            ("path.home", [hard, hard]),
            ("never.heard", [hard, hard]),
        ] {
            assert_eq!(roles(name, true, plain), expected, "{name}");
        }
        assert_eq!(roles("gpu.sm_count", false, plain), [soft, soft]);
        let all =
            Circumstances { on_cpu: true, strict_driver: true, memory_compiled_in: true, weights_compiled_in: true };
        assert_eq!(roles("cpu.threads", true, all), [hard, hard]);
        assert_eq!(roles("gpu.driver", true, all), [hard, soft]);
        assert_eq!(roles("gpu.memory", true, all), [hard, soft]);
        assert_eq!(roles("model.weights", true, all), [hard, None]);
    }
}
