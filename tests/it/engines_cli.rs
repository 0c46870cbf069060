//! `preheat engine` on bundles: a key, a root that signs, a file that goes to another root.

use std::path::Path;

use preheat::engines::{Captured, Library};
use preheat::model::Tenant;
use preheat::model::engine::BundleKind;

use super::support::command::{code, fails, json, run, stderr, stdout};
use super::support::engine::{cache, capture, key, library, tree};

#[track_caller]
fn done(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    stdout(&output).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_goes_as_a_file_to_who_trusts_its_signer() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let public = done(&["engine", "keygen", &at("key.pem")]);
    assert_eq!(public.len(), 64);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(at("key.pem")).unwrap().permissions().mode() & 0o777, 0o600);
    fails(&run(&["engine", "keygen", &at("key.pem")]), 70, &["key.pem"]);
    let own = Tenant::of_uid(rustix::process::geteuid().as_raw());
    let root = cache(directory.path(), 1);
    let signing = library(Path::new(&at("one")), |config| {
        config.signing_key_file = Some(at("key.pem").into());
        config.publish = vec![own];
    })
    .await;
    let captured = signing.capture(capture(key(BundleKind::Graph, "a"), &[("vllm", &root)])).await.unwrap();
    let Captured::Created { bundle, .. } = captured else { panic!("{captured:?}") };
    let id = bundle.id.to_string();

    let listed = json(&run(&["engine", "list", "--root", &at("one"), "--json"]));
    assert_eq!(listed[0]["bundle"]["id"], *id);
    assert_eq!(listed[0]["key"]["fields"]["package.torch"]["value"], "2.15.0");
    // Without the configuration its signer is unknown here as well.
    let shown = json(&run(&["engine", "show", &id[..8], "--root", &at("one"), "--json"]));
    assert_eq!((&shown["refusal"]["code"], &shown["bundle"]["files"]), (&"unknown_signer".into(), &6.into()));
    fails(&run(&["engine", "show", "0000", "--root", &at("one")]), 66, &["engine list"]);

    std::fs::write(at("two.toml"), format!("[[engines.signers]]\nname = \"ci\"\nkey = \"{public}\"\n")).unwrap();
    std::fs::write(
        at("one.toml"),
        format!("[engines]\nsigning_key_file = \"{}\"\npublish = [\"uid-0\"]\n", at("key.pem")),
    )
    .unwrap();
    done(&["engine", "export", &id, &at("file"), "--root", &at("one"), "--config", &at("one.toml")]);
    fails(&run(&["engine", "import", &at("file"), "--root", &at("three")]), 77, &["does not trust"]);
    let two = ["--root", &at("two"), "--config", &at("two.toml")];
    let taken = done(&[&["engine", "import", &at("file")], &two[..]].concat());
    assert_eq!(taken, id);
    let table = done(&[&["engine", "show", &id], &two[..]].concat());
    for says in ["signed by ci", "may be restored", "hard  gpu.name", "caa.so"] {
        assert!(table.contains(says), "{says} in {table}");
    }
    let into = done(&[&["engine", "restore", &id, &at("view")], &two[..]].concat());
    assert_eq!(tree(&Path::new(&into).join("vllm")), tree(&root));
    fails(&run(&[&["engine", "restore", &id, &at("view")], &two[..]].concat()), 64, &["is there already"]);
    // Bundles are no models to people.
    assert_eq!(done(&["models", "--root", &at("two")]), "");
    let verified = json(&run(&["verify", "--root", &at("two"), "--json"]));
    assert_eq!(verified["faults"].as_array().map(Vec::len), Some(0), "{verified}");
}
