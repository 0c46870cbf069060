//! The command line, taken apart without knowing its options. All words that follow an option belong to it, up to the next option:
//! how many an option takes is known to its program alone, and a word that is given to none would be in the key without its
//! owner, so that two commands had one key. What `=` joins to an option is its one value. Only what stands before the first
//! option, or after such a one, belongs to none.
//!
//! Turned down: lists of the options that take one value. They grow with every release of an engine, and what is missing from
//! them goes unnoticed.

use std::collections::BTreeMap;

use super::python::Interpreter;
use super::scene::Scene;

/// The program's own text, given to an interpreter or a shell.
pub(super) const TEXT: &str = "-c";

/// What the command line says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    /// Options by name with dashes for underscores: the words of each time that it is given. A flag has none.
    pub(super) options: BTreeMap<String, Vec<Vec<String>>>,
    /// What belongs to no option, in its order.
    pub(super) positional: Vec<String>,
    /// Which of them is the program: a script, or a module after `-m`.
    pub(super) program: Option<String>,
    /// Whether the program is a module.
    pub(super) module: bool,
    /// The names of the options as they follow each other.
    order: Vec<String>,
}

// === impl Arguments ===

impl Arguments {
    /// Reads the command of a scene.
    pub(super) fn parse(scene: &Scene, python: &Interpreter) -> Self {
        let mut found = Self::default();
        let Some((first, rest)) = scene.argv.split_first() else { return found };
        let mut words = rest.iter().peekable();
        // Options of the interpreter stand before the program and are about the interpreter.
        if python.program.is_some() && !python.by_script {
            while let Some(word) = words.next_if(|word| word.starts_with('-')) {
                let name = word.trim_start_matches('-');
                match name {
                    "m" => {
                        found.module = true;
                        found.program = words.next().cloned();
                        break;
                    }
                    "c" => {
                        found.give(TEXT.to_owned(), words.next().cloned().into_iter().collect());
                        break;
                    }
                    "X" | "W" => found.give(format!("python-{name}"), words.next().cloned().into_iter().collect()),
                    _ => found.give(format!("python-{name}"), Vec::new()),
                }
            }
            if !found.module && !found.options.contains_key(TEXT) {
                found.program = words.next().cloned();
            }
        } else {
            found.program = Some(first.clone());
        }
        while let Some(word) = words.next() {
            if word == "--" {
                found.give(word.clone(), words.by_ref().cloned().collect());
            } else if !is_option(word) {
                found.positional.push(word.clone());
            } else if let Some((name, value)) = word.split_once('=') {
                found.give(normal(name), vec![value.to_owned()]);
            } else {
                let values = std::iter::from_fn(|| words.next_if(|next| !is_option(next)).cloned()).collect();
                found.give(normal(word), values);
            }
        }
        found
    }

    fn give(&mut self, name: String, words: Vec<String>) {
        self.order.push(name.clone());
        self.options.entry(name).or_default().push(words);
    }

    /// The value of an option that has these names, which is taken out unless it has more than that; of a flag an empty one.
    ///
    /// # Errors
    /// It is given several times and does not say the same: which time counts is known to the program alone.
    pub(super) fn take(&mut self, names: &[String]) -> Result<Option<String>, String> {
        let names: Vec<String> = names.iter().map(|name| normal(name)).collect();
        let given = || names.iter().filter_map(|name| Some((name, self.options.get(name)?)));
        let mut values = given().flat_map(|(_, times)| times).map(|words| words.first().cloned().unwrap_or_default());
        let Some(value) = values.next() else { return Ok(None) };
        if values.any(|other| other != value) {
            let names: Vec<&str> = given().map(|(name, _)| name.as_str()).collect();
            return Err(format!("{} is given more than once, with different values; give it once", names.join(", ")));
        }
        for name in &names {
            if self.options.get(name).is_some_and(|times| times.iter().all(|words| words.len() <= 1)) {
                self.options.remove(name);
            }
        }
        Ok(Some(value))
    }

    /// The first value of the last of these options that is given.
    pub(super) fn value(&self, names: &[String]) -> Option<&str> {
        names.iter().find_map(|name| self.options.get(&normal(name))?.last()?.first().map(String::as_str))
    }

    /// Switches that are given both ways, `--x` and `--no-x`: which of the two came last.
    pub(super) fn contradictions(&self) -> impl Iterator<Item = (&str, &str)> {
        self.options.keys().filter_map(|name| {
            let switch = name.strip_prefix("--no-")?;
            let is_it = |name: &&String| name.strip_prefix("--") == Some(switch);
            self.options.keys().find(is_it)?;
            let last = self.order.iter().rev().find(|one| *one == name || is_it(one))?;
            Some((switch, last.as_str()))
        })
    }
}

fn is_option(word: &str) -> bool {
    word.starts_with('-') && word.len() > 1 && word.parse::<f64>().is_err()
}

/// `--max_model_len` and `--max-model-len` are one option.
pub(super) fn normal(name: &str) -> String {
    if name.starts_with("--") { name.replace('_', "-") } else { name.to_owned() }
}

/// Words as one text that no other words give, whichever blanks they have in them; `|` between one time and the next. One word that
/// is JSON stands as it is.
pub(super) fn joined(times: &[Vec<String>]) -> String {
    let json = |word: &String| word.starts_with(['{', '[']);
    if let [words] = times
        && let [word] = words.as_slice()
        && json(word)
    {
        return word.clone();
    }
    let quoted = |word: &String| {
        let odd = |c: char| c.is_whitespace() || c.is_control();
        let plain = !word.is_empty() && word != "|" && !word.starts_with('"') && !json(word) && !word.chars().any(odd);
        if plain { word.clone() } else { serde_json::Value::from(word.as_str()).to_string() }
    };
    let times = times.iter().map(|words| words.iter().map(quoted).collect::<Vec<_>>().join(" "));
    times.collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Arguments {
        let scene = Scene {
            root: "/".into(),
            environment: BTreeMap::new(),
            argv: words.iter().map(|word| (*word).to_owned()).collect(),
            directory: "/".into(),
        };
        Arguments::parse(&scene, &Interpreter::default())
    }

    fn given(found: &Arguments) -> Vec<(&str, String)> {
        found.options.iter().map(|(name, times)| (name.as_str(), joined(times))).collect()
    }

    #[test]
    fn every_word_belongs_to_the_option_before_it() {
        let found = parse(&["x", "serve", "m", "--bs", "1", "2", "-4", "--flag", "--k=v", "left", "--bs", "8"]);
        assert_eq!(
            given(&found),
            [("--bs", "1 2 -4 | 8".to_owned()), ("--flag", String::new()), ("--k", "v".to_owned())]
        );
        assert_eq!(found.positional, ["serve", "m", "left"]);
        assert_eq!(
            given(&parse(&["x", "-a", "1", "--", "-b", "2"])),
            [("--", "-b 2".to_owned()), ("-a", "1".to_owned())]
        );
    }

    #[test]
    fn other_words_are_another_text() {
        let texts = [
            &[&["1", "2"][..]][..],
            &[&["1 2"]],
            &[&["1"], &["2"]],
            &[&["1", "|", "2"]],
            &[&["\"1 2\""]],
            &[&[""]],
            &[&[]],
            &[&[], &[]],
            &[&["{\"a\":\"b c\"}"]],
            &[&["{\"a\":\"b", "c\"}"]],
            &[&["1\n2"]],
        ]
        .map(|times| {
            joined(&times.iter().map(|words| words.iter().map(|word| (*word).to_owned()).collect()).collect::<Vec<_>>())
        });
        for (at, text) in texts.iter().enumerate() {
            assert!(!texts[..at].contains(text), "{text}");
        }
        assert_eq!((texts[0].as_str(), texts[8].as_str()), ("1 2", r#"{"a":"b c"}"#));
    }

    #[test]
    fn what_is_taken_is_unequivocal() {
        let names = ["--tensor_parallel_size".to_owned(), "-tp".to_owned()];
        let mut once = parse(&["x", "-tp", "2", "--tensor-parallel-size=2"]);
        assert_eq!(once.take(&names).unwrap().as_deref(), Some("2"));
        assert!(once.options.is_empty());
        let mut more = parse(&["x", "-tp", "2", "m"]);
        assert_eq!(more.take(&names).unwrap().as_deref(), Some("2"));
        assert_eq!(given(&more), [("-tp", "2 m".to_owned())], "what else it has stays");
        let why = parse(&["x", "-tp", "2", "--tensor-parallel-size", "4"]).take(&names).unwrap_err();
        assert!(why.contains("--tensor-parallel-size, -tp"), "{why}");
    }

    #[test]
    fn a_switch_given_both_ways_is_what_it_is_last() {
        let both = parse(&["x", "--no-a", "--a", "--no-b"]);
        assert_eq!(both.contradictions().collect::<Vec<_>>(), [("a", "--a")]);
        let both = parse(&["x", "--a", "--no-a"]);
        assert_eq!(both.contradictions().collect::<Vec<_>>(), [("a", "--no-a")]);
    }
}
