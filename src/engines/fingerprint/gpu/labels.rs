//! The labels that GPU Feature Discovery gives a node: from the file in which it hands them to Node Feature Discovery, or from one
//! that `PREHEAT_NODE_LABELS` names (`kubectl get node -o json` or lines of `name=value`).

use std::collections::BTreeMap;

use super::super::scene::Scene;
use super::{Answer, Gpu, Gpus};

const FILE: &str = "/etc/kubernetes/node-feature-discovery/features.d/gfd";
const VARIABLE: &str = "PREHEAT_NODE_LABELS";

/// Most GPUs of one node.
const COUNT_LIMIT: usize = 1024;

pub(super) fn ask(scene: &Scene) -> Answer {
    let Some(text) = scene.read(scene.variable(VARIABLE).unwrap_or(FILE)) else { return Answer::Absent };
    let labels = parse(&text);
    let value = |name: &str| labels.get(&format!("nvidia.com/{name}")).filter(|value| !value.is_empty()).cloned();
    let Some(product) = value("gpu.product") else { return Answer::Absent };
    if value("mig.strategy").is_some_and(|strategy| strategy == "mixed")
        && labels.keys().any(|name| name.starts_with("nvidia.com/mig-"))
    {
        return Answer::Silent(
            "the node has slices of several kinds, and its labels do not say which are here".to_owned(),
        );
    }
    let number = |name: &str| value(name).and_then(|text| text.parse::<u32>().ok());
    let capability = number("gpu.compute.major").zip(number("gpu.compute.minor"));
    let (name, mig) = match product.split_once("-MIG-") {
        Some((name, profile)) => (name.to_owned(), Some(profile.to_owned())),
        None => (product, None),
    };
    // All of the node's, unless the container has been given some.
    let given = scene.variable("NVIDIA_VISIBLE_DEVICES").filter(|list| !matches!(*list, "all" | "none" | "void"));
    let given: Option<Vec<&str>> = given.map(|list| list.split(',').map(str::trim).collect());
    let count = given.as_ref().map(Vec::len).or_else(|| value("gpu.count").and_then(|text| text.parse().ok()));
    let Some(count) = count.filter(|count| (1..=COUNT_LIMIT).contains(count)) else {
        return Answer::Silent("the labels do not say how many GPUs there are".to_owned());
    };
    let gpu = Gpu {
        name,
        mig,
        capability: capability.map(|(major, minor)| format!("{major}.{minor}")),
        sm_count: number("gpu.multiprocessors"),
        memory_mib: value("gpu.memory").and_then(|text| text.parse().ok()),
        ..Gpu::default()
    };
    let gpus = (0..count).map(|at| {
        let uuid = given.as_ref().and_then(|given| given.get(at)).filter(|id| id.contains('-'));
        Gpu { uuid: uuid.map(|id| (*id).to_owned()), ..gpu.clone() }
    });
    let driver = ["cuda.driver-version.full", "cuda.driver.version.full"].into_iter().find_map(value).or_else(|| {
        let parts = [value("cuda.driver.major")?, value("cuda.driver.minor")?];
        Some(parts.into_iter().chain(value("cuda.driver.rev")).collect::<Vec<_>>().join("."))
    });
    let driver_cuda = value("cuda.runtime.major").zip(value("cuda.runtime.minor"));
    Answer::Found(Gpus {
        vendor: Some("nvidia".to_owned()),
        driver,
        driver_cuda: driver_cuda.map(|(major, minor)| format!("{major}.{minor}")),
        gpus: gpus.collect(),
    })
}

fn parse(text: &str) -> BTreeMap<String, String> {
    if let Ok(json) = serde_json::from_str::<serde_json::Value>(text) {
        let labels = json.pointer("/metadata/labels").unwrap_or(&json);
        let entries = labels.as_object().into_iter().flatten();
        return entries.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect();
    }
    let lines = text.lines().filter_map(|line| line.split_once('='));
    // The downward API puts values in quotation marks.
    lines.map(|(name, value)| (name.trim().to_owned(), value.trim().trim_matches('"').to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask_with(labels: &str, environment: &[(&str, &str)]) -> Answer {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("labels"), labels).unwrap();
        let environment = environment.iter().chain(&[(VARIABLE, "/labels")]);
        let scene = Scene {
            root: root.path().into(),
            environment: environment.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            argv: Vec::new(),
            directory: "/".into(),
        };
        ask(&scene)
    }

    const LABELS: &str = "nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3\nnvidia.com/gpu.compute.major=9\n\
        nvidia.com/gpu.compute.minor=0\nnvidia.com/gpu.memory=81559\nnvidia.com/gpu.count=8\nnvidia.com/cuda.driver.major=580\n\
        nvidia.com/cuda.driver.minor=65\nnvidia.com/cuda.driver.rev=06\n";

    #[test]
    fn labels_are_read_as_lines_and_as_a_node() {
        let Answer::Found(gpus) = ask_with(LABELS, &[]) else { panic!("labels are there") };
        assert_eq!((gpus.gpus.len(), gpus.driver.as_deref()), (8, Some("580.65.06")));
        let expected = Gpu {
            name: "NVIDIA-H100-80GB-HBM3".to_owned(),
            capability: Some("9.0".to_owned()),
            memory_mib: Some(81559),
            ..Gpu::default()
        };
        assert_eq!(gpus.gpus[0], expected);
        let labels: BTreeMap<String, String> = parse(LABELS);
        let node = serde_json::json!({"kind": "Node", "metadata": {"labels": labels}}).to_string();
        let Answer::Found(same) = ask_with(&node, &[]) else { panic!("labels are there") };
        assert_eq!(same, gpus);
    }

    #[test]
    fn what_the_container_was_given_counts_and_slices_are_named() {
        let Answer::Found(gpus) = ask_with(LABELS, &[("NVIDIA_VISIBLE_DEVICES", "GPU-a,GPU-b")]) else { panic!() };
        assert_eq!(gpus.gpus.iter().map(|gpu| gpu.uuid.as_deref()).collect::<Vec<_>>(), [Some("GPU-a"), Some("GPU-b")]);
        let sliced = LABELS.replace("HBM3", "HBM3-MIG-1g.10gb");
        let Answer::Found(gpus) = ask_with(&sliced, &[]) else { panic!() };
        assert_eq!(gpus.gpus[0].mig.as_deref(), Some("1g.10gb"));
        let mixed = format!("{LABELS}nvidia.com/mig.strategy=mixed\nnvidia.com/mig-1g.10gb.count=2\n");
        assert!(matches!(ask_with(&mixed, &[]), Answer::Silent(_)));
        assert!(matches!(ask_with("a=b", &[]), Answer::Absent));
    }
}
