//! What is kept beside what is there: kernels of other models, directories in others.

use preheat::engines::{Captured, Library};
use preheat::model::engine::BundleKind;
use serde_json::Value;

use super::super::support::command::{code, stderr, stdout};
use super::super::support::engine::{capture, key, library, put, tree};
use super::run::{Bench, ENGINE, is};

#[test]
fn kernels_that_have_nothing_in_common_are_kept_beside_each_other() {
    let mut bench = Bench::new();
    let cache = bench.text("kernels");
    bench.more = vec!["--cache-dir".to_owned(), format!("k={cache},kernel")];
    let start = |model: &str| -> (String, Value) {
        let argv = ["python3", ENGINE, "--cache", &cache, "--own-key", model, "--files", "3"];
        let output = bench.command("report.json", &argv).output().unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        (stdout(&output), bench.report("report.json"))
    };
    is(&start("a").1, "cold");
    // Of what a has made it reads nothing.
    let (said, other) = start("b");
    assert!(said.contains("used 0, made 3"), "{said}");
    assert_eq!(other["captured"], true, "{other:#}");
    for model in ["a", "b"] {
        let (said, warm) = start(model);
        assert!(said.contains("used 3, made 0"), "{model}: {said} {warm:#}");
    }
}

#[test]
fn a_directory_in_another_is_warm_as_well() {
    let plain = Bench::new();
    if plain.run(&[]).1["view"] == "in_place" {
        // Nothing can be mounted here.
        return;
    }
    let mut bench = Bench::new();
    let inner = bench.text("cache/deep/kernels");
    bench.more = vec!["--cache-dir".to_owned(), format!("k={inner},kernel")];
    let script = format!(
        "if [ -e {0}/g/a.so ] && [ -e {inner}/h/b.so ]; then cat {0}/g/a.so {inner}/h/b.so; exit; fi; \
         mkdir -p {0}/g {inner}/h && echo made > {0}/g/a.so && echo made > {inner}/h/b.so && echo cold",
        bench.text("cache")
    );
    let run = || {
        let output = bench.command("report.json", &["sh", "-c", &script]).output().unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        (stdout(&output), bench.report("report.json"))
    };
    let (_, cold) = run();
    assert_eq!(cold["captured"], true, "{cold:#}");
    let (said, warm) = run();
    assert_eq!(said, "made\nmade\n", "{warm:#}");
    is(&warm, "hit");
    let files: Vec<u64> =
        warm["bundles"].as_array().unwrap().iter().map(|kind| kind["files"]["restored"].as_u64().unwrap()).collect();
    assert_eq!(files, [1, 1], "neither has what is the other's");
}

#[tokio::test(flavor = "multi_thread")]
async fn kernels_that_grow_too_large_give_the_oldest_up() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let limit = preheat::base::units::ByteSize(4_500);
    let library = library(&root, |config| config.bundle_bytes_max = limit).await;
    let kernel = key(BundleKind::Kernel, "any");
    let (a, b) = (directory.path().join("a"), directory.path().join("b"));
    for (number, entry) in ["old", "older", "new"].into_iter().enumerate() {
        put(&a.join(entry).join("k.cubin"), &[1; 1_000], 0o644, [20, 10, 30][number]);
        put(&b.join(format!("b-{entry}")).join("k.cubin"), &[2; 1_000], 0o644, 40);
    }
    library.capture(capture(kernel.clone(), &[("triton", &a)])).await.unwrap();
    let Captured::Created { bundle, taken_over, .. } =
        library.capture(capture(kernel, &[("triton", &b)])).await.unwrap()
    else {
        panic!("nothing is kept")
    };
    assert_eq!((taken_over, bundle.files), (1, 4));
    let into = directory.path().join("view");
    library.restore(&bundle, &into).await.unwrap();
    let left: Vec<String> = tree(&into).into_keys().collect();
    assert_eq!(left, ["triton/b-new/k.cubin", "triton/b-old/k.cubin", "triton/b-older/k.cubin", "triton/new/k.cubin"]);
}
