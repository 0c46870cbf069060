//! One machine set up in a directory, one fact changed at a time: what must decide does, and nothing else.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use preheat::engines::fingerprint::{Asked, Fingerprint, Scene};
use preheat::engines::profile::built_in;
use preheat::model::engine::{BundleKind, EngineKey};
use serde_json::{Value, json};

use super::super::support::command::{code, json as json_of, preheat, stderr};

fn put(root: &Path, path: &str, text: &str) {
    let place = root.join(path);
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    std::fs::write(&place, text).unwrap();
    std::fs::set_permissions(place, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn h100() -> Value {
    json!({
        "vendor": "nvidia", "driver": "580.65.06", "driver_cuda": "13.0",
        "gpus": [{
            "name": "NVIDIA H100 80GB HBM3", "capability": "9.0", "sm_count": 132, "memory_mib": 81559,
            "vbios": "96.00.74.00.01", "ecc": true, "uuid": "GPU-0001"
        }]
    })
}

/// A node with a GPU, a virtual environment with vLLM, and a model.
struct Machine {
    root: tempfile::TempDir,
    gpus: Value,
    environment: BTreeMap<String, String>,
    argv: Vec<String>,
    asked: Asked,
}

impl Machine {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let at = root.path();
        put(at, "venv/pyvenv.cfg", "home = /usr/bin\nversion = 3.11.7\n");
        put(at, "venv/bin/python3", "an interpreter");
        put(at, "venv/bin/vllm", "#!/venv/bin/python3\n");
        let site = "venv/lib/python3.11/site-packages";
        put(at, &format!("{site}/torch/version.py"), "cuda: Optional[str] = '13.2'\n");
        for (package, record) in
            [("torch-2.15.0", "t"), ("vllm-0.32.0", "v"), ("numpy-2.3.0", "n"), ("tensorrt-10.9", "r")]
        {
            put(at, &format!("{site}/{package}.dist-info/RECORD"), record);
        }
        put(at, "cuda/version.json", r#"{"cuda_nvcc": {"version": "13.2.51"}}"#);
        put(at, "venv/bin/g++", "#!/bin/sh\necho 12.2.0\n");
        put(at, "venv/bin/ldd", "#!/bin/sh\necho 'ldd (GNU libc) 2.36'\n");
        put(at, "proc/cpuinfo", "model name: X\nflags: fpu avx2\n");
        put(at, "proc/self/status", "Cpus_allowed_list: 0-7\n");
        put(at, "models/m/config.json", "{}");
        put(at, "models/m/modeling.py", "x");
        put(at, "models/m/quantize_config.json", "{}");
        put(at, "models/draft/config.json", "{}");
        put(at, "template.jinja", "x");
        let environment = [
            ("PATH", "/venv/bin"),
            ("HOME", "/home/me"),
            ("USER", "me"),
            ("CUDA_HOME", "/cuda"),
            ("VLLM_USE_V2", "1"),
            ("TRITON_X", "1"),
            ("NCCL_DEBUG", "INFO"),
            ("PREHEAT_IMAGE_DIGEST", "sha256:aa"),
        ];
        Self {
            gpus: h100(),
            environment: environment.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            argv: [
                "vllm",
                "serve",
                "/models/m",
                "--max-model-len",
                "4096",
                "--chat-template",
                "/template.jinja",
                "-tp",
                "1",
                "--speculative-config",
                r#"{"model": "/models/draft", "n": 2}"#,
            ]
            .map(str::to_owned)
            .to_vec(),
            asked: Asked { salt: Some("s".to_owned()), ..Asked::default() },
            root,
        }
    }

    fn key(&self, kind: BundleKind) -> EngineKey {
        let facts = self.root.path().join("facts.json");
        std::fs::write(&facts, self.gpus.to_string()).unwrap();
        let scene = Scene {
            root: self.root.path().to_owned(),
            environment: self.environment.clone(),
            argv: self.argv.clone(),
            directory: "/".into(),
        };
        let asked = Asked { gpu_facts: Some(facts), ..self.asked.clone() };
        Fingerprint::take(&scene, &asked, &built_in()).unwrap().key(kind).unwrap()
    }

    fn keys(&self) -> [EngineKey; 2] {
        BundleKind::ALL.map(|kind| self.key(kind))
    }

    fn put(&self, path: &str, text: &str) {
        put(self.root.path(), path, text);
    }

    fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    fn gpu(&mut self, field: &str, value: Value) {
        self.gpus["gpus"][0][field] = value;
    }

    fn argument(&mut self, name: &str, value: &str) {
        self.argv.extend([name.to_owned(), value.to_owned()]);
    }
}

const SITE: &str = "venv/lib/python3.11/site-packages";

/// What is changed; whether the graph's key is another then, and the kernel's; the field that `explain` names first.
type Change = (&'static str, bool, bool, &'static str, fn(&mut Machine));

const CHANGES: &[Change] = &[
    ("another profile", true, true, "profile", |m| m.asked.engine = Some("sglang".to_owned())),
    ("vendor", true, true, "gpu.vendor", |m| m.gpus["vendor"] = json!("other")),
    ("GPU", true, true, "gpu.name", |m| m.gpu("name", json!("NVIDIA H100 PCIe"))),
    ("slice", true, true, "gpu.mig", |m| m.gpu("mig", json!("1g.10gb"))),
    ("capability", true, true, "gpu.capability", |m| m.gpu("capability", json!("9.1"))),
    ("multiprocessors", true, false, "gpu.sm_count", |m| m.gpu("sm_count", json!(114))),
    ("two GPUs", true, false, "gpu.count", |m| m.gpus["gpus"] = json!([h100()["gpus"][0], h100()["gpus"][0]])),
    ("CUDA runtime", true, true, "cuda.runtime", |m| {
        m.put(&format!("{SITE}/torch/version.py"), "cuda: str = '12.9'\n");
    }),
    ("TensorRT", true, true, "package.tensorrt", |m| {
        std::fs::rename(
            m.root.path().join(SITE).join("tensorrt-10.9.dist-info"),
            m.root.path().join(SITE).join("tensorrt-10.10.dist-info"),
        )
        .unwrap();
    }),
    ("nvcc", false, true, "toolchain.nvcc", |m| m.put("cuda/version.json", r#"{"cuda_nvcc": {"version": "13.2.52"}}"#)),
    ("gcc", false, true, "toolchain.gcc", |m| m.put("venv/bin/g++", "#!/bin/sh\necho 13.1.0\n")),
    ("glibc", false, true, "toolchain.glibc", |m| m.put("venv/bin/ldd", "#!/bin/sh\necho 'ldd 2.41'\n")),
    ("CUDA_HOME", true, true, "path.cuda_home", |m| {
        m.put("cuda2/version.json", r#"{"cuda_nvcc": {"version": "13.2.51"}}"#);
        m.set("CUDA_HOME", "/cuda2");
    }),
    ("Python", true, true, "python.version", |m| m.put("venv/pyvenv.cfg", "home = /usr/bin\nversion = 3.11.8\n")),
    ("interpreter", true, true, "python.build", |m| m.put("venv/bin/python3", "another interpreter")),
    ("implementation", true, true, "python.implementation", |m| {
        m.put("venv/pyvenv.cfg", "home = /usr/bin\nversion = 3.11.7\nimplementation = PyPy\n");
    }),
    ("torch", true, true, "package.torch", |m| m.put(&format!("{SITE}/torch-2.15.0.dist-info/RECORD"), "patched")),
    ("numpy", true, true, "package.numpy", |m| m.put(&format!("{SITE}/numpy-2.3.0.dist-info/RECORD"), "patched")),
    ("one package more", true, true, "package.extra", |m| m.put(&format!("{SITE}/extra-1.dist-info/RECORD"), "x")),
    ("a package in front", true, true, "package.torch", |m| {
        m.put("over/torch-2.16.0.dist-info/RECORD", "o");
        m.set("PYTHONPATH", "/over");
    }),
    ("a checkout in front", true, true, "source./over", |m| {
        m.put("over/vllm/__init__.py", "x");
        m.set("PYTHONPATH", "/over");
    }),
    ("image", true, true, "image.digest", |m| m.set("PREHEAT_IMAGE_DIGEST", "sha256:bb")),
    ("HOME", true, true, "path.home", |m| m.set("HOME", "/home/other")),
    ("XDG_CACHE_HOME", true, true, "path.xdg_cache", |m| m.set("XDG_CACHE_HOME", "/cache")),
    ("cache root", true, true, "path.cache_root.vllm", |m| m.set("VLLM_CACHE_ROOT", "/elsewhere")),
    ("model's path", true, false, "model.reference", |m| {
        m.put("other/m/config.json", "{}");
        m.put("other/m/modeling.py", "x");
        m.put("other/m/quantize_config.json", "{}");
        m.argv[2] = "/other/m".to_owned();
    }),
    ("revision", true, false, "model.revision", |m| m.argument("--revision", "v2")),
    ("model's configuration", true, false, "model.config", |m| m.put("models/m/config.json", "{ }")),
    ("quantisation", true, false, "model.quantization", |m| m.put("models/m/quantize_config.json", "{ }")),
    ("model's code", true, false, "model.code", |m| m.put("models/m/modeling.py", "y")),
    ("tensor parallelism", true, false, "parallel.tp", |m| m.argv[8] = "2".to_owned()),
    ("pipeline parallelism", true, false, "parallel.pp", |m| m.argument("--pipeline-parallel-size", "2")),
    ("data parallelism", true, false, "parallel.dp", |m| m.argument("-dp", "2")),
    ("expert parallelism", true, false, "parallel.ep", |m| m.argv.push("--enable-expert-parallel".to_owned())),
    ("nodes", true, false, "parallel.nnodes", |m| m.set("LWS_GROUP_SIZE", "2")),
    ("rank", true, true, "node_rank", |m| m.set("LWS_WORKER_INDEX", "1")),
    ("an option", true, false, "argv.--max-model-len", |m| m.argv[4] = "8192".to_owned()),
    ("an option more", true, false, "argv.--kv-transfer-config", |m| m.argument("--kv-transfer-config", r#"{"n": 3}"#)),
    ("a word more of an option", true, false, "argv.--max-model-len", |m| m.argv.insert(5, "8".to_owned())),
    ("a file that is named", true, false, "file./template.jinja", |m| m.put("template.jinja", "y")),
    ("a variable", true, false, "env.VLLM_USE_V2", |m| m.set("VLLM_USE_V2", "0")),
    ("a variable more", true, false, "env.TORCHINDUCTOR_FREEZING", |m| m.set("TORCHINDUCTOR_FREEZING", "1")),
    ("a variable of the compilers", true, true, "env.TRITON_X", |m| m.set("TRITON_X", "2")),
    ("a limit of tokens", true, false, "env.VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE", |m| {
        m.set("VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE", "16384");
    }),
    ("a draft model's configuration", true, false, "file./models/draft/", |m| {
        m.put("models/draft/config.json", "{ }");
    }),
    ("salt", true, true, "salt", |m| m.asked.salt = Some("t".to_owned())),
    // Soft: shown, and nothing more.
    ("driver", false, false, "", |m| m.gpus["driver"] = json!("590.1")),
    ("driver's CUDA", false, false, "", |m| m.gpus["driver_cuda"] = json!("13.1")),
    ("memory", false, false, "", |m| m.gpu("memory_mib", json!(81_000))),
    ("video BIOS", false, false, "", |m| m.gpu("vbios", json!("96.00.74.00.02"))),
    ("ECC", false, false, "", |m| m.gpu("ecc", json!(false))),
    ("NCCL", false, false, "", |m| m.set("NCCL_DEBUG", "WARN")),
    ("threads beside a GPU", false, false, "", |m| m.put("proc/self/status", "Cpus_allowed_list: 0-3\n")),
    ("flags beside a GPU", false, false, "", |m| m.put("proc/cpuinfo", "flags: fpu avx512\n")),
    // Not in it at all.
    ("which GPU", false, false, "", |m| {
        let twin = m.gpus["gpus"][0].clone();
        m.gpus["gpus"].as_array_mut().unwrap().push(twin);
        m.set("CUDA_VISIBLE_DEVICES", "1");
    }),
    ("port and names", false, false, "", |m| {
        for (name, value) in [
            ("--port", "8001"),
            ("--host", "::"),
            ("--served-model-name", "n"),
            ("--api-key", "k"),
            ("--log-level", "info"),
        ] {
            m.argument(name, value);
        }
        // Of several keys each belongs to the option.
        m.argv.insert(m.argv.len() - 2, "another".to_owned());
    }),
    ("order and writing", false, false, "", |m| {
        m.argv = [
            "vllm",
            "serve",
            "/models/m",
            "--tensor_parallel_size=1",
            "--chat-template=/template.jinja",
            "--max_model_len=4096",
            r#"--speculative-config={"n":2,"model":"/models/draft"}"#,
        ]
        .map(str::to_owned)
        .to_vec();
    }),
    ("hosts, ports and tokens", false, false, "", |m| {
        for (name, value) in [
            ("VLLM_HOST_IP", "10.0.0.1"),
            ("VLLM_PORT", "1"),
            ("VLLM_API_KEY", "k"),
            ("HF_TOKEN", "t"),
            ("VLLM_LOGGING_LEVEL", "x"),
        ] {
            m.set(name, value);
        }
    }),
];

#[test]
fn each_fact_decides_as_the_table_says() {
    let base = Machine::new().keys();
    for key in &base {
        assert!(key.unusable().is_empty(), "{:?}", key.unusable());
    }
    let mut wrong = Vec::new();
    for (what, graph, kernel, named, change) in CHANGES {
        let mut machine = Machine::new();
        // Each stands in a directory of its own, whose name is in no key.
        assert_eq!(machine.keys().map(|key| key.digest()), base.each_ref().map(EngineKey::digest), "before: {what}");
        change(&mut machine);
        let keys = machine.keys();
        for ((key, was), differs) in keys.iter().zip(&base).zip([graph, kernel]) {
            if (key.digest() != was.digest()) != *differs {
                wrong.push(format!("{what}, {}: {:?}", key.kind(), key.diff(was)));
            }
        }
        let diff = keys[0].diff(&base[0]);
        if *graph && diff.first().is_none_or(|first| first.field != *named) {
            wrong.push(format!("{what}: {diff:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_driver_decides_where_its_own_cache_is_kept_or_somebody_says_so() {
    for change in [(|m| m.set("CUDA_CACHE_PATH", "/c")) as fn(&mut Machine), |m| m.asked.strict_driver = true] {
        let (mut one, mut other) = (Machine::new(), Machine::new());
        change(&mut one);
        change(&mut other);
        other.gpus["driver"] = json!("590.1");
        assert_ne!(one.key(BundleKind::Graph).digest(), other.key(BundleKind::Graph).digest());
        assert_eq!(one.key(BundleKind::Kernel).digest(), other.key(BundleKind::Kernel).digest());
    }
    let (mut one, mut other) = (Machine::new(), Machine::new());
    for machine in [&mut one, &mut other] {
        machine.set("VLLM_ENABLE_STARTUP_PLAN", "1");
    }
    other.gpu("memory_mib", json!(80_000));
    assert_ne!(one.key(BundleKind::Graph).digest(), other.key(BundleKind::Graph).digest());
}

#[test]
fn every_gpu_has_its_own_key() {
    let gpus = [
        ("NVIDIA H100 80GB HBM3", "9.0", 132, 81559, None),
        ("NVIDIA H100 PCIe", "9.0", 114, 81559, None),
        ("NVIDIA H100 NVL", "9.0", 132, 95830, None),
        ("NVIDIA H200", "9.0", 132, 143_771, None),
        ("NVIDIA B200", "10.0", 148, 183_359, None),
        ("NVIDIA A100-SXM4-40GB", "8.0", 108, 40960, None),
        ("NVIDIA A100-SXM4-80GB", "8.0", 108, 81920, None),
        ("NVIDIA L40S", "8.9", 142, 46068, None),
        ("NVIDIA H100 80GB HBM3", "9.0", 16, 9984, Some("1g.10gb")),
        ("NVIDIA H100 80GB HBM3", "9.0", 32, 19968, Some("2g.20gb")),
    ];
    for with_count in [true, false] {
        let keys = gpus.map(|(name, capability, sm_count, memory, mig)| {
            let mut machine = Machine::new();
            let sm_count = with_count.then_some(sm_count);
            machine.gpus["gpus"] = json!([{
                "name": name, "capability": capability, "sm_count": sm_count, "memory_mib": memory, "mig": mig
            }]);
            machine.keys().map(|key| key.digest())
        });
        for (at, one) in keys.iter().enumerate() {
            for other in &keys[..at] {
                assert!(one[0] != other[0] && one[1] != other[1], "{:?}", gpus[at]);
            }
        }
    }
}

#[test]
fn what_is_not_known_makes_no_key() {
    type Take = fn(&mut Machine);
    let unknown: [(&str, Take); 13] = [
        ("package.uv", |m| {
            m.put(
                &format!("{SITE}/uv-1.dist-info/direct_url.json"),
                r#"{"url":"file:///x","dir_info":{"editable":true}}"#,
            );
            m.put(&format!("{SITE}/uv-1.dist-info/RECORD"), "x");
        }),
        ("package.lines.pth", |m| {
            m.put("src/a.py", "");
            m.put(&format!("{SITE}/lines.pth"), "/src\n");
        }),
        ("gpu.ordinals", |m| {
            m.gpus["gpus"].as_array_mut().unwrap().push(json!({"name": "NVIDIA L40S", "capability": "8.9"}));
            m.set("CUDA_VISIBLE_DEVICES", "0");
        }),
        ("parallel.tp", |m| m.argument("--tensor-parallel-size", "2")),
        ("model.reference", |m| {
            let model = m.argv.remove(2);
            m.argv.push(model);
        }),
        ("gpu.capability", |m| m.gpu("capability", Value::Null)),
        ("gpu.others", |m| {
            m.gpus["gpus"].as_array_mut().unwrap().push(json!({"name": "NVIDIA L40S", "capability": "8.9"}));
        }),
        ("gpu.ordinals", |m| m.set("CUDA_VISIBLE_DEVICES", "GPU-absent")),
        ("python.version", |m| m.argv[0] = "sh".to_owned()),
        ("cuda.runtime", |m| m.put(&format!("{SITE}/torch/version.py"), "")),
        ("package.mine", |m| {
            m.put(&format!("{SITE}/mine-1.dist-info/direct_url.json"), r#"{"dir_info": {"editable": true}}"#);
        }),
        ("model.config", |m| std::fs::remove_file(m.root.path().join("models/m/config.json")).unwrap()),
        ("model.revision", |m| m.argv[2] = "org/name".to_owned()),
    ];
    for (field, change) in unknown {
        let mut machine = Machine::new();
        machine.asked.engine = Some("vllm".to_owned());
        change(&mut machine);
        let key = machine.key(BundleKind::Graph);
        assert!(key.unusable().iter().any(|(name, _)| *name == field), "{field}: {:?}", key.unusable());
        assert!(key.check_publishable().is_err());
    }
}

#[test]
fn what_is_no_nvidia_gpu_is_not_none() {
    let take = |prepare: fn(&Machine)| {
        let machine = Machine::new();
        prepare(&machine);
        let scene = Scene {
            root: machine.root.path().to_owned(),
            environment: machine.environment.clone(),
            argv: machine.argv.clone(),
            directory: "/".into(),
        };
        let fingerprint = Fingerprint::take(&scene, &machine.asked, &built_in()).unwrap();
        BundleKind::ALL.map(|kind| {
            let key = fingerprint.key(kind).unwrap();
            key.unusable().iter().any(|(name, _)| *name == "gpu.name")
        })
    };
    assert_eq!(take(|_| {}), [false, false], "a machine without a GPU");
    let others: [fn(&Machine); 4] = [
        |m| m.put(&format!("{SITE}/torch/version.py"), "cuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n"),
        |m| m.put("dev/nvidia0", ""),
        |m| m.put("dev/neuron0", ""),
        |m| {
            std::fs::remove_dir_all(m.root.path().join(SITE).join("torch-2.15.0.dist-info")).unwrap();
            m.put("dev/kfd", "");
        },
    ];
    for (at, other) in others.into_iter().enumerate() {
        assert_eq!(take(other), [true, true], "{at}");
    }
}

#[test]
fn the_command_prints_keys_and_no_secret() {
    let machine = Machine::new();
    let facts = machine.root.path().join("facts.json");
    std::fs::write(&facts, machine.gpus.to_string()).unwrap();
    let canary = super::super::support::secret("canary-of-a-key");
    let run = |more: &[&str], salt: &str| {
        preheat()
            .args(["engine", "fingerprint", "--engine", "generic-dir", "--cache-dir", "c=/nowhere/c", "--gpu-facts"])
            .arg(&facts)
            .args(["--cache-salt", salt])
            .args(more)
            .env("VLLM_API_KEY", &canary)
            .env("VLLM_SPECIAL", &canary)
            .args([
                "--",
                "/bin/true",
                canary.as_str(),
                "--auth-token",
                canary.as_str(),
                "second",
                canary.as_str(),
                "--x",
            ])
            .arg(format!("{{\"url\": \"https://host/{canary}\"}}"))
            .output()
            .unwrap()
    };
    let told = run(&["--json"], "one");
    assert_eq!(code(&told), 0, "{}", stderr(&told));
    let one = json_of(&told);
    assert_eq!(one["graph"]["document"]["fields"]["gpu.name"]["value"], "NVIDIA-H100-80GB-HBM3");
    assert_eq!(one["graph"]["document"]["fields"]["gpu.name"]["from"], "facts file");
    assert_eq!(one["directories"]["c"], "/nowhere/c");
    assert_eq!(json_of(&run(&["--json"], "one"))["graph"]["key"], one["graph"]["key"]);
    assert_ne!(json_of(&run(&["--json"], "two"))["graph"]["key"], one["graph"]["key"]);
    for output in [&told, &run(&[], "one")] {
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(output));
        assert!(text.contains("env.VLLM_SPECIAL") && !text.contains(&canary), "{text}");
    }
    let wrong = preheat().args(["engine", "fingerprint", "--gpu-facts", "/none"]).output().unwrap();
    assert_eq!(code(&wrong), 66, "{}", stderr(&wrong));
    std::fs::write(&facts, r#"{"gpus": [{"nme": 1}]}"#).unwrap();
    assert_eq!(code(&run(&["--json"], "one")), 64);
}
