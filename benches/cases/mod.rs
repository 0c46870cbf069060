//! The hot pieces, as both benches run them: `hot.rs` in time (Criterion), `counts.rs` in instructions (callgrind).
//!
//! Inputs are made from constants, so that two runs do the same work.

use std::hint::black_box;

use preheat::digest::{Algorithm, GROUP_BYTES, GroupCv, Outboard, Running, group_cv, merge_root};
use preheat::model::tensor::check_header;
use preheat::model::{FilePath, Kind, Manifest, ManifestEntry, Reference};

/// One piece.
pub(crate) struct Case {
    /// What it is called, in budgets too.
    pub(crate) name: &'static str,
    /// Bytes that it goes through, where that is what it does.
    #[allow(dead_code, reason = "a count has no rate")]
    pub(crate) bytes: Option<u64>,
    /// How often `counts.rs` does it, so that what varies from process to process (the seeds of hash maps) does not show.
    #[allow(dead_code, reason = "Criterion repeats as it likes")]
    pub(crate) times: u32,
    /// Does it once.
    pub(crate) run: Box<dyn Fn()>,
}

/// All of them.
///
/// # Panics
/// When preheat refuses what is made here.
#[must_use]
pub(crate) fn all() -> Vec<Case> {
    let group: Vec<u8> = (0..GROUP_BYTES).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 8) as u8).collect();
    // 16 GiB of groups.
    let values: Vec<GroupCv> =
        (0..16_384_u32).map(|number| GroupCv(*blake3::hash(&number.to_le_bytes()).as_bytes())).collect();
    let outboard = Outboard::of(values.clone()).expect("there are groups");
    let (stored, root, size) = (outboard.to_bytes(), outboard.root(), values.len() as u64 * GROUP_BYTES);
    let manifest = manifest(400);
    let (json, header) = (manifest.to_json(), header(1000));
    let sha256 = group.clone();
    let header_size = header.len() as u64 + 1000 * 16;
    vec![
        Case {
            name: "group_cv",
            bytes: Some(GROUP_BYTES),
            times: 10,
            run: Box::new(move || {
                black_box(group_cv(64 * GROUP_BYTES, 3, black_box(&group)));
            }),
        },
        Case {
            name: "sha256",
            bytes: Some(GROUP_BYTES),
            times: 1,
            run: Box::new(move || {
                let mut running = Running::new(Algorithm::Sha256, GROUP_BYTES);
                running.update(black_box(&sha256));
                black_box(running.finish());
            }),
        },
        Case {
            name: "merge_root_16384",
            bytes: None,
            times: 2,
            run: Box::new(move || {
                black_box(merge_root(black_box(&values)));
            }),
        },
        Case {
            name: "outboard_parse_16384",
            bytes: None,
            times: 2,
            run: Box::new(move || {
                black_box(Outboard::parse(black_box(&stored), size, root)).expect("it is its own outboard");
            }),
        },
        Case {
            name: "manifest_parse_400",
            bytes: None,
            times: 4,
            run: Box::new(move || {
                black_box(Manifest::parse(black_box(&json))).expect("preheat wrote it");
            }),
        },
        Case {
            name: "manifest_digest_400",
            bytes: None,
            times: 4,
            run: Box::new(move || {
                black_box(black_box(&manifest).digest());
            }),
        },
        Case {
            name: "header_check_1000",
            bytes: None,
            times: 2,
            run: Box::new(move || {
                black_box(check_header(black_box(&header), header_size)).expect("it is a header");
            }),
        },
        Case {
            name: "reference_parse",
            bytes: None,
            times: 200,
            run: Box::new(|| {
                let text =
                    "hf://org/model@c0ffee0000000000000000000000000000000000/sub?include=*.safetensors&exclude=*.bin";
                black_box(black_box(text).parse::<Reference>()).expect("it is a reference");
            }),
        },
    ]
}

fn manifest(files: u32) -> Manifest {
    let entry = |number: u32| {
        let path =
            FilePath::new(format!("folder-{}/model-{number:05}.safetensors", number / 50)).expect("it is a path");
        ManifestEntry::new(path, u64::from(number) << 20, preheat::digest::Hash::of(&number.to_le_bytes()))
    };
    Manifest::new(Kind::Model, (0..files).map(entry).collect()).expect("it is a manifest")
}

/// The first bytes of a safetensors file with so many tensors of 16 bytes.
fn header(tensors: usize) -> Vec<u8> {
    let entries: Vec<String> = (0..tensors)
        .map(|number| {
            let (from, to) = (number * 16, number * 16 + 16);
            format!(r#""model.layers.{number}.mlp.down_proj.weight":{{"dtype":"F16","shape":[2,4],"data_offsets":[{from},{to}]}}"#)
        })
        .collect();
    let text = format!("{{{}}}", entries.join(","));
    let mut whole = (text.len() as u64).to_le_bytes().to_vec();
    whole.extend_from_slice(text.as_bytes());
    whole
}
