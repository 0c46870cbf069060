//! Directories and web servers.

use preheat::origin::conformance::Digests;

use super::{Row, SHARD, conforms, digest, writes};
use crate::support::model::{manifest, model, with_more, write};
use crate::support::web::Web;

#[tokio::test]
async fn directories_and_web_servers_conform() {
    let files = with_more(model(1, 2, 3 << 20));
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("m");
    write(&files, &place);
    let web = Web::serve(&files).await;
    web.put("preheat-manifest.json", &manifest(&files).to_json());
    let named = Web::serve(&model(1, 2, 3 << 20)).await;
    let rows = [
        Row {
            name: "directory",
            here: format!("file://{}", place.display()),
            nowhere: format!("file://{}/none", place.display()),
            replace: Box::new({
                let place = place.clone();
                move |bytes| {
                    // As publishers do it: the new file takes the old one's name.
                    std::fs::write(place.join("new"), bytes).unwrap();
                    std::fs::rename(place.join("new"), place.join(SHARD)).unwrap();
                    Box::pin(async {})
                }
            }),
        },
        Row {
            name: "web server with a manifest",
            here: web.url.clone(),
            nowhere: format!("{}/none", web.url),
            replace: Box::new({
                let (web, mut files) = (web.clone(), files.clone());
                files.remove(SHARD);
                move |bytes| {
                    web.put(SHARD, &bytes);
                    let mut files = files.clone();
                    files.insert(SHARD.to_owned(), bytes);
                    web.put("preheat-manifest.json", &manifest(&files).to_json());
                    Box::pin(async {})
                }
            }),
        },
    ];
    let mut digests = Vec::new();
    for row in &rows {
        digests.push(conforms(row, &files).await);
    }
    assert!(digests.iter().all(|found| *found == digest(&files)), "one manifest: {digests:?}");
    // Without a manifest a web server has no listing: what the index and the usual names lead to is found.
    let row = Row {
        name: "web server that is probed",
        here: named.url.clone(),
        nowhere: format!("{}/none", named.url),
        replace: Box::new({
            let named = named.clone();
            move |bytes| {
                named.put(SHARD, &bytes);
                Box::pin(async {})
            }
        }),
    };
    let files = model(1, 2, 3 << 20);
    assert_eq!(conforms(&row, &files).await, digest(&files));
}

#[tokio::test]
async fn directories_are_written_to() {
    let directory = tempfile::tempdir().unwrap();
    writes(&format!("file://{}/new/m", directory.path().display()), Digests::OfNone).await;
    assert_eq!(std::fs::read_dir(directory.path().join("new/m")).unwrap().count(), 5, "nothing temporary stays");
}
