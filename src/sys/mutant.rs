//! Named defects, so that a crash rig can prove that it would notice one. Compiled in only with the feature `mutants`, and
//! then chosen by `PREHEAT_MUTANT`; a release build has none of it.

/// Whether the named defect is switched on.
#[cfg(feature = "mutants")]
#[must_use]
pub fn mutant(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("PREHEAT_MUTANT").ok()).as_deref() == Some(name)
}

/// Whether the named defect is switched on: never, in this build.
#[cfg(not(feature = "mutants"))]
#[must_use]
pub const fn mutant(_name: &str) -> bool {
    false
}
