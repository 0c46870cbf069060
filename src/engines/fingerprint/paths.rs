//! Files of `.pth` in a directory of packages: each line is a directory that is imported from as well, or code that runs at every
//! start. What belongs to a distribution is in its RECORD; a line that leads elsewhere leads to what nothing accounts for.

use std::path::{Component, Path, PathBuf};

use super::facts::{hidden, short};
use super::packages::Sites;
use super::scene::Scene;
use crate::digest::Hash;

/// Words of code that changes where imports are looked for.
const SEARCH: [&str; 7] =
    ["sys.path", "addsitedir", "addpackage", "meta_path", "path_hooks", "path_importer_cache", "__editable__"];

/// The digest of a file that belongs to no distribution; none for one that does. `is_owned`: a RECORD has it.
///
/// # Errors
/// It leads to what is not known.
pub(super) fn read(
    scene: &Scene,
    site: &Path,
    name: &str,
    is_owned: bool,
    sites: Sites<'_>,
) -> Result<Option<String>, String> {
    let text = scene.read(site.join(name)).ok_or("it cannot be read")?;
    let mut all = hidden(&text);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let code = line.strip_prefix("import").filter(|rest| rest.starts_with([' ', '\t']));
        match code {
            Some(_) if is_owned => {}
            Some(_) if SEARCH.iter().any(|word| line.contains(word)) => {
                return Err(
                    "it changes at every start where imports are looked for, and nothing says what is there".to_owned()
                );
            }
            // `import _virtualenv`: the module beside it. What else it runs is in its text or in a distribution.
            Some(names) => {
                let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
                let name = names.trim_start().split(word).next().unwrap_or_default();
                if let Some(code) = scene.read(site.join(format!("{name}.py"))) {
                    all.push_str(&format!(" {}", short(&Hash::of(code.as_bytes()))));
                }
            }
            None => path(scene, site, line, is_owned, sites)?,
        }
    }
    Ok((!is_owned).then_some(all))
}

fn path(scene: &Scene, site: &Path, line: &str, is_owned: bool, sites: Sites<'_>) -> Result<(), String> {
    let path: PathBuf = site.join(line).components().collect();
    let climbs = path.components().any(|part| part == Component::ParentDir);
    let known = sites.own.contains(&path) || path.starts_with(site) && !climbs && is_owned;
    // Python passes over what does not exist.
    if known || !scene.at(&path).exists() {
        return Ok(());
    }
    Err(format!(
        "it adds {} to what is imported, and nothing says what is there; install that from a wheel",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_leads_elsewhere_is_unknown_and_the_usual_is_not() {
        let root = tempfile::tempdir().unwrap();
        for directory in ["site/inner", "src", "other-site"] {
            std::fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        std::fs::write(root.path().join("site/_virtualenv.py"), "one").unwrap();
        let scene =
            Scene { root: root.path().into(), environment: BTreeMap::new(), argv: Vec::new(), directory: "/".into() };
        let own = ["/site".into(), "/other-site".into()];
        let take = |name: &str, text: &str, is_owned: bool| {
            std::fs::write(root.path().join("site").join(name), text).unwrap();
            read(&scene, Path::new("/site"), name, is_owned, Sites { added: &[], own: &own })
        };
        for (name, text, is_owned) in [
            ("a.pth", "/src", true),
            ("a.pth", "# x\n../src\n", true),
            ("a.pth", "inner", false),
            ("a.pth", "import sys; sys.path.insert(0, '/src')", false),
            ("a.pth", "import os; import sys; sys.meta_path.append(x)", false),
        ] {
            assert!(take(name, text, is_owned).is_err(), "{text}");
        }
        for (name, text, is_owned) in [
            ("a.pth", "inner\n/absent\n/other-site\n", true),
            ("a.pth", "import sys; anything(of, its, own)", true),
            ("distutils-precedence.pth", "import os; x", false),
            ("a-nspkg.pth", "import sys, types, os; os.path.join(sys._getframe(1).f_locals['sitedir'], 'a')", false),
            ("a.pth", "# nothing\n\n", false),
        ] {
            assert_eq!(take(name, text, is_owned).unwrap().is_none(), is_owned, "{text}");
        }
        let one = take("_virtualenv.pth", "import _virtualenv", false).unwrap();
        std::fs::write(root.path().join("site/_virtualenv.py"), "other").unwrap();
        assert_ne!(take("_virtualenv.pth", "import _virtualenv", false).unwrap(), one);
    }
}
