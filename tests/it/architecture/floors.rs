//! The table of floors, read out of the documentation of `src/lib.rs`.

use std::collections::BTreeMap;

const BEGIN: &str = "<!-- floors: ground first -->";
const END: &str = "<!-- floors end -->";

/// What the table says of one module.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Module {
    /// 0 is the ground.
    pub(super) floor: usize,
    beside: Vec<String>,
    never: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Floors {
    modules: BTreeMap<String, Module>,
}

impl Floors {
    /// Reads the table between the two marks.
    pub(super) fn read(lib: &str) -> Result<Self, String> {
        let table = lib
            .split_once(BEGIN)
            .and_then(|(_, rest)| rest.split_once(END))
            .ok_or("src/lib.rs: the marks of the table of floors are gone")?;
        let mut labels: Vec<&str> = Vec::new();
        let mut modules = BTreeMap::new();
        let rows = table.0.lines().filter_map(|line| line.trim_start_matches("//!").trim().strip_prefix('|'));
        // The first two rows are the head and the rule under it.
        for row in rows.skip(2) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let &[label, name, beside, ..] = cells.as_slice() else {
                return Err(format!("the table of floors has a row with too few cells: {row}"));
            };
            if labels.last() != Some(&label) {
                if labels.contains(&label) {
                    return Err(format!("floor {label} stands in the table twice"));
                }
                labels.push(label);
            }
            let name = name.trim_matches('`').to_owned();
            let (beside, never) = neighbours(beside);
            let module = Module { floor: labels.len() - 1, beside, never };
            if modules.insert(name.clone(), module).is_some() {
                return Err(format!("module {name} stands in the table twice"));
            }
        }
        let floors = Self { modules };
        floors.check()?;
        Ok(floors)
    }

    pub(super) fn get(&self, module: &str) -> Option<&Module> {
        self.modules.get(module)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    /// Why `from` may not use `to`, or nothing when it may.
    pub(super) fn refusal(&self, from: &str, to: &str) -> Option<String> {
        if from == to {
            return None;
        }
        let user = self.get(from)?;
        let Some(used) = self.get(to) else {
            return Some(format!("`crate::{to}` is no module of the table in src/lib.rs"));
        };
        if user.never.iter().any(|name| name == to) {
            return Some(format!("`{from}` must not know `{to}`"));
        }
        let allowed = used.floor < user.floor || user.beside.iter().any(|name| name == to);
        let how = if used.floor == user.floor { "beside it, and not named as a neighbour" } else { "above it" };
        (!allowed).then(|| format!("`{from}` uses `{to}`, which is {how}"))
    }

    /// The table itself: neighbours exist on the same floor and do not form a ring; what must not be known is below.
    fn check(&self) -> Result<(), String> {
        if self.modules.is_empty() {
            return Err("the table of floors is empty".to_owned());
        }
        for (name, module) in &self.modules {
            for other in &module.beside {
                if self.get(other).is_none_or(|other| other.floor != module.floor) {
                    return Err(format!("`{name}` has `{other}` beside it, which is not on its floor"));
                }
                if self.reaches(other, name, self.modules.len()) {
                    return Err(format!("`{name}` and `{other}` would use each other"));
                }
            }
            if let Some(other) =
                module.never.iter().find(|other| self.get(other).is_none_or(|other| other.floor >= module.floor))
            {
                return Err(format!("`{name}` need not be told not to use `{other}`, which is not below it"));
            }
        }
        Ok(())
    }

    fn reaches(&self, from: &str, to: &str, steps: usize) -> bool {
        from == to
            || steps > 0
                && self
                    .get(from)
                    .is_some_and(|module| module.beside.iter().any(|next| self.reaches(next, to, steps - 1)))
    }
}

/// "`a` `b` not `c`" is (beside a and b, never c).
fn neighbours(cell: &str) -> (Vec<String>, Vec<String>) {
    let (mut beside, mut never, mut negated) = (Vec::new(), Vec::new(), false);
    for word in cell.split_whitespace() {
        let list = if negated { &mut never } else { &mut beside };
        if word == "not" {
            negated = true;
        } else {
            list.push(word.trim_matches(['`', ',']).to_owned());
            negated = false;
        }
    }
    (beside, never)
}

#[cfg(test)]
mod tests {
    use super::{BEGIN, END, Floors};

    fn table(rows: &str) -> Result<Floors, String> {
        let rows: String = rows.lines().map(|row| format!("//! {row}\n")).collect();
        Floors::read(&format!(
            "//! {BEGIN}\n//! | floor | module | beside | what |\n//! |--|--|--|--|\n{rows}//! {END}\n"
        ))
    }

    #[test]
    fn uses_go_down_or_to_a_named_neighbour() {
        let floors = table("| ground | `a` | | x |\n| ground | `b` | `a` | x |\n| 1 | `c` | not `b` | x |").unwrap();
        assert_eq!(floors.refusal("b", "a"), None);
        assert_eq!(floors.refusal("c", "a"), None);
        assert_eq!(floors.refusal("c", "c"), None);
        assert!(floors.refusal("a", "b").unwrap().contains("beside it"));
        assert!(floors.refusal("a", "c").unwrap().contains("above it"));
        assert!(floors.refusal("c", "b").unwrap().contains("must not know"));
        assert!(floors.refusal("a", "z").unwrap().contains("no module"));
    }

    #[test]
    fn a_broken_table_is_refused() {
        for (rows, complaint) in [
            ("", "empty"),
            ("| ground | `a` | | x |\n| ground | `a` | | x |", "module a stands"),
            ("| ground | `a` | | x |\n| 1 | `b` | | x |\n| ground | `c` | | x |", "floor ground stands"),
            ("| ground | `a` | `b` | x |\n| ground | `b` | `c` | x |\n| ground | `c` | `a` | x |", "use each other"),
            ("| ground | `a` | `b` | x |\n| 1 | `b` | | x |", "not on its floor"),
            ("| ground | `a` | not `b` | x |\n| 1 | `b` | | x |", "not below it"),
            ("| ground |", "too few cells"),
        ] {
            let error = table(rows).unwrap_err();
            assert!(error.contains(complaint), "{rows}: {error}");
        }
        assert!(Floors::read("//! no table").is_err());
    }
}
