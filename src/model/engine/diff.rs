//! Two keys side by side. A change rarely comes alone: another torch brings other packages, another digest over all of them
//! and another CUDA. So a difference that follows from another is folded under it, and what somebody has changed stands first.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::rules::matches;
use super::{EngineKey, Role};

/// One field that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Its name; `kind`, `profile` and `node_rank` are told like fields.
    pub field: String,
    /// Hard if it is in either.
    pub role: Role,
    /// Its value in the key that asks; `None` when it has none.
    pub here: Option<String>,
    /// Its value in the other.
    pub there: Option<String>,
    /// The differences that follow from this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub derived: Vec<Difference>,
}

/// Most characters of a value in a sentence.
const SHOWN: usize = 80;

/// In what order causes are told: what is rarely changed by accident first. What is not listed comes last.
const ORDER: &[&str] = &[
    "kind",
    "profile",
    "node_rank",
    "salt",
    "image.digest",
    "gpu.name",
    "gpu.*",
    "cpu.arch",
    "package.torch",
    "package.vllm*",
    "package.sglang",
    "package.tensorrt*",
    "package.triton",
    "package.flashinfer*",
    "package.deep-gemm",
    "python.*",
    "cuda.*",
    "tensorrt.*",
    "package.*",
    "source.*",
    "dependencies",
    "toolchain.*",
    "model.reference",
    "model.*",
    "parallel.*",
    "argv.*",
    "file.*",
    "env.*",
    "cpu.*",
    "path.home",
    "path.xdg_cache",
    "path.*",
];

/// What follows from what: effect, then its causes. A cause may itself be an effect of another line, never of its own effect.
const CAUSES: &[(&str, &[&str])] = &[
    ("gpu.*", &["gpu.name"]),
    ("package.nvidia-*", &["package.torch"]),
    ("package.cuda-*", &["package.torch"]),
    ("package.triton", &["package.torch"]),
    ("package.torch*", &["package.torch"]),
    ("cuda.runtime", &["package.torch"]),
    ("tensorrt.version", &["package.tensorrt*"]),
    ("dependencies", &["package.torch", "package.*", "python.version"]),
    ("python.abi", &["python.version", "python.implementation"]),
    ("path.site_packages", &["python.version"]),
    ("package.*", &["python.version"]),
    ("path.cuda_home", &["env.CUDA_HOME"]),
    ("toolchain.*", &["image.digest"]),
    ("toolchain.nvcc", &["path.cuda_home", "env.CUDA_HOME"]),
    ("cpu.threads", &["env.OMP_NUM_THREADS"]),
    ("cpu.*", &["cpu.arch"]),
    ("model.*", &["model.reference"]),
    ("path.xdg_cache", &["path.home"]),
    ("argv.order", &["argv.-*", "argv.@*"]),
    ("path.cache_root.*", &["path.home", "path.xdg_cache"]),
];

// === impl EngineKey ===

impl EngineKey {
    /// All that differs, causes first, what follows from them folded under them. Hard differences stand before soft ones.
    #[must_use]
    pub fn diff(&self, other: &Self) -> Vec<Difference> {
        let mut plain = Vec::new();
        for (field, here, there) in [
            ("kind", self.kind.as_str().to_owned(), other.kind.as_str().to_owned()),
            ("profile", self.profile.clone(), other.profile.clone()),
            ("node_rank", self.node_rank.to_string(), other.node_rank.to_string()),
        ] {
            if here != there {
                plain.push(Difference::new(field, Role::Hard, Some(here), Some(there)));
            }
        }
        let mut names: Vec<&String> = self.fields.keys().chain(other.fields.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let (here, there) = (self.fields.get(name), other.fields.get(name));
            let values = |field: Option<&super::Field>| field.and_then(|field| field.value.clone());
            let (mine, theirs) = (values(here), values(there));
            // Unknown on both sides is no agreement.
            if mine == theirs && (mine.is_some() || here.is_none() || there.is_none()) {
                continue;
            }
            let role = here.into_iter().chain(there).map(|field| field.role).min().unwrap_or(Role::Soft);
            plain.push(Difference::new(name, role, mine, theirs));
        }
        fold(plain)
    }

    /// How far another key is: hard causes that differ, then everything hard that differs. For finding the nearest.
    #[must_use]
    pub fn distance(&self, other: &Self) -> (usize, usize) {
        let diff = self.diff(other);
        let hard = diff.iter().filter(|difference| difference.role == Role::Hard);
        let all = hard.clone().map(|difference| 1 + difference.derived.len()).sum();
        (hard.count(), all)
    }
}

// === impl Difference ===

impl Difference {
    fn new(field: &str, role: Role, here: Option<String>, there: Option<String>) -> Self {
        Self { field: field.to_owned(), role, here, there, derived: Vec::new() }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let say = |value: &Option<String>| match value {
            Some(value) if value.chars().count() > SHOWN => {
                format!("{}...", value.chars().take(SHOWN).collect::<String>())
            }
            Some(value) => value.clone(),
            None => "nothing".to_owned(),
        };
        write!(f, "{}: {} here, {} there", self.field, say(&self.here), say(&self.there))?;
        match self.derived.as_slice() {
            [] => Ok(()),
            [one] => write!(f, " (and with it {})", one.field),
            [one, rest @ ..] => write!(f, " (and with it {} and {} more)", one.field, rest.len()),
        }
    }
}

fn fold(plain: Vec<Difference>) -> Vec<Difference> {
    let names: Vec<String> = plain.iter().map(|difference| difference.field.clone()).collect();
    let (mut causes, mut effects) = (Vec::new(), Vec::new());
    for difference in plain {
        match root(&difference.field, &names) {
            Some(cause) => effects.push((cause, difference)),
            None => causes.push(difference),
        }
    }
    for (cause, effect) in effects {
        if let Some(cause) = causes.iter_mut().find(|difference| difference.field == cause) {
            // A soft cause with a hard effect decides as well.
            cause.role = cause.role.min(effect.role);
            cause.derived.push(effect);
        }
    }
    causes.sort_by(|one, other| {
        (one.role, rank(&one.field), &one.field).cmp(&(other.role, rank(&other.field), &other.field))
    });
    for cause in &mut causes {
        cause.derived.sort_by(|one, other| (rank(&one.field), &one.field).cmp(&(rank(&other.field), &other.field)));
    }
    causes
}

/// The difference from which `field` follows, however far back.
fn root(field: &str, all: &[String]) -> Option<String> {
    let mut at = field.to_owned();
    // The table is no deeper than this, and a mistake in it must not hang.
    for _ in 0..8 {
        match cause(&at, all) {
            Some(next) => at = next,
            None => break,
        }
    }
    (at != field).then_some(at)
}

fn cause(field: &str, all: &[String]) -> Option<String> {
    let lines = CAUSES.iter().filter(|(effect, _)| matches(effect, field));
    let mut found = lines.flat_map(|(_, causes)| causes.iter()).filter_map(|cause| {
        let mut candidates: Vec<&String> = all.iter().filter(|name| *name != field && matches(cause, name)).collect();
        candidates.sort_by_key(|name| (rank(name), (*name).clone()));
        candidates.first().map(|name| (*name).clone())
    });
    found.next()
}

fn rank(field: &str) -> usize {
    ORDER.iter().position(|pattern| matches(pattern, field)).unwrap_or(ORDER.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{BundleKind, Field};
    use super::*;

    fn key(fields: &[(&str, &str)]) -> EngineKey {
        let fields: BTreeMap<String, Field> =
            fields.iter().map(|(name, value)| ((*name).to_owned(), Field::hard(*value, "test"))).collect();
        EngineKey::new(BundleKind::Graph, "torch-inductor", 0, fields).unwrap()
    }

    fn told(diff: &[Difference]) -> Vec<(&str, Vec<&str>)> {
        let derived = |one: &'_ Difference| one.derived.len();
        assert!(diff.iter().all(|one| one.derived.iter().all(|inner| derived(inner) == 0)), "one level");
        diff.iter()
            .map(|one| (one.field.as_str(), one.derived.iter().map(|inner| inner.field.as_str()).collect()))
            .collect()
    }

    #[test]
    fn equal_keys_do_not_differ() {
        let one = key(&[("a", "1")]);
        assert!(one.diff(&one).is_empty());
        assert_eq!(one.distance(&one), (0, 0));
    }

    #[test]
    fn another_torch_is_one_change() {
        let here = key(&[
            ("cuda.runtime", "13.0"),
            ("dependencies", "x"),
            ("package.nvidia-cublas", "1"),
            ("package.torch", "2.13"),
        ]);
        let there = key(&[
            ("cuda.runtime", "13.2"),
            ("dependencies", "y"),
            ("package.nvidia-cublas", "2"),
            ("package.torch", "2.15"),
        ]);
        let diff = here.diff(&there);
        assert_eq!(told(&diff), [("package.torch", vec!["cuda.runtime", "package.nvidia-cublas", "dependencies"])]);
        assert_eq!((here.distance(&there), there.distance(&here)), ((1, 4), (1, 4)));
        let sentence = diff[0].to_string();
        assert_eq!(sentence, "package.torch: 2.13 here, 2.15 there (and with it cuda.runtime and 2 more)");
    }

    #[test]
    fn what_changed_by_itself_stands_by_itself() {
        let here = key(&[("dependencies", "x"), ("package.numpy", "1"), ("package.torch", "2"), ("argv.--x", "1")]);
        let there = key(&[("dependencies", "y"), ("package.numpy", "2"), ("package.torch", "3"), ("env.A", "1")]);
        assert_eq!(
            told(&here.diff(&there)),
            [
                ("package.torch", vec!["dependencies"]),
                ("package.numpy", vec![]),
                ("argv.--x", vec![]),
                ("env.A", vec![])
            ]
        );
        let numpy = key(&[("dependencies", "y"), ("package.numpy", "2"), ("package.torch", "2"), ("argv.--x", "1")]);
        assert_eq!(told(&here.diff(&numpy)), [("package.numpy", vec!["dependencies"])]);
        let threads = |n| key(&[("cpu.threads", n), ("env.OMP_NUM_THREADS", n)]);
        assert_eq!(told(&threads("1").diff(&threads("2"))), [("env.OMP_NUM_THREADS", vec!["cpu.threads"])]);
    }

    #[test]
    fn hard_before_soft_and_unknown_is_never_equal() {
        let mut fields = key(&[("argv.--x", "1")]).fields().clone();
        fields.insert("gpu.driver".to_owned(), Field::soft("580", "test"));
        fields.insert("gpu.name".to_owned(), Field { value: None, role: Role::Hard, from: "no driver".to_owned() });
        let one = EngineKey::new(BundleKind::Graph, "vllm", 0, fields.clone()).unwrap();
        assert_eq!(told(&one.diff(&one)), [("gpu.name", vec![])]);
        fields.insert("gpu.name".to_owned(), Field::hard("x", "test"));
        let known = EngineKey::new(BundleKind::Graph, "vllm", 0, fields.clone()).unwrap();
        fields.insert("gpu.driver".to_owned(), Field::soft("590", "test"));
        fields.insert("argv.--x".to_owned(), Field::hard("2", "test"));
        let other = EngineKey::new(BundleKind::Graph, "vllm", 0, fields).unwrap();
        let diff = known.diff(&other);
        assert_eq!(told(&diff), [("argv.--x", vec![]), ("gpu.driver", vec![])]);
        assert_eq!((diff[0].role, diff[1].role), (Role::Hard, Role::Soft));
    }

    #[test]
    fn the_table_of_causes_has_no_ring() {
        let all: Vec<String> = CAUSES
            .iter()
            .flat_map(|(effect, causes)| std::iter::once(effect).chain(causes.iter()))
            .map(|pattern| pattern.replace('*', "x"))
            .collect();
        for name in &all {
            let mut seen = vec![name.clone()];
            let mut at = name.clone();
            while let Some(next) = cause(&at, &all) {
                assert!(!seen.contains(&next), "{seen:?} comes back to {next}");
                seen.push(next.clone());
                at = next;
            }
        }
    }
}
